"""The tasks of an evaluation stage: which are asked of its weights, and what is told of them.

Needles for documents are hidden in what the run holds out. Everything lies in `tasks/` beside the evaluation's other
files, as `grid.py` writes it, so an attempt that is started again asks only what is missing. Of several processes each
asks the same, and the first one keeps the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ringworld.data.files import join, write_json
from ringworld.data.templates import source_of
from ringworld.data.token_store import TokenStore
from ringworld.data.tokenizers import Tokenizer
from ringworld.errors import UserError
from ringworld.evaluate.answers import ends_of
from ringworld.evaluate.asking import Room
from ringworld.evaluate.recipe import EvaluateJob, TasksConfig
from ringworld.evaluate.tasks.answerers import Answerer
from ringworld.evaluate.tasks.grid import Cell, Grid, Result, Settings, cells_of
from ringworld.evaluate.tasks.haystack import Haystack, held_out_documents, make_haystack
from ringworld.evaluate.tasks.names import IN_DOCUMENTS, names_of
from ringworld.evaluate.tasks.prompting import ModelPrompting, prompting_of
from ringworld.evaluate.tasks.registry import tasks_of
from ringworld.evaluate.tasks.report import draw, summarize
from ringworld.evaluate.tasks.task import Task
from ringworld.generate.checkpoint import Checkpoint
from ringworld.model.rope import make_rope

FOLDER = "tasks"
_HAYSTACK_LENGTHS = 4  # so many times the longest prompt is read of the held-out documents, where there is as much


@dataclass(frozen=True, eq=False)
class Planned:
    """What is to be asked. left_out: of each task that cannot be asked at all, why."""

    config: TasksConfig
    tasks: Mapping[str, Task]
    cells: tuple[Cell, ...]
    prompting: ModelPrompting
    settings: Settings
    left_out: Mapping[str, str]

    @property
    def room(self) -> Room:
        """What a sampler must hold for these."""
        return Room(max((cell.length for cell in self.cells), default=0), len(self.cells) * self.config.count)


def plan_tasks(job: EvaluateJob, store: TokenStore, tokenizer: Tokenizer) -> Planned | None:
    """None for a recipe without tasks."""
    config = job.recipe.tasks
    if config is None:
        return None
    prompting = prompting_of(_checkpoint(job, tokenizer), config.chat)
    names, left_out = names_of(config.names, documents=True, questions=False), {}
    haystack: Haystack | None = None
    if set(names) & set(IN_DOCUMENTS):
        try:
            documents = held_out_documents(store, tokenizer, _HAYSTACK_LENGTHS * max(config.lengths))
            haystack = make_haystack(documents, prompting.count)
        except UserError as none:  # for needles in documents; all other tasks are still asked
            left_out = {name: str(none) for name in names if name in IN_DOCUMENTS}
    tasks = tasks_of([name for name in names if name not in left_out], haystack, [])
    settings = Settings(
        model=job.inputs.after, tokenizer=tokenizer.hash, haystack=haystack.sha256 if haystack else "", questions="",
        count=config.count, seed=job.recipe.seed, chat="own" if config.chat else "",
    )  # fmt: skip
    cells = cells_of(tasks, config.lengths, config.depths)
    return Planned(config, {task.name: task for task in tasks}, tuple(cells), prompting, settings, left_out)


def ask_tasks(
    planned: Planned, output: str, answerer: Callable[[], Answerer], on_cell: Callable[[], None]
) -> tuple[list[Result], str]:
    """The results, which lie in a folder of `output` now, and why there are none: what the model said is no number.

    Of several processes the first one has the results of all cells, the others of those that were asked now.
    """
    if not planned.cells:
        return [], ""
    first = jax.process_index() == 0
    grid = Grid(join(output, FOLDER) if first else None, planned.settings)
    cells = planned.cells
    if jax.process_count() > 1:
        # What lies in the folder changes while it is looked at: the first one's look counts.
        kept = multihost_utils.broadcast_one_to_all(np.array([grid.has(cell) for cell in cells]))
        cells = cells if first else tuple(cell for cell, done in zip(cells, kept, strict=True) if not done)
    try:
        results = grid.answer(cells, planned.tasks, planned.prompting, answerer, lambda _: on_cell())
    except UserError as broken:  # of the weights; the losses of such a model are still told
        return [], str(broken)
    return results, ""


def tasks_figures(planned: Planned, results: list[Result], not_asked: str) -> dict[str, Any]:
    """Plain JSON values, in percent. tasks_mean: over lengths of the means over tasks, as RULER's table has it; None
    where nothing was asked. What each cell came to is in the folder's summary alone."""
    summary = summarize(results, planned.config.threshold)
    del summary["cells"]
    means = list(summary["mean"].values())
    summary["refused"] = {**planned.left_out, **summary["refused"]}
    return {
        "tasks": {**summary, "not_asked": not_asked},
        "tasks_mean": float(np.mean(means)) if means else None,
        "effective_length": summary["effective_length"] if means else None,
    }


def write_tasks(planned: Planned, output: str, results: list[Result]) -> None:
    """The summary and the picture beside the cells."""
    folder = join(output, FOLDER)
    summary = summarize(results, planned.config.threshold)
    write_json(join(folder, "summary.json"), {**summary, "settings": planned.settings.mapping()})
    draw(join(folder, "needles.png"), results)


def _checkpoint(job: EvaluateJob, tokenizer: Tokenizer) -> Checkpoint:
    """The stage's weights as the sampler's commands see them, so that its prompts are theirs."""
    recipe = job.recipe
    return Checkpoint(
        name="",
        config=recipe.model,
        rope=make_rope(recipe.model.rope, recipe.model.head_dim),
        weights=job.inputs.after,
        context=recipe.sequence,
        dtype=recipe.dtype,
        tokenizer=tokenizer,
        begin=None,  # as in `ringworld.generate.checkpoint`
        stop_ids=ends_of(tokenizer),
        template=source_of(tokenizer),
    )
