"""An evaluation end to end: figures that agree with a direct computation, and the files that it leaves."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.data.tokenizers import load_tokenizer
from ringworld.errors import UserError
from ringworld.evaluate import evaluator
from ringworld.evaluate.chat import read_chat
from ringworld.evaluate.held_out import windows
from ringworld.evaluate.loss_by_position import summarize
from ringworld.evaluate.recipe import (
    ChatConfig,
    ContextConfig,
    EvaluateInputs,
    EvaluateJob,
    EvaluateRecipe,
    NeedleConfig,
    TasksConfig,
    load_job,
)
from ringworld.mesh import MeshSpec, make_mesh, parse_mesh
from ringworld.model.config import ModelConfig, RopeConfig
from ringworld.model.init import init_params
from ringworld.model.layout import Layout
from ringworld.model.llama import bind
from ringworld.model.rope import make_rope
from ringworld.train.checkpoint import save_params
from tests.ringworld.corpus import prose, write_corpus
from tests.ringworld.evaluate.talks import ids_of, write_talks

TALKS = [
    ("qa", [(f"{prose(seed, 4)} In {year} it sank. {prose(seed + 9, 2)}\n\nIn which year did it sink?", year)])
    for seed, year in enumerate(("1841", "1842", "1843", "1844", "1845"))
] + [("chat", [("Hi", "Hello."), ("And now?", "")]), ("long", [(prose(3, 30), "x")])]
MODEL = ModelConfig(264, 2, 32, 4, 2, 8, 48, tied_embeddings=True, rope=RopeConfig(1e5))


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    write_corpus(folder, [prose(seed, 40) for seed in range(4)], held_out=2)
    for name, seed in (("before", 1), ("after", 2)):
        save_params(str(folder / name), jax.tree.map(lambda leaf: leaf * 4, init_params(MODEL, jax.random.key(seed))))
    write_talks(folder, TALKS, held_out=[False] + [True] * 6)
    (folder / "out").mkdir()
    recipe = EvaluateRecipe(
        model=MODEL, sequence=512, rows=3, past=256, before_rope=RopeConfig(1e4),
        needle=NeedleConfig(lengths=(256, 512), depths=(0.0, 1.0)),
        chat=ChatConfig(("qa", "chat", "long", "absent"), examples=3, asked=2),
        context=ContextConfig(tail=64, least=128, windows=2, short=100, documents=2),
        tasks=TasksConfig(("passkey", "cities_1_1"), (400, 512), (0.5,)),
    )  # fmt: skip
    inputs = EvaluateInputs(
        tokens=str(folder / "tokens"), tokenizer=str(folder / "tokenizer"), after=str(folder / "after"),
        before=str(folder / "before"), output=str(folder / "out"), conversations=str(folder / "conversations"),
    )  # fmt: skip
    return EvaluateJob(recipe, inputs)


@pytest.fixture(scope="module")
def figures(job):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "make_mesh", lambda spec: make_mesh(spec, jax.devices()[:4]))
        return evaluator.evaluate(job, parse_mesh("fsdp=2,ring=2"))


@jax.jit
def hidden_and_head(params, rope, tokens):
    model = bind(MODEL, params)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    layout = Layout(make_mesh(MeshSpec(), jax.devices()[:1]), jnp.dtype("float32"))
    return model(tokens, positions, jnp.ones_like(tokens), rope, layout), model.output_weights()[0]


def losses(tokens: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """float64 [rows, sequence], of rows that are one example each, before and after."""
    found = {}
    for name, seed, theta in (("before", 1, 1e4), ("after", 2, 1e5)):
        params = jax.tree.map(lambda leaf: leaf * 4, init_params(MODEL, jax.random.key(seed)))
        hidden, head = hidden_and_head(params, make_rope(RopeConfig(theta), 8), jnp.asarray(tokens))
        logits = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64)
        found[name] = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return found


def test_losses_are_those_of_the_model_computed_directly(job, figures):
    rows = windows(evaluator.TokenStore.open(job.inputs.tokens), 512, 3)
    assert len(rows.tokens) == 3
    for name, loss in losses(rows.tokens, rows.targets).items():
        assert figures[f"loss_{name}"] == pytest.approx(loss.mean(), rel=1e-4)
        assert figures[f"loss_past_{name}"] == pytest.approx(loss[:, 256:].mean(), rel=1e-4)
        assert figures["loss_by_position"][name][-1] == pytest.approx(loss[:, 480:].mean(), rel=1e-4)


def test_losses_after_more_context_and_of_short_text_are_those_computed_directly(job, figures):
    store = evaluator.TokenStore.open(job.inputs.tokens)
    held_out = store.index.documents("held_out").tolist()
    found = figures["loss_given_context"]
    assert found["contexts"] == [128, 256, 448]
    assert (found["windows"], found["tail"], figures["context_refused"]) == (2, 64, "")
    # Of all windows, one after the other in each document, the first and the last.
    last = 513 * ((int(store.index.tokens[held_out[1]]) - 2 - 512) // 513)
    windows = [store.read(held_out[0], 0, 513), store.read(held_out[1], last, 513)]
    for number, context in enumerate(found["contexts"]):
        ids = np.zeros((3, 513), np.int32)
        for row, window in enumerate(windows):
            ids[row, : context + 65] = window[-(context + 65) :]
        for name, loss in losses(ids[:, :-1], ids[:, 1:]).items():
            assert found[name][number] == pytest.approx(loss[:2, context : context + 64].mean(), rel=1e-4)
    assert figures["context_gain"] == pytest.approx(found["after"][0] - found["after"][-1])
    ids = np.zeros((3, 513), np.int32)
    ids[:2, :101] = [store.read(document, 0, 101) for document in held_out]
    for name, loss in losses(ids[:, :-1], ids[:, 1:]).items():
        assert figures[f"short_loss_{name}"] == pytest.approx(loss[:2, :100].mean(), rel=1e-4)


def test_tasks_are_asked_in_what_is_held_out_and_what_cannot_be_asked_is_named(job, figures):
    folder = Path(job.inputs.output) / "tasks"
    assert figures["tasks"]["not_asked"] == ""
    assert figures["tasks"]["lengths"] == [400, 512]
    assert list(figures["tasks"]["tasks"]) == ["passkey", "cities_1_1"]
    assert figures["tasks_mean"] == 0.0  # random weights find nothing
    assert figures["effective_length"] == 0
    [example] = json.loads((folder / "cells" / "passkey-512-0.5000.json").read_text())["examples"]
    assert 490 < example["prompt_tokens"] + 16 <= 512
    prompt = gzip.decompress((folder / "prompts" / "cities_1_1-512-0.5000.jsonl.gz").read_bytes()).decode()
    assert "whale" in prompt
    assert json.loads((folder / "summary.json").read_text())["examples"] == 4
    assert (folder / "needles.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_answer_losses_are_means_over_conversations_each_alone(figures):
    assert figures["chat"]["corpora"]["qa"]["conversations"] == 3
    for corpus, talks in {"qa": [TALKS[1], TALKS[3], TALKS[4]], "chat": [TALKS[5]]}.items():  # three of four, spread
        ids, marks = np.zeros((3, 513), np.int32), np.zeros((3, 513), bool)
        for row, (_, talk) in enumerate(talks):
            said, counted = ids_of(talk)
            ids[row, : len(said)], marks[row, : len(said)] = said, counted
        for name, loss in losses(ids[:, :-1], ids[:, 1:]).items():
            means = [loss[row][marks[row, 1:]].mean() for row in range(len(talks))]
            assert figures["chat"]["corpora"][corpus][f"loss_{name}"] == pytest.approx(np.mean(means), rel=1e-4)


def test_a_chat_stage_is_asked_and_what_cannot_be_asked_is_named(job, figures):
    chat = figures["chat"]
    assert set(chat["corpora"]) == {"qa", "chat"}
    assert "none of 1 held_out conversations of long fits a row of 512" in chat["refused"]["long"]
    assert "none of 0 held_out conversations of absent" in chat["refused"]["absent"]
    assert chat["not_asked"] == ""
    assert (chat["asked"], chat["corpora"]["qa"]["asked"], chat["corpora"]["chat"]["asked"]) == (4, 2, 2)
    [depth] = chat["corpora"]["qa"]["depths"]
    assert (depth["from"], depth["to"], depth["answers"], depth["asked"]) == (0.6, 0.8, 3, 2)
    assert chat["corpora"]["chat"]["depths"] == []
    output = Path(job.inputs.output)
    asked = [json.loads(line) for line in (output / "questions.jsonl").read_text().splitlines()]
    assert sorted(item["answer"] for item in asked if item["corpus"] == "chat") == ["", "Hello."]
    assert chat["f1"] == pytest.approx(np.mean([item["f1"] for item in asked]))
    assert sorted(item["prompt_tokens"] for item in chat["transcripts"]) == sorted(i["prompt_tokens"] for i in asked)
    assert "In which year did it sink?" in (output / "transcript.md").read_text()


def test_conversations_without_a_chat_recipe_and_a_recipe_without_conversations_are_refused(job):
    tokenizer = load_tokenizer(job.inputs.tokenizer)
    with pytest.raises(UserError, match=r"recipe.chat and inputs.conversations belong together"):
        read_chat(replace(job, recipe=replace(job.recipe, chat=None)), tokenizer)
    with pytest.raises(UserError, match=r"a store of plain text; give that of a conversations stage"):
        read_chat(replace(job, inputs=replace(job.inputs, conversations=job.inputs.tokens)), tokenizer)


def test_it_leaves_figures_and_pictures(job, figures):
    output = Path(job.inputs.output)
    written = json.loads((output / "evaluation.json").read_text())
    assert written["loss_after"] == figures["loss_after"]
    assert {(cell["length"], cell["depth"]) for cell in written["needle_cells"]} == {
        (n, d) for n in (256, 512) for d in (0, 1)
    }
    assert len(written["needle_prompts"]) == 4
    for picture in ("loss_by_position.png", "loss_given_context.png", "needle.png", "answers.png"):
        assert (output / picture).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    progress = json.loads((output / "progress.json").read_text())
    assert progress["step"] == progress["of"]


def test_padding_does_not_count():
    loss = np.array([[1.0, 2.0, 50.0, 50.0], [3.0, 4.0, 5.0, 6.0]])
    found = summarize(loss, np.array([[1, 1, 0, 0], [1, 1, 1, 1]]), past=2)
    assert found.mean == pytest.approx(21 / 6)
    assert found.mean_past == pytest.approx(5.5)
    assert found.spans == pytest.approx((2.0, 3.0, 5.0, 6.0))


def test_a_job_reads_back_and_an_unknown_key_is_named(job, tmp_path):
    job.save(str(tmp_path / "job.yaml"))
    assert load_job(str(tmp_path / "job.yaml")) == job
    text = (tmp_path / "job.yaml").read_text().replace("rows:", "rowz:")
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(UserError, match=r"job.recipe.rowz.*did you mean rows"):
        load_job(str(tmp_path / "job.yaml"))
