"""A vision stage is evaluated on pictures and on text: known losses, what text has become, drawings, what cannot be."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.data.tokenizers import load_tokenizer
from ringworld.errors import UserError
from ringworld.evaluate import evaluator
from ringworld.evaluate import vision_figures as figures_of
from ringworld.evaluate.asking import Asked
from ringworld.evaluate.marked_frames import draw_marked
from ringworld.evaluate.recipe import (
    EvaluateInputs,
    EvaluateJob,
    EvaluateRecipe,
    NeedleConfig,
    VideoNeedleConfig,
    VisionConfig,
)
from ringworld.evaluate.vision import HeldOutVision, read_vision
from ringworld.mesh import MeshSpec, make_mesh, parse_mesh
from ringworld.model.config import ModelConfig, RopeConfig
from ringworld.model.init import init_params
from ringworld.model.layout import Layout
from ringworld.model.llama import bind
from ringworld.model.rope import make_rope
from ringworld.train.checkpoint import save_params
from ringworld.vision.codec import Codec
from ringworld.vision.vqgan_import import read_vqgan, write_vqgan
from tests.ringworld.corpus import TOKENIZER, prose, write_corpus
from tests.ringworld.evaluate import clips as stores
from tests.ringworld.evaluate.clips import (
    HELD_OUT,
    IDS,
    VOCABULARY,
    VQGAN,
    clips,
    examples,
    write_clips,
    write_examples,
)
from tests.ringworld.vision.vqgans import random_params

TEXT = ModelConfig(IDS.offset, 2, 32, 4, 2, 8, 48, rope=RopeConfig(1e5))
SEES = replace(TEXT, vision_vocabulary=VOCABULARY)
SEQUENCE, SEED = 256, 3
SHOWN = VisionConfig(VideoNeedleConfig((2, 6, 40), depths=(0.0, 1.0), rounds=2), examples=4, drawn=2, frames=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A text model, a model of zeros that sees, texts, clips, and examples of two kinds."""
    place = tmp_path_factory.mktemp("vision")
    write_corpus(place, [prose(seed, 40) for seed in range(4)], held_out=2)
    write_clips(place)
    for form in ("pairs", "chat"):
        write_examples(place / form, form, SEQUENCE)
    save_params(str(place / "before"), loud(TEXT, 1))
    save_params(str(place / "after"), jax.tree.map(jnp.zeros_like, init_params(SEES, jax.random.key(0))))
    return place


def loud(config, seed):
    return jax.tree.map(lambda leaf: leaf * 4, init_params(config, jax.random.key(seed)))


def job_of(folder: Path, form: str, vision: VisionConfig | None = SHOWN) -> EvaluateJob:
    """Text model before, zeros after."""
    output = folder / f"out-{form}"
    output.mkdir(exist_ok=True)
    recipe = EvaluateRecipe(
        SEES, SEQUENCE, rows=3, needle=NeedleConfig((SEQUENCE,), (0.5,)), before_rope=RopeConfig(1e4), seed=SEED,
        vision=vision,
    )  # fmt: skip
    places = {name: str(folder / name) for name in ("tokens", "tokenizer", "before", "after", "codes", "vqgan")}
    return EvaluateJob(recipe, EvaluateInputs(**places, vision=str(folder / form), output=str(output)))


def evaluated(job: EvaluateJob):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "make_mesh", lambda spec: make_mesh(spec, jax.devices()[:1]))
        return evaluator.evaluate(job, parse_mesh("data=1"))


@pytest.fixture(scope="module")
def pairs(folder):
    return evaluated(job_of(folder, "pairs"))


def held_out(job: EvaluateJob) -> HeldOutVision:
    found = read_vision(job, load_tokenizer(job.inputs.tokenizer))
    assert found is not None
    return found


def token_losses(config, params, documents):
    """float64, of each target in its own vocabulary, of documents one after another, each in a row of its own."""
    ids = np.full((len(documents), SEQUENCE + 1), -1)
    for row, document in enumerate(documents):
        ids[row, : len(document)] = document

    @jax.jit
    def hidden_of(params, tokens):
        layout = Layout(make_mesh(MeshSpec(), jax.devices()[:1]), jnp.dtype("float32"))
        positions = jnp.broadcast_to(jnp.arange(SEQUENCE), tokens.shape)
        return bind(config, params)(tokens, positions, jnp.ones_like(tokens), make_rope(RopeConfig(1e4), 8), layout)

    hidden = np.asarray(hidden_of(params, np.maximum(ids[:, :-1], 0)), np.float64)
    found, first, targets = np.full(ids[:, 1:].shape, np.nan), 0, ids[:, 1:]
    for head in bind(config, params).output_weights():
        logits = hidden @ np.asarray(head, np.float64)
        own = targets - first
        mine = (targets >= 0) & (own >= 0) & (own < head.shape[1])
        picked = np.take_along_axis(logits, np.where(mine, own, 0)[..., None], -1)[..., 0]
        found[mine] = (np.log(np.exp(logits).sum(-1)) - picked)[mine]
        first += head.shape[1]
    return found[targets >= 0]


def test_losses_of_text_and_of_pictures_are_those_of_the_grown_text_model_each_example_alone(folder, pairs):
    grown = {**loud(TEXT, 1), "vision": init_params(SEES, jax.random.key(SEED))["vision"]}
    kept = [example for number, example in examples("pairs", SEQUENCE) if number >= len(clips()) - HELD_OUT]
    loss = token_losses(SEES, grown, [example.ids for example in kept])
    seen = np.concatenate([example.ids[1:] >= IDS.offset for example in kept])
    of = np.concatenate([np.full(len(example.ids) - 1, example.corpus) for example in kept])
    for corpus in ("image", "video"):
        for name, which in (("text", (of == corpus) & ~seen), ("vision", (of == corpus) & seen)):
            found = pairs["vision"]["corpora"][corpus][name]
            assert found["before"] == pytest.approx(loss[which].mean(), rel=1e-4)
            assert found["tokens"] == which.sum()


def test_a_model_that_knows_nothing_costs_the_logarithm_of_each_vocabulary(pairs):
    for corpus in ("image", "video"):
        found = pairs["vision"]["corpora"][corpus]
        assert found["examples"] == 4
        assert found["text"]["after"] == pytest.approx(math.log(IDS.offset), rel=1e-6)
        assert found["vision"]["after"] == pytest.approx(math.log(VOCABULARY), rel=1e-6)
    assert pairs["loss_after"] == pytest.approx(math.log(IDS.offset), rel=1e-6)
    # To it all colours are equally likely, so that none is the likeliest.
    needle = pairs["vision"]["needle"]
    assert (needle["exact"], needle["said"], needle["ranked"], needle["chance"]) == (0, 0, 0, 0.25)


def test_what_text_costs_before_is_what_it_costs_the_text_model(folder, pairs):
    job = job_of(folder, "text", None)
    texts = replace(
        job,
        recipe=replace(job.recipe, model=TEXT),
        inputs=replace(job.inputs, vision=None, codes=None, vqgan=None, after=job.inputs.before),
    )
    alone = evaluated(texts)
    for name in ("loss_before", "rows", "sequence"):
        assert pairs[name] == pytest.approx(alone[name], rel=1e-6)
    assert pairs["loss_by_position"]["before"] == pytest.approx(alone["loss_by_position"]["before"], rel=1e-6)
    assert pairs["loss_before"] != pytest.approx(pairs["loss_after"], rel=0.01)


def test_it_leaves_a_grid_and_what_was_drawn_from_held_out_captions(folder, pairs):
    found, output = pairs["vision"], folder / "out-pairs"
    assert {(cell["frames"], cell["depth"]) for cell in found["needle"]["cells"]} == {
        (frames, depth) for frames in (2, 6) for depth in (0.0, 1.0)
    }
    assert found["needle"]["refused"] == {"40": "the held-out clips have 24 frames, the prompt needs 40"}
    assert found["not_drawn"] == ""
    first = {n: e for n, e in examples("pairs", SEQUENCE) if n >= len(clips()) - HELD_OUT and e.how == "text first"}
    captions = {f"scene {number}": example.corpus for number, example in first.items()}
    assert found["drawn"]
    for drawn in found["drawn"]:
        assert captions[drawn["caption"]] == drawn["corpus"]
        assert drawn["frames"] == (1 if drawn["corpus"] == "image" else 2)
    for picture in ("video_needle.png", "samples.png", "needle.png", "loss_by_position.png"):
        assert (output / picture).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not (output / "transcript.md").exists()
    assert json.loads((output / "evaluation.json").read_text())["vision"] == found
    progress = json.loads((output / "progress.json").read_text())
    assert progress["step"] == progress["of"]


def test_the_marked_frame_comes_through_the_runs_own_vqgan(folder):
    vision = held_out(job_of(folder, "pairs"))
    codec = Codec(*read_vqgan(str(folder / "vqgan")))
    for prompt in vision.needle.prompts:
        [wanted] = codec.encode(draw_marked(prompt.marked, VQGAN.resolution)[None])
        assert (prompt.codes[prompt.place] == wanted).all()
    frames = {prompt.marked for prompt in vision.needle.prompts}
    codes = codec.encode(np.stack([draw_marked(frame, VQGAN.resolution) for frame in frames]))
    assert vision.needle.told_apart == len(np.unique(codes, axis=0)) / len(frames)


def test_a_chat_stage_is_asked_about_pictures_and_only_its_answers_count(folder, monkeypatch):
    asked = []

    def said(sampler, answers, on_step, on_answer):
        asked.extend(answers)
        for _ in answers:
            on_answer()
        return [Asked(answer, "scene 5", "stop", answer.passage.truth == "scene 5", 0.5) for answer in answers]

    monkeypatch.setattr(evaluator, "open_sampler", lambda *_: None)
    monkeypatch.setattr(evaluator, "ask", said)
    found = evaluated(job_of(folder, "chat", replace(SHOWN, drawn=0, asked=2)))["vision"]
    assert found["corpora"].keys() == {
        f"{kind}-{task}" for kind in ("image", "video") for task in ("question", "generation")
    }
    for corpus in ("image-question", "video-question"):
        part = found["corpora"][corpus]
        mine = [e for n, e in examples("chat", SEQUENCE) if n >= len(clips()) - HELD_OUT and e.corpus == corpus]
        assert part["text"]["tokens"] == sum(example.answer.sum() for example in mine)
        assert part["vision"] == {"before": None, "after": None, "tokens": 0}
        assert part["asked"] == 2
    assert found["corpora"]["video-generation"]["vision"]["tokens"] > 0
    assert found["corpora"]["video-generation"]["asked"] == 0
    assert (found["asked"], found["f1"], found["not_drawn"]) == (4, 0.5, "vision.drawn=0")
    for answer in asked:
        assert answer.passage.truth == f"scene {clip_of(answer.corpus, answer.document)}"
        assert (answer.prompt >= IDS.offset).sum() % (VQGAN.grid**2 + 1) == 0
        assert (answer.ids < IDS.offset).all()
    assert {shown["said"] for shown in found["transcripts"]} == {"scene 5"}
    assert "<vision></vision>" in (folder / "out-chat" / "transcript.md").read_text()
    assert not (folder / "out-chat" / "samples.png").exists()


def clip_of(corpus: str, document: int) -> int:
    number, example = examples("chat", SEQUENCE)[document]
    assert example.corpus == corpus
    return number


def test_what_cannot_be_evaluated_is_said(folder, tmp_path, monkeypatch):
    job = job_of(folder, "pairs")
    short = held_out(replace(job, recipe=replace(job.recipe, sequence=48, needle=NeedleConfig((48,)))))
    assert short.corpora.keys() == {"image"}
    assert "none of 4 held_out examples of video fits a row of 48 tokens" in short.refused["video"]
    assert "a row has 48" in short.needle.refused[2]
    assert len(short.needle.rows.tokens) == 0

    alike = replace(SHOWN, needle=VideoNeedleConfig((2, 6), colours=("blue", "black", "red")))
    needle = held_out(replace(job, recipe=replace(job.recipe, vision=alike))).needle
    assert (needle.prompts, needle.refused.keys()) == ((), {2, 6})
    assert "take other colours" in needle.refused[6]

    monkeypatch.setattr(stores, "HELD_OUT", 0)
    write_clips(tmp_path)
    write_examples(tmp_path / "pairs", "pairs", SEQUENCE)
    monkeypatch.undo()
    places = {name: str(tmp_path / name) for name in ("codes", "vqgan")}
    none = held_out(replace(job, inputs=replace(job.inputs, vision=str(tmp_path / "pairs"), **places)))
    figures = figures_of.vision_figures(none, {}, {}, [], [], figures_of.Drawn((), none.not_drawn))
    assert figures["corpora"] == {}
    assert "none of 0 held_out examples of image" in figures["refused"]["image"]
    assert figures["needle"]["refused"]["2"] == "the held-out clips have 0 frames, the prompt needs 2"
    assert (figures["needle"]["ranked"], figures["needle"]["told_apart"]) == (None, None)
    assert (figures["drawn"], figures["not_drawn"]) == ([], "no held-out example has a caption to draw")

    def broken(*_):
        raise UserError("the model's output is no number")

    for name, stub in (("Programs", lambda *_: None), ("draw_wishes", broken)):
        monkeypatch.setattr(figures_of, name, stub)
    drawn = figures_of.draw(held_out(job), job, {}, make_mesh(MeshSpec(), jax.devices()[:1]), TOKENIZER, lambda: None)
    assert (drawn.codes, drawn.why_not) == ((), "the model's output is no number")
    monkeypatch.undo()

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    several = held_out(job_of(folder, "chat"))
    assert several.chosen
    assert several.wishes == ()
    assert "captions are drawn in one process and this evaluation ran in 2" in several.not_drawn
    monkeypatch.undo()

    with pytest.raises(UserError, match=r"recipe.vision and inputs.vision, codes, vqgan belong together"):
        held_out(replace(job, inputs=replace(job.inputs, codes=None)))
    with pytest.raises(UserError, match=r"give that of a vision-examples stage"):
        held_out(replace(job, inputs=replace(job.inputs, vision=job.inputs.tokens)))
    with pytest.raises(UserError, match=r"a text model sees nothing"):
        replace(job.recipe, model=TEXT)
    # Of the same sizes: only its weights tell that it is another one.
    write_vqgan(str(tmp_path / "other"), VQGAN, {name: 2 * leaf for name, leaf in random_params(VQGAN).items()})
    with pytest.raises(UserError, match=r"inputs.vqgan=.*other is .*; give the VQGAN that made them"):
        held_out(replace(job, inputs=replace(job.inputs, vqgan=str(tmp_path / "other"))))
