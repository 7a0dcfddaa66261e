"""Meshes and memory rungs that fit a machine, the fastest first: every one is tried by the estimate.

What is tried: all products of the five axes that make the number of chips and that the trainer accepts, times the rungs
below, and microbatches where nothing fits without. The rest of the options stays as given.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ringworld.errors import UserError
from ringworld.mesh import AXES, MeshSpec
from ringworld.model.memory import Memory
from ringworld.planning.estimate import TIGHT, Estimate, check_runs, estimate, misfit
from ringworld.planning.hardware import Machine
from ringworld.planning.roofline import Efficiency
from ringworld.train.recipe import TrainOptions, TrainRecipe

_REMAT = ("attention", "layer")
_EVERY = (1, 2, 4, 8)
_OFFLOAD = (0.0, 0.5, 1.0)
_CHUNK = 2048  # tokens of a chip: enough for the matrix units, and little memory
_HEAD_GROUPS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Choice:
    """A mesh and rungs with what they are estimated to need."""

    mesh: MeshSpec
    options: TrainOptions
    found: Estimate


def choices(
    recipe: TrainRecipe, options: TrainOptions, machine: Machine, attention_pairs: float, efficiency: Efficiency
) -> list[Choice]:
    """All that fit, best first: with room for the estimate's own error, then by modelled time, then the plainest.

    Rows are taken in microbatches only where nothing fits without. Raises UserError on a machine whose chips nobody
    named, and where nothing fits (with what comes nearest, and why).
    """
    if machine.chip is None:
        raise UserError("search=true needs to know the chips; give placement.accelerator=, as in H100")
    limit = machine.chip.hbm_bytes * TIGHT
    nearest: Choice | None = None
    for rows in _halvings(options.microbatch_rows or recipe.rows):
        at_once = replace(options, microbatch_rows=0 if rows == recipe.rows else rows)
        good: list[Choice] = []
        for choice in _tried(recipe, at_once, machine, attention_pairs, efficiency):
            if misfit(choice.found, machine) is None:
                good.append(choice)
            if nearest is None or choice.found.memory.total < nearest.found.memory.total:
                nearest = choice
        if good:
            return sorted(good, key=lambda choice: (choice.found.memory.total > limit, *_merit(choice)))
    if nearest is None:
        raise UserError(
            f"no mesh of {machine.chips} chips divides this model and {recipe.rows} rows of {recipe.sequence} tokens; "
            f"use a number of chips that divides into its heads, rows and sequence"
        )
    raise UserError(
        f"no mesh of {machine.chips} {machine.chip.name} chips holds it. The smallest is {nearest.mesh} with "
        f"{nearest.options.memory}: {misfit(nearest.found, machine)}. Use more chips, or fewer batch_tokens"
    )


def _tried(
    recipe: TrainRecipe, options: TrainOptions, machine: Machine, attention_pairs: float, efficiency: Efficiency
) -> Iterator[Choice]:
    for mesh in meshes(recipe, options, machine.chips):
        for memory in rungs(recipe, options, mesh):
            tried = replace(options, memory=memory)
            try:
                check_runs(recipe, tried, mesh)
            except UserError:
                continue  # these rungs do not divide what this mesh leaves on a chip
            yield Choice(mesh, tried, estimate(recipe, tried, str(mesh), machine, attention_pairs, efficiency))


def _halvings(rows: int) -> list[int]:
    found = [rows]
    while found[-1] % 2 == 0:
        found.append(found[-1] // 2)
    return found


def _merit(choice: Choice) -> tuple[object, ...]:
    """Lower is better: times within a hundredth are equal, then fewer rungs, then less memory."""
    assert choice.found.time is not None
    memory, mesh = choice.options.memory, choice.mesh
    plain = memory.offload, memory.every, memory.head_groups, mesh.ulysses, mesh.ring, mesh.tensor
    return round(100 * math.log(choice.found.time.seconds)), *plain, choice.found.memory.total


def meshes(recipe: TrainRecipe, options: TrainOptions, chips: int) -> Iterator[MeshSpec]:
    """All meshes of so many chips that hold the model and divide the batch."""
    plain = replace(options, memory=Memory())
    for sizes in _products(chips, len(AXES)):
        spec = MeshSpec(*sizes)
        try:
            check_runs(recipe, plain, spec)
        except UserError:
            continue
        yield spec


def rungs(recipe: TrainRecipe, options: TrainOptions, mesh: MeshSpec) -> Iterator[Memory]:
    """Memory ladders worth trying on a mesh."""
    tokens = (options.microbatch_rows or recipe.rows) * recipe.sequence // math.prod(mesh.sizes().values())
    chunk = _CHUNK if tokens > _CHUNK else 0
    yield Memory()
    if chunk:
        yield Memory(chunk=chunk)
    for remat, every, offload, groups in itertools.product(_REMAT, _EVERY, _OFFLOAD, _HEAD_GROUPS):
        if recipe.model.num_layers % every == 0:
            yield Memory(remat, every, offload, chunk, groups)


def _products(whole: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All tuples of so many factors whose product is `whole`."""
    if parts == 1:
        yield (whole,)
        return
    for first in (n for n in range(1, whole + 1) if whole % n == 0):
        for rest in _products(whole // first, parts - 1):
            yield (first, *rest)
