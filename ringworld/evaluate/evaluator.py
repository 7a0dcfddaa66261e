"""One evaluation: score held-out rows, needle prompts, conversations and pictures under the weights before and after a
stage, ask questions and tasks, have captions drawn, write what was found.

Writes `evaluation.json` (every figure, every prompt's answer key), `loss_by_position.png`, `loss_given_context.png`,
`needle.png` and the folder `tasks` into the output folder, and `progress.json` while it runs. Of a chat stage also
`answers.png`; of a vision stage `video_needle.png` and `samples.png` (captions and what was drawn); of both, where
questions may be asked, `questions.jsonl` (every question and answer) and `transcript.md` (a few of them, to read).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import jax
import numpy as np

from ringworld.data.files import join, write_json
from ringworld.data.token_store import TokenStore
from ringworld.data.tokenizers import check_same, load_tokenizer
from ringworld.errors import UserError
from ringworld.evaluate import transcripts
from ringworld.evaluate.answers import TalkScores, score_talks
from ringworld.evaluate.asking import Asked, Room, ask, open_sampler, room_for
from ringworld.evaluate.chat import chat_figures, read_chat
from ringworld.evaluate.context import ContextScores, context_figures, read_context, score_context
from ringworld.evaluate.held_out import windows
from ringworld.evaluate.loss_by_position import PositionLoss, summarize
from ringworld.evaluate.needle import Cell, Prompt, grade, needle_prompts, pack_prompts
from ringworld.evaluate.pictures import draw_answers, draw_loss_by_position, draw_loss_given_context, draw_needle
from ringworld.evaluate.progress import Progress
from ringworld.evaluate.recipe import EvaluateJob
from ringworld.evaluate.scorer import Rows, Scorer, Scores
from ringworld.evaluate.seen_loss import SeenLoss, seen_loss
from ringworld.evaluate.tasks.answerers import EngineAnswerer
from ringworld.evaluate.tasks.grid import Result
from ringworld.evaluate.tasks.of_stage import ask_tasks, plan_tasks, tasks_figures, write_tasks
from ringworld.evaluate.video_needle import VideoCell, grade_video
from ringworld.evaluate.vision import read_vision
from ringworld.evaluate.vision_figures import draw, vision_figures, write_vision
from ringworld.mesh import MeshSpec, make_mesh
from ringworld.model.config import RopeConfig
from ringworld.model.llama import Params, init_params
from ringworld.model.sharding import check, param_shardings
from ringworld.train.vigil import Vigil
from ringworld.train.weights import load_weights


def evaluate(job: EvaluateJob, mesh_spec: MeshSpec) -> dict[str, Any]:
    """Run the job; returns what evaluation.json holds. Every process of the job calls it, the first one writes."""
    with Vigil(job.options.stall_seconds, job.options.stall_seconds) as vigil:
        return _evaluate(job, make_mesh(mesh_spec), vigil)


class _Losses(NamedTuple):
    """Of windows of text, and of the same tokens after more context; of each corpus of conversations, and of each of
    examples with pictures."""

    text: PositionLoss
    context: ContextScores | None
    answers: dict[str, TalkScores]
    seen: dict[str, SeenLoss]


def _evaluate(job: EvaluateJob, mesh: jax.sharding.Mesh, vigil: Vigil) -> dict[str, Any]:
    recipe, inputs = job.recipe, job.inputs
    check(recipe.model, mesh.shape)
    store, tokenizer = TokenStore.open(inputs.tokens), load_tokenizer(inputs.tokenizer)
    check_same(store.info.tokenizer_hash, tokenizer.hash, f"evaluation of {inputs.tokens}")
    documents = windows(store, recipe.sequence, recipe.rows)
    prompts, refused = needle_prompts(recipe.needle, store, tokenizer, recipe.seed)
    questions, places = pack_prompts([prompt.tokens for prompt in prompts], recipe.sequence)
    context, tasks = read_context(recipe.context, store, recipe.sequence), plan_tasks(job, store, tokenizer)
    chat, vision = read_chat(job, tokenizer), read_vision(job, tokenizer)
    choices = vision.needle.choices.ids.shape[1:] if vision else (0, 0)
    scorer = Scorer(recipe.model, mesh, recipe.dtype, job.options.loss_chunk, choices)
    talks, seen = chat.talks if chat else {}, vision.corpora if vision else {}
    chosen = [*(chat.chosen if chat else ()), *(vision.chosen if vision else ())]
    twice = [documents, *(context.rows if context else ())]
    twice += [*(found.rows for found in talks.values()), *(found.rows for found in seen.values())]
    once = [questions, *([vision.needle.rows] if vision else [])]
    batches = [scorer.batches(len(rows.tokens)) for rows in (*twice, *twice, *once)]
    cells_asked = len(tasks.cells) if tasks else 0
    progress = Progress(inputs.output, sum(batches) + len(chosen) + cells_asked, vigil)

    def scored(params: Params, rope: RopeConfig) -> _Losses:
        def of(rows: Rows) -> Scores:
            return scorer.score(params, rope, rows, progress.advance)

        first_seen = recipe.model.vocabulary
        return _Losses(
            summarize(of(documents).loss, documents.segments, recipe.past),
            score_context(context, lambda rows: of(rows).loss) if context else None,
            {corpus: score_talks(found, *of(found.rows)[:2]) for corpus, found in talks.items()},
            {corpus: seen_loss(found, of(found.rows).loss, first_seen) for corpus, found in seen.items()},
        )

    before = scored(weights_before(job, mesh), recipe.before_rope or recipe.model.rope)
    params = load_weights(inputs.after, recipe.model, mesh)
    after = scored(params, recipe.model.rope)
    cells: list[Cell] = []
    if prompts:
        cells = grade(prompts, places, scorer.score(params, recipe.model.rope, questions, progress.advance).hit)
    video: list[VideoCell] = []
    if vision and vision.needle.prompts:
        needle = vision.needle
        found = scorer.score(params, recipe.model.rope, needle.rows, progress.advance, needle.choices)
        video = grade_video(needle.prompts, needle.places, found.hit, found.chosen)
    asked: list[Asked] = []
    results: list[Result] = []
    not_asked = ""
    rooms = [room_for(chosen), tasks.room if tasks else Room(0, 0)]
    if any(room.prompts for room in rooms):
        room = Room(*(max(sizes) for sizes in zip(*rooms, strict=True)))
        sampler = open_sampler(recipe.model, params, mesh, recipe.dtype, tokenizer, room, job.options.slots)
        asked = ask(sampler, chosen, vigil.beat, progress.advance)
        if tasks:
            answerer = EngineAnswerer(sampler, vigil.beat)
            results, not_asked = ask_tasks(tasks, inputs.output, lambda: answerer, progress.advance)
            del answerer
        del sampler  # and its copy of the weights
    in_chat = len(chat.chosen) if chat else 0
    figures = _figures(job, before.text, after.text, cells, refused, len(documents.tokens))
    first = jax.process_index() == 0
    if first:
        _write_pictures(job, before.text, after.text, cells)
    if context and before.context and after.context:
        figures |= context_figures(context, before.context, after.context)
        if first and figures["loss_given_context"]:
            draw_loss_given_context(join(inputs.output, "loss_given_context.png"), figures["loss_given_context"])
    if tasks:
        figures |= tasks_figures(tasks, results, not_asked)
        if first and results:
            write_tasks(tasks, inputs.output, results)
    if chat:
        figures["chat"] = chat_figures(chat, before.answers, after.answers, asked[:in_chat])
        if first and chat.talks:
            draw_answers(join(inputs.output, "answers.png"), figures["chat"]["corpora"])
    if vision:
        drawn = draw(vision, job, params, mesh, tokenizer, vigil.beat)
        figures["vision"] = vision_figures(vision, before.seen, after.seen, video, asked[in_chat:], drawn)
        if first:
            write_vision(inputs.output, vision, video, drawn)
    if first:
        if chat or asked:
            transcripts.write(inputs.output, asked, chat.not_asked if chat else "")
        _write(inputs.output, figures, prompts)
    return figures


def weights_before(job: EvaluateJob, mesh: jax.sharding.Mesh) -> Params:
    """The weights that the stage started from; random ones, of the recipe's seed, for a stage from scratch."""
    if job.inputs.before is not None:
        # A text model that a vision stage starts from gets the same new rows as there.
        recipe = job.recipe
        return load_weights(job.inputs.before, recipe.model, mesh, new_rows=recipe.seed, sequence=recipe.sequence)
    if job.recipe.before_rope is not None:
        raise UserError("before_rope is given, but inputs.before names no weights")
    shardings = param_shardings(job.recipe.model, mesh)
    return jax.jit(lambda key: init_params(job.recipe.model, key), out_shardings=shardings)(
        jax.random.key(job.recipe.seed)
    )


def _figures(
    job: EvaluateJob,
    before: PositionLoss,
    after: PositionLoss,
    cells: Sequence[Cell],
    refused: dict[int, str],
    rows: int,
) -> dict[str, Any]:
    return {
        "sequence": job.recipe.sequence,
        "past": job.recipe.past,
        "theta": job.recipe.model.rope.theta,
        "rows": rows,
        "loss_before": before.mean,
        "loss_after": after.mean,
        "loss_past_before": before.mean_past,
        "loss_past_after": after.mean_past,
        "loss_by_position": {"edges": list(after.edges), "before": list(before.spans), "after": list(after.spans)},
        "needle_exact": float(np.mean([cell.exact for cell in cells])) if cells else None,
        "needle_digits": float(np.mean([cell.digits for cell in cells])) if cells else None,
        "needle_cells": [asdict(cell) for cell in cells],
        "needle_refused": {str(length): reason for length, reason in refused.items()},
    }


def _write_pictures(job: EvaluateJob, before: PositionLoss, after: PositionLoss, cells: Sequence[Cell]) -> None:
    draw_loss_by_position(join(job.inputs.output, "loss_by_position.png"), before, after, job.recipe.past)
    if cells:
        draw_needle(join(job.inputs.output, "needle.png"), cells)


def _write(output: str, figures: dict[str, Any], prompts: Sequence[Prompt]) -> None:
    asked = [{"length": p.length, "depth": p.depth, "city": p.city, "number": p.number} for p in prompts]
    write_json(join(output, "evaluation.json"), {**figures, "needle_prompts": asked})
