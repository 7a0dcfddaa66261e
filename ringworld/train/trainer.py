"""The training loop: restore or begin, feed, step, record, save.

What a step trains on is a function of the step number alone, so the loop keeps no other position: after any death it
continues at the newest checkpoint with the very tokens that come next. Steps of rows of different lengths, or split
otherwise over the same chips, have a compiled program for each shape; the state passes between them without a copy. A
loss or gradient that is not finite stops the job before it can reach a checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from ringworld.data.files import write_json
from ringworld.data.loader import Batch, Loader, Part, prefetch
from ringworld.data.plan import PackingPlan
from ringworld.data.stores import open_stores
from ringworld.errors import UserError
from ringworld.exits import DONE, PREEMPTED
from ringworld.mesh import ROWS, MeshSpec, make_mesh
from ringworld.planning.expected import expected, peak_bytes
from ringworld.train.checkpoint import Checkpoints, save_params
from ringworld.train.notice import Notices
from ringworld.train.recipe import TrainJob
from ringworld.train.recorder import Recorder
from ringworld.train.saves import Saves
from ringworld.train.sessions import SessionLog
from ringworld.train.shapes import Programs, ShapedSteps, describe, shaped_steps
from ringworld.train.step import Arrays, State, TrainStep
from ringworld.train.vigil import StopRequest, Vigil
from ringworld.train.vocabularies import check_vocabularies
from ringworld.train.weights import load_weights

SAVE_SECONDS = 1800.0  # patience for writing the last checkpoint


def train(job: TrainJob, state_dir: str, mesh_spec: MeshSpec, begun: float | None = None) -> int:
    """Run the job to its end or to a request to stop; returns the exit code. Every process of the job calls it.

    begun: when this process began, seconds since the epoch; now, where it is not given.
    """
    options = job.options
    session = SessionLog(state_dir, begun or time.time(), jax.process_count(), writes=jax.process_index() == 0)
    notices = Notices() if options.notices == "gce" else contextlib.nullcontext()
    with (
        Vigil(options.stall_seconds, options.startup_seconds, session.stalled) as vigil,
        StopRequest() as stop,
        notices,
        session,
    ):
        return _train(job, state_dir, make_mesh(mesh_spec), vigil, stop, session)


def _train(job: TrainJob, state_dir: str, mesh: Mesh, vigil: Vigil, stop: StopRequest, session: SessionLog) -> int:
    options = job.options
    loader = open_loader(job)
    shaped = shaped_steps(job.recipe, options, mesh, loader)
    _write(job, "steps.json", describe(shaped, loader))
    programs = Programs(shaped, session)
    with Checkpoints(state_dir, options.keep, options.keep_every) as checkpoints:
        first, state, damaged = begin(job, shaped.steps[0], checkpoints)
        recorder = Recorder(job, loader, mesh, state_dir, first, session)
        session.ready(first or None, damaged, [record.seconds for record in recorder.discarded])
        saves = Saves(checkpoints, options, session)
        longest = shaped.steps[0]
        planned = expected(longest.recipe, longest.options, longest.mesh, _typical_pairs(loader, job.recipe.steps))
        done = first
        for done, (batch, waited) in enumerate(timed(feed(loader, shaped, first, job.recipe.steps)), start=first + 1):
            if programs.is_new(done - 1):
                vigil.grant(options.startup_seconds)  # it is compiled first
            state, metrics = programs.step(done - 1, state, batch)
            recorder.finished(done, metrics, waited)
            vigil.beat()
            due, stopping = saves.due(done), stop.reached(done)
            if due or stopping or done == job.recipe.steps:
                recorder.settle()
                vigil.grant(max(SAVE_SECONDS, options.stall_seconds))
                saves.save(done, state)
                vigil.beat()
            if stopping and done < job.recipe.steps:
                saves.settle()
                session.ended("preempted")
                print(f"asked to stop: step {done} is saved", file=sys.stderr, flush=True)
                return PREEMPTED
        vigil.grant(SAVE_SECONDS)
        saves.settle()
        save_params(os.path.join(job.inputs.output, "params"), state["params"])
        _write(job, "expected.json", {**vars(planned), "peak_bytes": peak_bytes()})
    session.ended("done")
    return DONE


def _write(job: TrainJob, name: str, content: Any) -> None:
    """A small file beside the weights, by the first process."""
    if jax.process_index() == 0:
        write_json(os.path.join(job.inputs.output, name), content)


def _typical_pairs(loader: Loader, steps: int, looked_at: int = 32) -> float:
    """Query-key pairs that the mask lets through, the mean over some steps from the first to the last."""
    chosen = np.unique(np.linspace(0, steps - 1, min(steps, looked_at)).astype(int))
    return float(np.mean([loader.attention_pairs(int(step)) for step in chosen]))


def open_loader(job: TrainJob) -> Loader:
    """The loader of a job. UserError where the plan, the tokens and the recipe do not belong together."""
    recipe = job.recipe
    urls = [job.inputs.tokens, *([job.inputs.vision] if job.inputs.vision else [])]
    store, plan = open_stores(urls), PackingPlan.load(job.inputs.plan)
    check_vocabularies(store.info, recipe.model, store.url)
    if plan.sequence != recipe.sequence:
        raise UserError(f"sequence={recipe.sequence}, but the packing plan has rows of {plan.sequence} tokens")
    return Loader(store, plan, seed=recipe.seed, rows_per_batch=recipe.rows)


def begin(job: TrainJob, step: TrainStep, checkpoints: Checkpoints) -> tuple[int, State, tuple[int, ...]]:
    """The step already done, the state after it, and the damaged checkpoints beyond it: the newest sound checkpoint's
    state, else what the recipe's `init` says."""
    found = checkpoints.restore_newest(step.abstract_state())
    if found is not None:
        print(f"resuming at step {found.step}", file=sys.stderr, flush=True)
        return found.step, found.state, found.damaged
    recipe = job.recipe
    if recipe.init == "scratch":
        return 0, step.init(jax.random.key(recipe.seed)), ()
    if job.inputs.params is None:
        raise UserError(f"init={recipe.init}, but inputs.params names no weights to start from")
    weights = load_weights(job.inputs.params, recipe.model, step.mesh, new_rows=recipe.seed, sequence=recipe.sequence)
    return 0, step.start_from(weights), ()


def feed(loader: Loader, shaped: ShapedSteps, first: int, last: int) -> Iterator[Arrays]:
    """Batches first..last-1, each on its step's mesh, read and placed ahead by threads.

    Each process reads only the slots that its own devices hold.
    """

    def make(step: int) -> Arrays:
        held = _Held.of(loader.shape_at(step), shaped.step_at(step).mesh)
        return held.place(loader.batch(step, Part(held.rows, held.columns, shaped.split_at(step))))

    return prefetch(make, first, last)


def timed(batches: Iterator[Arrays]) -> Iterator[tuple[Arrays, float]]:
    """Each batch with the seconds that were spent waiting for it."""
    while True:
        began = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - began


@dataclass(frozen=True)
class _Held:
    """What the devices of this process hold of arrays [rows, sequence] on a mesh: the smallest slices around it."""

    shape: tuple[int, int]
    sharding: NamedSharding
    rows: slice
    columns: slice

    @classmethod
    def of(cls, shape: tuple[int, int], mesh: Mesh) -> _Held:
        sharding = NamedSharding(mesh, ROWS)
        held: list[Any] = list(sharding.addressable_devices_indices_map(shape).values())
        rows, columns = (_bounds([index[axis] for index in held], shape[axis]) for axis in (0, 1))
        return cls(shape, sharding, rows, columns)

    def place(self, batch: Batch) -> Arrays:
        return Arrays(**{name: self._place(getattr(batch, name)) for name in Arrays._fields})

    def _place(self, local: np.ndarray) -> jax.Array:
        def piece(index: Any) -> np.ndarray:
            return local[_within(index[0], self.rows, self.shape[0]), _within(index[1], self.columns, self.shape[1])]

        return jax.make_array_from_callback(self.shape, self.sharding, piece)


def _bounds(slices: list[slice], size: int) -> slice:
    """The smallest slice that holds all of these."""
    spans = [piece.indices(size) for piece in slices]
    return slice(min(span[0] for span in spans), max(span[1] for span in spans))


def _within(piece: slice, outer: slice, size: int) -> slice:
    start, stop, _ = piece.indices(size)
    return slice(start - outer.start, stop - outer.start)
