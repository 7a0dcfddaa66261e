"""Meshes and memory rungs that fit a machine, the fastest first: every one is tried by the estimate.

What is tried: all products of the five axes that make the number of chips and that the trainer accepts, times the rungs
below. The rest of the options (chunks of the loss, checkpoints, microbatches, the optimizer's place) stays as given.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ringworld.errors import UserError
from ringworld.mesh import AXES, MeshSpec
from ringworld.model.memory import Memory
from ringworld.planning.estimate import TIGHT, Estimate, check_runs, estimate, fits
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
    """All that fit, by modelled time; among equals, the one with the most memory left. Those with room for the
    estimate's own error come before those without.

    Raises UserError on a machine whose chips nobody named, and where nothing fits (with what comes nearest).
    """
    if machine.chip is None:
        raise UserError("search=true needs to know the chips; give chip=, as in chip=H100")
    limit = machine.chip.hbm_bytes * TIGHT
    good: list[Choice] = []
    nearest: Choice | None = None
    for mesh in meshes(recipe, options, machine.chips):
        for memory in rungs(recipe, mesh):
            tried = replace(options, memory=memory)
            try:
                check_runs(recipe, tried, mesh)
            except UserError:
                continue  # these rungs do not divide what this mesh leaves on a chip
            choice = Choice(mesh, tried, estimate(recipe, tried, str(mesh), machine, attention_pairs, efficiency))
            if fits(choice.found, machine):
                good.append(choice)
            if nearest is None or choice.found.memory.total < nearest.found.memory.total:
                nearest = choice
    if nearest is None:
        raise UserError(
            f"no mesh of {machine.chips} chips divides this model and {recipe.rows} rows of {recipe.sequence} tokens; "
            f"use a number of chips that divides into its heads, rows and sequence"
        )
    if not good:
        gib = nearest.found.memory.total / 2**30
        raise UserError(
            f"no mesh of {machine.chips} {machine.chip.name} chips holds it: the smallest, {nearest.mesh} with "
            f"{nearest.options.memory}, needs {gib:.1f} of {machine.chip.hbm_bytes / 2**30:.1f} GiB; use more chips, "
            f"or fewer batch_tokens"
        )
    return sorted(
        good,
        key=lambda choice: (choice.found.memory.total > limit, round(_seconds(choice), 4), choice.found.memory.total),
    )


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


def rungs(recipe: TrainRecipe, mesh: MeshSpec) -> Iterator[Memory]:
    """Memory ladders worth trying on a mesh."""
    tokens = recipe.batch_tokens // (mesh.data * mesh.fsdp * mesh.tensor * mesh.ulysses * mesh.ring)
    yield Memory(chunk=_CHUNK if tokens > _CHUNK else 0)
    for remat, every, offload, groups in itertools.product(_REMAT, _EVERY, _OFFLOAD, _HEAD_GROUPS):
        if recipe.model.num_layers % every == 0:
            yield Memory(remat, every, offload, _CHUNK if tokens > _CHUNK else 0, groups)


def _seconds(choice: Choice) -> float:
    assert choice.found.time is not None
    return choice.found.time.seconds


def _products(whole: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All tuples of so many factors whose product is `whole`."""
    if parts == 1:
        yield (whole,)
        return
    for first in (n for n in range(1, whole + 1) if whole % n == 0):
        for rest in _products(whole // first, parts - 1):
            yield (first, *rest)
