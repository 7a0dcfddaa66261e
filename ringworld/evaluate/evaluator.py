"""One evaluation: score held-out rows, needle prompts, conversations and pictures under the weights before and after a
stage, ask questions and tasks, have captions drawn, write what was found.

Writes `evaluation.json` (every figure, every prompt's answer key), `loss_by_position.png`, `loss_given_context.png`,
`needle.png` and the folder `tasks` into the output folder, and `progress.json` while it runs. Of a chat stage also
`answers.png`; of a vision stage `video_needle.png` and `samples.png` (captions and what was drawn); of both, where
questions may be asked, `questions.jsonl` (every question and answer) and `transcript.md` (a few of them, to read).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from ringworld.data.files import join, write_json
from ringworld.data.token_store import TokenStore
from ringworld.data.tokenizers import Tokenizer, check_same, load_tokenizer
from ringworld.errors import UserError
from ringworld.evaluate import transcripts
from ringworld.evaluate.answers import Answer, Talks, TalkScores, score_talks
from ringworld.evaluate.asking import Asked, Room, ask, open_sampler, room_for
from ringworld.evaluate.chat import HeldOutChat, chat_figures, read_chat
from ringworld.evaluate.context import ContextScores, HeldOutContext, context_figures, read_context, score_context
from ringworld.evaluate.held_out import Examples, windows
from ringworld.evaluate.loss_by_position import PositionLoss, summarize
from ringworld.evaluate.needle import Cell, Prompt, grade, needle_prompts, pack_prompts
from ringworld.evaluate.pictures import draw_answers, draw_loss_by_position, draw_loss_given_context, draw_needle
from ringworld.evaluate.progress import Progress
from ringworld.evaluate.recipe import EvaluateJob
from ringworld.evaluate.scorer import Rows, Scorer, Scores
from ringworld.evaluate.seen_loss import SeenLoss, seen_loss
from ringworld.evaluate.tasks.answerers import EngineAnswerer
from ringworld.evaluate.tasks.grid import Result
from ringworld.evaluate.tasks.of_stage import Planned, ask_tasks, plan_tasks, tasks_figures, write_tasks
from ringworld.evaluate.video_needle import VideoCell, grade_video
from ringworld.evaluate.vision import HeldOutVision, read_vision
from ringworld.evaluate.vision_figures import Drawn, draw, vision_figures, write_vision
from ringworld.mesh import MeshSpec, make_mesh
from ringworld.model.config import RopeConfig
from ringworld.model.init import init_params
from ringworld.model.llama import Params
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


class _Found(NamedTuple):
    """What came of it, under the weights before and after the stage; but for the losses, after it alone."""

    before: _Losses
    after: _Losses
    cells: list[Cell]
    video: list[VideoCell]
    asked: list[Asked]
    results: list[Result]
    not_asked: str


@dataclass(frozen=True, eq=False)
class _Given:
    """What is put before the model. questions, places: the needle's prompts as rows, and where each stands in them.

    refused: lengths that no prompt could be made for, and why.
    """

    tokenizer: Tokenizer
    text: Rows
    prompts: Sequence[Prompt]
    refused: dict[int, str]
    questions: Rows
    places: Sequence[tuple[int, int]]
    context: HeldOutContext | None
    tasks: Planned | None
    chat: HeldOutChat | None
    vision: HeldOutVision | None

    @classmethod
    def read(cls, job: EvaluateJob) -> _Given:
        """UserError where the tokenizer is not the token store's."""
        recipe, inputs = job.recipe, job.inputs
        store, tokenizer = TokenStore.open(inputs.tokens), load_tokenizer(inputs.tokenizer)
        check_same(store.info.tokenizer_hash, tokenizer.hash, f"evaluation of {inputs.tokens}")
        text = windows(store, recipe.sequence, recipe.rows)
        prompts, refused = needle_prompts(recipe.needle, store, tokenizer, recipe.seed)
        asked = [prompt.answer for prompt in prompts]
        questions, places = pack_prompts([prompt.tokens for prompt in prompts], recipe.sequence, asked)
        context, tasks = read_context(recipe.context, store, recipe.sequence), plan_tasks(job, store, tokenizer)
        chat, vision = read_chat(job, tokenizer), read_vision(job, tokenizer)
        return cls(tokenizer, text, prompts, refused, questions, places, context, tasks, chat, vision)

    @property
    def talks(self) -> Mapping[str, Talks]:
        return self.chat.talks if self.chat else {}

    @property
    def seen(self) -> Mapping[str, Examples]:
        return self.vision.corpora if self.vision else {}

    @property
    def chosen(self) -> list[Answer]:
        """Questions that are asked."""
        return [*(self.chat.chosen if self.chat else ()), *(self.vision.chosen if self.vision else ())]

    def work(self, scorer: Scorer) -> int:
        """Units of progress: batches that are scored, questions and cells that are asked."""
        corpora = [found.rows for found in (*self.talks.values(), *self.seen.values())]
        twice = [self.text, *(self.context.rows if self.context else ()), *corpora]
        once = [self.questions, *([self.vision.needle.rows] if self.vision else [])]
        batches = sum(scorer.batches(len(rows.tokens)) for rows in (*twice, *twice, *once))
        return batches + len(self.chosen) + (len(self.tasks.cells) if self.tasks else 0)


def _evaluate(job: EvaluateJob, mesh: jax.sharding.Mesh, vigil: Vigil) -> dict[str, Any]:
    recipe, inputs = job.recipe, job.inputs
    check(recipe.model, mesh.shape)
    given = _Given.read(job)
    choices = given.vision.needle.choices.ids.shape[1:] if given.vision else (0, 0)
    scorer = Scorer(recipe.model, mesh, recipe.dtype, job.options.loss_chunk, choices)
    progress = Progress(inputs.output, given.work(scorer), vigil)
    before = _losses(job, given, scorer, weights_before(job, mesh), recipe.before_rope or recipe.model.rope, progress)
    params = load_weights(inputs.after, recipe.model, mesh)
    after = _losses(job, given, scorer, params, recipe.model.rope, progress)
    cells, video = _retrieved(job, given, scorer, params, progress)
    found = _Found(before, after, cells, video, *_answered(job, given, params, mesh, vigil, progress))
    drawn = draw(given.vision, job, params, mesh, given.tokenizer, vigil.beat) if given.vision else None
    figures = _figures(job, given, found, drawn)
    if jax.process_index() == 0:
        _write(job, given, found, drawn, figures)
    return figures


def _losses(
    job: EvaluateJob, given: _Given, scorer: Scorer, params: Params, rope: RopeConfig, progress: Progress
) -> _Losses:
    def of(rows: Rows) -> Scores:
        return scorer.score(params, rope, rows, progress.advance)

    first_seen = job.recipe.model.vocabulary
    return _Losses(
        summarize(of(given.text).loss, given.text.segments, job.recipe.past),
        score_context(given.context, lambda rows: of(rows).loss) if given.context else None,
        {corpus: score_talks(found, *of(found.rows)[:2]) for corpus, found in given.talks.items()},
        {corpus: seen_loss(found, of(found.rows).loss, first_seen) for corpus, found in given.seen.items()},
    )


def _retrieved(
    job: EvaluateJob, given: _Given, scorer: Scorer, params: Params, progress: Progress
) -> tuple[list[Cell], list[VideoCell]]:
    """The cells of the needle's grid and of the video needle's."""
    rope = job.recipe.model.rope
    cells: list[Cell] = []
    if given.prompts:
        scores = scorer.score(params, rope, given.questions, progress.advance)
        cells = grade(given.prompts, given.places, scores.hit)
    if given.vision is None or not given.vision.needle.prompts:
        return cells, []
    needle = given.vision.needle
    scores = scorer.score(params, rope, needle.rows, progress.advance, needle.choices)
    return cells, grade_video(needle.prompts, needle.places, scores.hit, scores.chosen)


def _answered(
    job: EvaluateJob, given: _Given, params: Params, mesh: jax.sharding.Mesh, vigil: Vigil, progress: Progress
) -> tuple[list[Asked], list[Result], str]:
    """Replies to questions, cells of tasks, and why no tasks were asked, where there was a reason.

    One sampler for both: it holds a copy of the weights, and is given back before pictures are drawn.
    """
    recipe, chosen, tasks = job.recipe, given.chosen, given.tasks
    rooms = [room_for(chosen), tasks.room if tasks else Room(0, 0)]
    if not any(room.prompts for room in rooms):
        return [], [], ""
    room = Room(*(max(sizes) for sizes in zip(*rooms, strict=True)))
    sampler = open_sampler(recipe.model, params, mesh, recipe.dtype, given.tokenizer, room, job.options.slots)
    asked = ask(sampler, chosen, vigil.beat, progress.advance)
    if tasks is None:
        return asked, [], ""
    answerer = EngineAnswerer(sampler, vigil.beat)
    return asked, *ask_tasks(tasks, job.inputs.output, lambda: answerer, progress.advance)


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


def _figures(job: EvaluateJob, given: _Given, found: _Found, drawn: Drawn | None) -> dict[str, Any]:
    before, after, cells = found.before.text, found.after.text, found.cells
    figures: dict[str, Any] = {
        "sequence": job.recipe.sequence,
        "past": job.recipe.past,
        "theta": job.recipe.model.rope.theta,
        "rows": len(given.text.tokens),
        "loss_before": before.mean,
        "loss_after": after.mean,
        "loss_past_before": before.mean_past,
        "loss_past_after": after.mean_past,
        "loss_by_position": {"edges": list(after.edges), "before": list(before.spans), "after": list(after.spans)},
        "needle_exact": float(np.mean([cell.exact for cell in cells])) if cells else None,
        "needle_digits": float(np.mean([cell.digits for cell in cells])) if cells else None,
        "needle_cells": [asdict(cell) for cell in cells],
        "needle_refused": {str(length): reason for length, reason in given.refused.items()},
    }
    in_chat = len(given.chat.chosen) if given.chat else 0
    if given.context and found.before.context and found.after.context:
        figures |= context_figures(given.context, found.before.context, found.after.context)
    if given.tasks:
        figures |= tasks_figures(given.tasks, found.results, found.not_asked)
    if given.chat:
        figures["chat"] = chat_figures(given.chat, found.before.answers, found.after.answers, found.asked[:in_chat])
    if given.vision and drawn:
        figures["vision"] = vision_figures(
            given.vision, found.before.seen, found.after.seen, found.video, found.asked[in_chat:], drawn
        )
    return figures


def _write(job: EvaluateJob, given: _Given, found: _Found, drawn: Drawn | None, figures: dict[str, Any]) -> None:
    """Pictures, transcripts and records; evaluation.json last."""
    output = job.inputs.output
    draw_loss_by_position(join(output, "loss_by_position.png"), found.before.text, found.after.text, job.recipe.past)
    if found.cells:
        draw_needle(join(output, "needle.png"), found.cells)
    if figures.get("loss_given_context"):
        draw_loss_given_context(join(output, "loss_given_context.png"), figures["loss_given_context"])
    if given.tasks and found.results:
        write_tasks(given.tasks, output, found.results)
    if given.talks:
        draw_answers(join(output, "answers.png"), figures["chat"]["corpora"])
    if given.vision and drawn:
        write_vision(output, given.vision, found.video, drawn)
    if given.chat or found.asked:
        transcripts.write(output, found.asked, given.chat.not_asked if given.chat else "")
    prompts = [{"length": p.length, "depth": p.depth, "city": p.city, "number": p.number} for p in given.prompts]
    write_json(join(output, "evaluation.json"), {**figures, "needle_prompts": prompts})
