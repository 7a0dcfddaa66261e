"""One state under several meshes: a training step for each shape of rows, none of which moves a weight.

Weights are split by the combined place of a chip on `fsdp`, `ring` and `ulysses` (`ringworld.model.layout`). A mesh
that splits the same chips otherwise between `fsdp` and `ring`, with each chip at the same combined place and on the
same rank of `data`, `tensor` and `ulysses`, therefore has the same piece of every weight on the same chip: a state
passes from one shape to another by being called another name.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ringworld.data.loader import Loader
from ringworld.data.shapes import Cost, Split, StepShapes, choose, refuse, splits
from ringworld.mesh import AXES
from ringworld.train.recipe import TrainOptions, TrainRecipe
from ringworld.train.sessions import SessionLog
from ringworld.train.step import Arrays, Metrics, State, TrainStep, check_batch


@dataclass(frozen=True, eq=False)
class ShapedSteps:
    """The steps of a job. steps: one for each shape, on a mesh of its own. plan: which shape each step has.

    splits: by shape, as a loader takes them: with balanced layouts, or without.
    """

    plan: StepShapes
    steps: tuple[TrainStep, ...]
    splits: tuple[Split, ...]

    def step_at(self, step: int) -> TrainStep:
        return self.steps[self.plan.of_step[step]]

    def split_at(self, step: int) -> Split:
        return self.splits[self.plan.of_step[step]]


class Programs:
    """The compiled step of every shape, compiled when its first step comes."""

    def __init__(self, shaped: ShapedSteps, session: SessionLog) -> None:
        self._shaped, self._session = shaped, session
        self._compiled: dict[int, tuple[Any, State]] = {}

    def is_new(self, step: int) -> bool:
        return int(self._shaped.plan.of_step[step]) not in self._compiled

    def step(self, step: int, state: State, batch: Arrays) -> tuple[State, Metrics]:
        """The state after a step, counted from 0, and its metrics; the given state is used up."""
        if not self.is_new(step):
            compiled, shardings = self._compiled[int(self._shaped.plan.of_step[step])]
            return compiled(renamed(state, shardings), batch)
        began, own = time.perf_counter(), self._shaped.step_at(step)
        sizes = ", ".join(f"{axis}={size}" for axis, size in own.mesh.shape.items() if size > 1) or "one device"
        rows, sequence = batch.tokens.shape
        print(f"step {step + 1}: compiling rows of {sequence} x {rows} on {sizes}", file=sys.stderr, flush=True)
        compiled, shardings = own.compiled(), own.state_shardings()
        self._compiled[int(self._shaped.plan.of_step[step])] = compiled, shardings
        result = compiled(renamed(state, shardings), batch)
        self._session.compiled(time.perf_counter() - began)  # the step itself was only begun
        return result


def describe(shaped: ShapedSteps, loader: Loader) -> dict[str, Any]:
    """What `steps.json` holds: every shape with its steps and how even its ranks are, the shape of each step, and what
    the steps draw of each corpus of the plan.

    imbalance: the attention of the busiest rank that shares rows over the mean, less 1. epochs: how often the rows of a
    corpus come. share: of all tokens that are drawn.
    """
    used = Counter(shaped.plan.of_step.tolist())
    shapes = [
        {
            "mesh": ",".join(f"{axis}={size}" for axis, size in step.mesh.shape.items()),
            "sequence": sequence,
            "rows": rows,
            "steps": used[number],
            "imbalance": round(float(mine.mean()), 4),
            "imbalance_worst": round(float(mine.max()), 4),
        }
        for number, (step, (sequence, rows, _)) in enumerate(zip(shaped.steps, shaped.plan.shapes, strict=True))
        for mine in [shaped.plan.imbalance[shaped.plan.of_step == number]]
    ]
    plan = loader.plan
    held = np.add.reduceat(plan.answers.astype(np.int64), plan.row_start[:-1])
    drawn = loader.order.drawn(len(shaped.plan.of_step))
    ends = np.cumsum([corpus.rows for corpus in plan.corpora]).tolist()
    tokens = [
        rows * held[end - corpus.rows : end].mean() for corpus, rows, end in zip(plan.corpora, drawn, ends, strict=True)
    ]
    corpora = [
        {
            "name": corpus.name or "all",
            "sequence": corpus.sequence,
            "rows": rows,
            "epochs": round(rows / corpus.rows, 3),
            "share": round(float(amount / sum(tokens)), 4),
        }
        for corpus, rows, amount in zip(plan.corpora, drawn, tokens, strict=True)
    ]
    return {"schema": 1, "shapes": shapes, "steps": shaped.plan.of_step.tolist(), "corpora": corpora}


def shaped_steps(recipe: TrainRecipe, options: TrainOptions, mesh: Mesh, loader: Loader) -> ShapedSteps:
    """The shape of every step of a job on the chips of a mesh.

    options.shapes: fixed, the mesh as it is; auto, its chips on fsdp and ring split by what a step's rows need. Raises
    UserError where the mesh, or with auto no split of it, divides the rows of some step.
    """
    rows = [loader.rows_at(step) for step in range(recipe.steps)]
    lengths = {corpus.sequence for corpus in loader.plan.corpora}
    choices = {length: _choices(recipe, options, mesh.shape, length) for length in lengths}
    plan = choose(rows, loader.plan.work, loader.plan.row_sequence, choices, cost_of(recipe))
    steps, as_loaded = [], []
    for sequence, _, split in plan.shapes:
        own = replace(options, microbatch_rows=split.rows_at_once)
        steps.append(TrainStep(replace(recipe, sequence=sequence), own, split_mesh(mesh, split.ring)))
        as_loaded.append(split if options.layout == "balanced" else Split())
    return ShapedSteps(plan, tuple(steps), tuple(as_loaded))


def check_shapes(recipe: TrainRecipe, options: TrainOptions, sizes: Mapping[str, int], lengths: set[int]) -> None:
    """Raise UserError where rows of one of these lengths cannot lie on a mesh of these axis sizes."""
    for length in sorted(lengths):
        _choices(recipe, options, sizes, length)


def _choices(recipe: TrainRecipe, options: TrainOptions, sizes: Mapping[str, int], length: int) -> list[Split]:
    """The splits that rows of a length may have."""
    rows = recipe.batch_tokens // length
    # A microbatch has the same tokens, whatever its rows.
    at_once = options.microbatch_rows * recipe.sequence // length
    own = replace(options, microbatch_rows=at_once)
    if options.shapes == "fixed":
        check_batch(replace(recipe, sequence=length), own, sizes)
        return [Split(sizes["data"] * sizes["fsdp"], sizes["ring"], at_once)]
    others = sizes["ulysses"] * sizes["tensor"]
    found = splits(rows, at_once, length, sizes["data"], sizes["fsdp"] * sizes["ring"], others)
    if not found:
        raise refuse(rows, length, ",".join(f"{axis}={size}" for axis, size in sizes.items()))
    return found


def cost_of(recipe: TrainRecipe) -> Cost:
    """What attention and a ring cost: a pair has two products of head_dim forward and twice that backward; on each hop
    keys and values go round forward and backward in the compute dtype, and their gradients in float32."""
    model = recipe.model
    itemsize = jnp.dtype(recipe.dtype).itemsize
    pair = 3 * 2 * 2 * model.head_dim * model.num_heads * model.num_layers
    token = model.num_kv_heads * model.head_dim * model.num_layers * (2 * 2 * itemsize + 2 * 4)
    return Cost(float(pair), float(token))


def split_mesh(mesh: Mesh, ring: int) -> Mesh:
    """The mesh of the same chips with another ring, the rest of fsdp x ring on fsdp; no weight changes its chip."""
    sizes = mesh.shape
    chips = sizes["fsdp"] * sizes["ring"]
    if ring == sizes["ring"]:
        return mesh
    data, fsdp, tensor, ulysses, old = (AXES.index(axis) for axis in ("data", "fsdp", "tensor", "ulysses", "ring"))
    together = mesh.devices.transpose(data, tensor, ulysses, fsdp, old)
    parted = together.reshape(*together.shape[:3], chips // ring, ring)
    return Mesh(parted.transpose(0, 3, 1, 2, 4), AXES)


def renamed(state: State, shardings: State) -> State:
    """The state under other shardings that place every piece where it lies: no copy, the given state is used up.

    ValueError where a piece would have to move.
    """
    return jax.tree.map(_renamed, state, shardings)


def _renamed(leaf: jax.Array, sharding: Any) -> jax.Array:
    if leaf.sharding == sharding:
        return leaf
    here, there = (s.addressable_devices_indices_map(leaf.shape) for s in (leaf.sharding, sharding))
    if here != there or leaf.sharding.memory_kind != sharding.memory_kind:
        raise ValueError(f"an array of shape {leaf.shape} would move: {leaf.sharding} -> {sharding}")
    pieces = [shard.data for shard in leaf.addressable_shards]
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, pieces)
