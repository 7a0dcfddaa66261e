"""A stage on a machine, estimated: the memory of a chip, of a host, and the seconds of a step, in one value."""

from __future__ import annotations

from dataclasses import dataclass

from ringworld.errors import UserError
from ringworld.mesh import MeshSpec, parse_mesh
from ringworld.model.sharding import check, check_memory
from ringworld.planning.hardware import GIB, Machine
from ringworld.planning.memory import LARGEST_ARRAY, ChipMemory, chip_memory, largest_array
from ringworld.planning.roofline import Efficiency, StepTime, step_time
from ringworld.planning.shapes import shapes_of
from ringworld.train.flops import training_flops
from ringworld.train.recipe import TrainOptions, TrainRecipe
from ringworld.train.step import check_batch

# The estimate's own error: a stage that needs more than this share of a chip may or may not fit.
TIGHT = 0.85


@dataclass(frozen=True)
class Estimate:
    """What a stage needs. time and mfu are None on a machine whose chips nobody named.

    flops: operations of a step that the mathematics needs, over all chips. notes: what a person must know.
    """

    mesh: MeshSpec
    memory: ChipMemory
    host_bytes: float
    time: StepTime | None
    flops: float
    mfu: float | None
    notes: tuple[str, ...]


def estimate(
    recipe: TrainRecipe,
    options: TrainOptions,
    mesh: str,
    machine: Machine,
    attention_pairs: float,
    efficiency: Efficiency,
) -> Estimate:
    """The estimate for a mesh, in which one axis may be -1. Raises UserError, as the trainer does, where it cannot
    run; attention_pairs are those of a whole batch."""
    spec = parse_mesh(mesh).resolved(machine.chips)
    check_runs(recipe, options, spec)
    sizes = spec.sizes()
    shapes = shapes_of(recipe, options, sizes)
    memory = chip_memory(shapes, options, sizes["ring"])
    flops = training_flops(recipe.model, recipe.batch_tokens, int(attention_pairs))
    chip, notes = machine.chip, []
    time = mfu = None
    if chip is not None:
        time = step_time(recipe, options, shapes, sizes, machine, chip, attention_pairs, efficiency)
        peak = chip.flops(recipe.dtype)
        mfu = flops / time.seconds / (peak * machine.chips)
    largest = largest_array(shapes, options)
    if machine.topology is not None and largest >= LARGEST_ARRAY:
        notes.append(
            f"{shapes.tokens:,} tokens a chip make an array of {largest:,} elements, past the 2^31 = {LARGEST_ARRAY:,} "
            f"that the TPU compiler can address; use more ring, ulysses or tensor, chunk or head_groups"
        )
    return Estimate(spec, memory, memory.host * machine.chips_per_host, time, flops, mfu, tuple(notes))


def check_runs(recipe: TrainRecipe, options: TrainOptions, spec: MeshSpec) -> None:
    """UserError where the trainer would refuse this mesh or these options."""
    sizes = spec.sizes()
    check(recipe.model, sizes)
    check_memory(recipe.model, options.memory, sizes)
    if options.microbatch_rows and recipe.rows % options.microbatch_rows:
        raise UserError(f"options.microbatch_rows={options.microbatch_rows} does not divide {recipe.rows} rows a batch")
    check_batch(recipe, options, sizes)


def misfit(found: Estimate, machine: Machine, peak: float | None = None, host_bytes: float | None = None) -> str | None:
    """Why a stage does not fit its chips and hosts, for people; None where it does, or where nothing is known of them.

    peak and host_bytes: the compiler's figures in place of the estimate's.
    """
    if machine.chip is None:
        return None
    needed = found.memory.total if peak is None else peak
    if needed > machine.chip.hbm_bytes:
        return f"a chip needs {gib(needed)} of {gib(machine.chip.hbm_bytes)} GiB"
    on_host = found.host_bytes if host_bytes is None else host_bytes
    if machine.host_bytes is not None and on_host > machine.host_bytes:
        return f"a host needs {gib(on_host)} of {gib(machine.host_bytes)} GiB"
    if peak is None:
        return next((note for note in found.notes if "2^31" in note), None)
    return None


def gib(size: float) -> str:
    """Bytes as GiB, for people."""
    return f"{size / GIB:.2f}"
