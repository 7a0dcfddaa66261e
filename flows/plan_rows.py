"""One row of a plan: a training stage on its machines, as values: estimated, searched for, compiled. Prints nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from flows.arguments import PlanArguments
from infra.manifest import load
from infra.placement import Placement
from infra.stage import Stage
from infra.storage import Store
from ringworld.data.files import join
from ringworld.data.plan import PackingPlan
from ringworld.errors import UserError
from ringworld.planning import aot
from ringworld.planning.estimate import Estimate, estimate, misfit
from ringworld.planning.hardware import Chip, Machine, cpu_machine, gpu_machine, tpu_machine
from ringworld.planning.processor import measured_processor
from ringworld.planning.roofline import Efficiency
from ringworld.planning.search import choices
from ringworld.strict import from_mapping
from ringworld.train.recipe import TrainOptions, TrainRecipe

# With aot=true a proposal that the compiler refuses gives way to the next one, so many times.
_PROPOSALS = 6


@dataclass(frozen=True)
class Attention:
    """Query-key pairs of a step that the mask lets through, and where the figure comes from."""

    pairs: float
    source: Literal["packing plan", "one document a row"]


@dataclass(frozen=True)
class Row:
    """A stage as planned: on which mesh, with which options, and what that needs.

    options: the trainer's, with rungs from the placement or from the search. compiled: the compiler's answer, if asked.
    """

    stage: str
    recipe: TrainRecipe
    options: TrainOptions
    machine: Machine
    attention: Attention
    found: Estimate
    compiled: aot.Compiled | None = None

    @property
    def peak(self) -> float:
        """Bytes of one chip at its fullest: the compiler's figure where there is one."""
        known = self.compiled is not None and self.compiled.peak is not None
        return self.compiled.peak if known else self.found.memory.total  # type: ignore[union-attr, return-value]

    @property
    def host_bytes(self) -> float:
        """Of one host's memory, likewise."""
        if self.compiled is not None and self.compiled.host is not None:
            return self.compiled.host * self.machine.chips_per_host
        return self.found.host_bytes

    @property
    def misfit(self) -> str | None:
        """Why it does not fit, for people; None where it does, or where nobody can say."""
        answer = self.compiled
        if answer is None:
            return misfit(self.found, self.machine)
        if answer.outcome not in ("fits", "oom"):
            return None
        return misfit(self.found, self.machine, self.peak, self.host_bytes) or (answer.message or None)

    @property
    def fits(self) -> bool | None:
        """None: nothing is known of the chips, or the compiler gave no answer."""
        if self.machine.chip is None or (self.compiled and self.compiled.outcome not in ("fits", "oom")):
            return None
        return self.misfit is None

    @property
    def hours(self) -> float | None:
        """Of the whole stage."""
        return None if self.found.time is None else self.found.time.seconds * self.recipe.steps / 3600

    @property
    def tokens_a_day(self) -> float | None:
        return None if self.found.time is None else self.recipe.batch_tokens / self.found.time.seconds * 86400

    @property
    def job(self) -> aot.CompileJob:
        """What to ask the compiler."""
        return aot.CompileJob(self.recipe, self.options, str(self.found.mesh), self.machine.topology)

    def to_json(self, price: float | None) -> dict[str, object]:
        """Plain values: bytes, seconds, hours, fractions."""
        memory, time, hours = self.found.memory, self.found.time, self.hours
        chip_hours = None if hours is None else hours * self.machine.chips
        return {
            "stage": self.stage,
            "chip": self.machine.chip.name if self.machine.chip else None,
            "chips": self.machine.chips,
            "hosts": self.machine.hosts,
            "mesh": str(self.found.mesh),
            "memory_options": vars(self.options.memory),
            "optimizer_on": self.options.optimizer_on,
            "microbatch_rows": self.options.microbatch_rows,
            "chip_bytes": {**vars(memory), "total": memory.total},
            "chip_limit": self.machine.chip.hbm_bytes if self.machine.chip else None,
            "host_bytes": self.host_bytes,
            "host_limit": self.machine.host_bytes,
            "compiler": vars(self.compiled) if self.compiled else None,
            "fits": self.fits,
            "misfit": self.misfit,
            "flops_per_step": self.found.flops,
            "attention_pairs_per_step": self.attention.pairs,
            "attention_pairs_from": self.attention.source,
            "seconds_per_step": time.seconds if time else None,
            "seconds_by_phase": vars(time) if time else None,
            "mfu": self.found.mfu,
            "tokens_per_day": self.tokens_a_day,
            "steps": self.recipe.steps,
            "hours": hours,
            "chip_hours": chip_hours,
            "cost": None if chip_hours is None or price is None else chip_hours * price,
            "notes": list(self.found.notes),
        }


@dataclass(frozen=True)
class Planner:
    """Makes rows. store: of the run whose packing plans count."""

    arguments: PlanArguments
    store: Store

    @property
    def efficiency(self) -> Efficiency:
        return Efficiency(self.arguments.products, self.arguments.attention)

    def row(self, stage: Stage) -> Row:
        """A training stage as its placement says. Raises UserError, naming the stage, where that cannot run."""
        recipe, place = _recipe(stage), stage.placement
        try:
            options, machine = options_of(place), machine_of(place, recipe.dtype)
            pairs = attention_of(stage, self.store)
            found = estimate(recipe, options, place.mesh, machine, pairs.pairs, self.efficiency)
        except UserError as error:
            raise UserError(f"{stage.name}: {error}") from None
        return Row(stage.name, recipe, options, machine, pairs, found)

    def proposals(self, row: Row) -> list[Row]:
        """The same stage on the meshes and rungs that fit with the least time, best first.

        Between one and the next there is a tenth less memory: what the compiler refuses, it would refuse again at once.
        """
        found = choices(row.recipe, row.options, row.machine, row.attention.pairs, self.efficiency)
        kept = [found[0]]
        for choice in found:
            if choice.found.memory.total < 0.9 * kept[-1].found.memory.total:
                kept.append(choice)
        return [replace(row, options=choice.options, found=choice.found) for choice in kept[:_PROPOSALS]]


def compile_rows(rows: Sequence[Row], cache: Path, told: Callable[[str, aot.Compiled], None]) -> list[Row]:
    """The rows with the compiler's answers. told: called with a stage's name and its answer, from any thread."""
    if any(row.machine.topology is not None for row in rows):
        aot.require_compiler()
    names: dict[str, list[str]] = {}
    for row in rows:
        names.setdefault(aot.fingerprint(row.job), []).append(row.stage)

    def finished(job: aot.CompileJob, answer: aot.Compiled) -> None:
        told(names[aot.fingerprint(job)].pop(0), answer)

    jobs = [row.job for row in rows]
    answers = aot.compile_all(jobs, cache, finished=finished)
    return [replace(row, compiled=answer) for row, answer in zip(rows, answers, strict=True)]


def options_of(place: Placement) -> TrainOptions:
    """The trainer's options of a placement."""
    return from_mapping(TrainOptions, dict(place.options), at="placement.options")


def machine_of(place: Placement, dtype: str) -> Machine:
    """What a placement's words stand for; dtype: of the products, where a processor is measured.

    UserError where they name no machine that a plan can be made for.
    """
    memory = place.resources.get("memory")
    if place.kind == "tpu":
        chips = int(place.resources["TPU"])
        return tpu_machine(
            place.accelerator or "", place.topology or "", place.hosts, chips, place.slices, host_bytes=memory
        )
    if place.kind == "gpu":
        return gpu_machine(place.accelerator or "", place.hosts, int(place.resources["GPU"]), memory)
    return cpu_machine(place.hosts, measured=_processor(place.hosts, dtype))


@functools.cache
def _processor(devices: int, dtype: str) -> Chip:
    # Measured once: it takes a second, and all stages share the machine.
    return measured_processor(devices, dtype)


def attention_of(stage: Stage, store: Store) -> Attention:
    """Of a step: from the run's packing plan of this stage, else as if each row were one document."""
    recipe, packed = _recipe(stage), stage.inputs.get("plan")
    found = load(store, packed.name) if packed is not None else None
    if found is None or packed is None or found[0].fingerprint != packed.fingerprint:
        return Attention(recipe.rows * recipe.sequence * (recipe.sequence + 1) / 2, "one document a row")
    plan = PackingPlan.load(join(store.attempt_url(packed.name, found[0].attempt), "plan.parquet"))
    lengths = plan.length.astype(np.float64)
    slots = sum(corpus.rows * corpus.sequence for corpus in plan.corpora)
    return Attention(recipe.batch_tokens * float((lengths * (lengths + 1) / 2).sum()) / slots, "packing plan")


def _recipe(stage: Stage) -> TrainRecipe:
    assert isinstance(stage.recipe, TrainRecipe)
    return stage.recipe


def total(rows: Sequence[Row], value: Callable[[Row], float | None]) -> float | None:
    """The sum over rows; None where one is not known."""
    values = [value(row) for row in rows]
    return (
        None if any(found is None for found in values) else float(sum(found for found in values if found is not None))
    )


def summary(rows: Sequence[Row], price: float | None) -> Mapping[str, float | None]:
    """Of all stages one after another: hours, chip-hours and cost."""
    hours = total(rows, lambda row: row.hours)
    chip_hours = total(rows, lambda row: None if row.hours is None else row.hours * row.machine.chips)
    cost = None if chip_hours is None or price is None else chip_hours * price
    return {"hours": hours, "chip_hours": chip_hours, "cost": cost}
