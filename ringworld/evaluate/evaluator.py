"""One evaluation: score held-out rows, needle prompts and conversations under the weights before and after a stage,
ask questions, write what was found.

Writes `evaluation.json` (every figure, every prompt's answer key), `loss_by_position.png` and `needle.png` into the
output folder, of a chat stage also `questions.jsonl` (every question and answer), `transcript.md` (a few of them, to
read) and `answers.png`, and `progress.json` while it runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import jax
import numpy as np

from ringworld.data.loader import Loader
from ringworld.data.packing import evaluation_rows
from ringworld.data.token_store import TokenStore
from ringworld.data.tokenizers import Tokenizer, check_same, load_tokenizer
from ringworld.errors import UserError
from ringworld.evaluate.answers import Scores, score_talks
from ringworld.evaluate.asking import Asked, ask, open_sampler
from ringworld.evaluate.chat import chat_figures, read_chat
from ringworld.evaluate.loss_by_position import PositionLoss, summarize
from ringworld.evaluate.needle import Cell, Prompt, grade, make_prompts, pack_prompts
from ringworld.evaluate.pictures import draw_answers, draw_loss_by_position, draw_needle
from ringworld.evaluate.recipe import EvaluateJob
from ringworld.evaluate.scorer import Rows, Scorer
from ringworld.evaluate.transcripts import as_markdown, as_value, pick
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


def _evaluate(job: EvaluateJob, mesh: jax.sharding.Mesh, vigil: Vigil) -> dict[str, Any]:
    recipe, inputs = job.recipe, job.inputs
    check(recipe.model, mesh.shape)
    store, tokenizer = TokenStore.open(inputs.tokens), load_tokenizer(inputs.tokenizer)
    check_same(store.info.tokenizer_hash, tokenizer.hash, f"evaluation of {inputs.tokens}")
    scorer = Scorer(recipe.model, mesh, recipe.dtype, job.options.loss_chunk)

    documents = held_out_rows(store, recipe.sequence, recipe.rows)
    prompts, refused = needle_prompts(job, store, tokenizer)
    questions, places = pack_prompts(prompts, recipe.sequence)
    chat = read_chat(job, tokenizer)
    talks = chat.talks if chat else {}
    both = scorer.batches(len(documents.tokens)) + sum(
        scorer.batches(len(found.rows.tokens)) for found in talks.values()
    )
    asking = len(chat.chosen) if chat else 0
    progress = _Progress(inputs.output, 2 * both + scorer.batches(len(questions.tokens)) + asking, vigil)

    def scored(params: Params, rope: RopeConfig) -> tuple[PositionLoss, dict[str, Scores]]:
        loss, _ = scorer.score(params, rope, documents, progress.advance)
        answers = {
            corpus: score_talks(found, *scorer.score(params, rope, found.rows, progress.advance))
            for corpus, found in talks.items()
        }
        return summarize(loss, documents.segments, recipe.past), answers

    before, answers_before = scored(weights_before(job, mesh), recipe.before_rope or recipe.model.rope)
    params = load_weights(inputs.after, recipe.model, mesh)
    after, answers_after = scored(params, recipe.model.rope)
    cells: list[Cell] = []
    if prompts:
        _, hit = scorer.score(params, recipe.model.rope, questions, progress.advance)
        cells = grade(prompts, places, hit)
    asked: list[Asked] = []
    if chat and chat.chosen:
        sampler = open_sampler(recipe.model, params, mesh, recipe.dtype, tokenizer, chat.chosen, job.options.slots)
        asked = ask(sampler, chat.chosen, vigil.beat, progress.advance)
    figures = _figures(job, before, after, cells, refused, len(documents.tokens))
    if chat:
        figures["chat"] = chat_figures(chat, answers_before, answers_after, asked)
    if jax.process_index() == 0:
        _write(job, figures, before, after, cells, prompts)
        if chat:
            _write_chat(inputs.output, figures["chat"], asked)
    return figures


def held_out_rows(store: TokenStore, sequence: int, count: int) -> Rows:
    """Up to `count` windows of held-out documents, as rows."""
    plan = evaluation_rows(store.index, "held_out", sequence, count)
    batch = Loader(store, plan, seed=0, rows_per_batch=plan.num_rows).batch(0)
    return Rows(batch.tokens, batch.targets, batch.segments, batch.positions)


def needle_prompts(job: EvaluateJob, store: TokenStore, tokenizer: Tokenizer) -> tuple[list[Prompt], dict[int, str]]:
    """The grid's prompts over the held-out documents in a row, and the lengths that cannot be asked."""
    need = max(job.recipe.needle.lengths) * 4
    pieces, have = [], 0
    for document in store.index.documents("held_out").tolist():
        length = int(store.index.tokens[document]) - 1  # without its end-of-document token
        pieces.append(store.read(document, 0, length))
        have += length
        if have >= need:
            break
    ends: dict[int, bool] = {}

    def ends_sentence(token: int) -> bool:
        if token not in ends:
            ends[token] = tokenizer.decode(np.array([token])).endswith((".", "\n", "!", "?"))
        return ends[token]

    haystack = np.concatenate(pieces) if pieces else np.zeros(0, np.int64)
    return make_prompts(job.recipe.needle, haystack, tokenizer.encode, ends_sentence, job.recipe.seed)


def weights_before(job: EvaluateJob, mesh: jax.sharding.Mesh) -> Params:
    """The weights that the stage started from; random ones, of the recipe's seed, for a stage from scratch."""
    if job.inputs.before is not None:
        return load_weights(job.inputs.before, job.recipe.model, mesh)
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


def _write(
    job: EvaluateJob,
    figures: dict[str, Any],
    before: PositionLoss,
    after: PositionLoss,
    cells: Sequence[Cell],
    prompts: Sequence[Prompt],
) -> None:
    output = job.inputs.output
    asked = [{"length": p.length, "depth": p.depth, "city": p.city, "number": p.number} for p in prompts]
    with open(os.path.join(output, "evaluation.json"), "w", encoding="utf-8") as file:
        json.dump({**figures, "needle_prompts": asked}, file, indent=1)
    draw_loss_by_position(os.path.join(output, "loss_by_position.png"), before, after, job.recipe.past)
    if cells:
        draw_needle(os.path.join(output, "needle.png"), cells)


def _write_chat(output: str, chat: Mapping[str, Any], asked: Sequence[Asked]) -> None:
    with open(os.path.join(output, "questions.jsonl"), "w", encoding="utf-8") as file:
        file.writelines(json.dumps(as_value(item)) + "\n" for item in asked)
    with open(os.path.join(output, "transcript.md"), "w", encoding="utf-8") as file:
        file.write(as_markdown(pick(asked), chat["not_asked"]))
    if chat["corpora"]:
        draw_answers(os.path.join(output, "answers.png"), chat["corpora"])


class _Progress:
    """progress.json: how many of how many batches and questions are done."""

    def __init__(self, output: str, total: int, vigil: Vigil) -> None:
        self._path, self._total, self._done, self._vigil = os.path.join(output, "progress.json"), total, 0, vigil

    def advance(self) -> None:
        self._done += 1
        self._vigil.beat()
        if jax.process_index() == 0:
            with open(self._path + ".new", "w", encoding="utf-8") as file:
                json.dump({"step": self._done, "of": self._total}, file)
            os.replace(self._path + ".new", self._path)
