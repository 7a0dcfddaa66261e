"""A training stage: the trainer on a gang of hosts, from the weights of another stage (or none) to weights of its own.

Inputs: `plan` (a packing plan), `tokens` (the corpus), `vision` (examples with pictures, where the plan is of both),
`params` (the stage to start from, when the recipe says so).
Output: `params/`, the weights; `progress.jsonl`, every step that led to them; `job.yaml`, what the trainer was told;
`steps.json`, the shape of every step and what was drawn of each part of the plan; `expected.json`, what a step was
planned to take, and the memory that it took.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from infra.stage import Result, StageContext
from ringworld.data.files import absolute, copy_file, join, read_json, size_of
from ringworld.model.llama import count_parameters
from ringworld.strict import from_mapping
from ringworld.train.progress import Record, read_progress
from ringworld.train.recipe import TrainInputs, TrainJob, TrainOptions, TrainRecipe
from stages.process import newest_checkpoint, run_module, written

CODE_VERSION = 1


def run(context: StageContext, recipe: TrainRecipe) -> Result:
    """Train; the state folder makes every attempt go on where the one before was last durable."""
    given = dict(context.stage.placement.options)
    given.setdefault("compilation_cache", join(context.state_dir, "compiled"))
    parent = context.inputs.get("params")
    # Absolute here, where the person is: the trainer's own folder is another.
    base = absolute(recipe.init_folder) if recipe.init_folder else None
    job = TrainJob(
        recipe=recipe,
        inputs=TrainInputs(
            plan=context.inputs["plan"].path("plan.parquet"),
            tokens=context.inputs["tokens"].path("tokens"),
            output=context.attempt_dir,
            params=parent.path("params") if parent else base,
            vision=context.inputs["vision"].path("tokens") if "vision" in context.inputs else None,
        ),
        options=from_mapping(TrainOptions, given, at="placement.options"),
    )
    job.save(join(context.attempt_dir, "job.yaml"))
    progress = join(context.state_dir, "progress.jsonl")
    follower = _Follower(context, recipe, progress)
    run_module(
        context,
        "ringworld.train",
        ["--recipe", join(context.attempt_dir, "job.yaml"), "--state", context.state_dir],
        watch=follower.look,
        newest_step=lambda: newest_checkpoint(context.state_dir),
    )
    copy_file(progress, join(context.attempt_dir, "progress.jsonl"))
    files = written(context.attempt_dir, "params", "progress.jsonl", "job.yaml", "steps.json", "expected.json")
    steps, expected = (read_json(join(context.attempt_dir, name)) for name in ("steps.json", "expected.json"))
    drawn = {"shapes": steps["shapes"], "drawn": steps["corpora"]}
    return Result(files, _figures(recipe, read_progress(progress)) | drawn | _planned(expected))


class _Follower:
    """Reports the newest record of progress.jsonl, reading it only when it has grown or shrunk since the last look."""

    def __init__(self, context: StageContext, recipe: TrainRecipe, path: str) -> None:
        self._context, self._recipe, self._path, self._size = context, recipe, path, -1

    def look(self) -> None:
        size = size_of(self._path)
        if size is None or size == self._size:
            return
        self._size = size
        records = read_progress(self._path)
        if records:
            newest = records[-1]
            self._context.report(
                step=newest.step,
                of=self._recipe.steps,
                loss=newest.loss,
                tokens_per_second=_typical(records, "tokens_per_second"),
                note="",
            )


def _typical(records: list[Record], name: str) -> float:
    """The median of a figure over the last 20 steps: the first step holds the compilation, and machines hiccup."""
    return statistics.median(getattr(record, name) for record in records[-20:])


def _figures(recipe: TrainRecipe, records: list[Record]) -> dict[str, Any]:
    last = records[-max(1, len(records) // 20) :]
    return {
        "sequence": recipe.sequence,
        "steps": recipe.steps,
        "tokens": records[-1].tokens,
        "final_loss": statistics.fmean(record.loss for record in last),
        "tokens_per_second": statistics.median(record.tokens_per_second for record in records),
        "seconds_per_step": statistics.median(record.seconds for record in records),
        "mfu": statistics.median(record.mfu for record in records),
        "data_wait": round(_waited(records[1:] or records), 6),
        "data_wait_worst": round(max(_waited([record]) for record in records[1:] or records), 6),
        "parameters": count_parameters(recipe.model),
        "rope_theta": recipe.model.rope.theta,
    }


def _planned(expected: dict[str, Any]) -> dict[str, float | None]:
    """What `expected.json` says, under the names of the figures that it is compared with."""
    return {
        "planned_seconds_per_step": expected["seconds"],
        "planned_mfu": expected["mfu"],
        "planned_bytes": expected["bytes"],
        "peak_bytes": expected["peak_bytes"],
    }


def _waited(records: Sequence[Record]) -> float:
    """The share of these steps' time in which the trainer waited for their batches."""
    return sum(record.data_wait for record in records) / max(1e-9, sum(record.seconds for record in records))
