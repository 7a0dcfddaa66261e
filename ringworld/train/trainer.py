"""The training loop: restore or begin, feed, step, record, save.

What a step trains on is a function of the step number alone, so the loop keeps no other position: after any death it
continues at the newest checkpoint with the very tokens that come next. Steps of rows of different lengths, or split
otherwise over the same chips, have a compiled program for each shape; the state passes between them without a copy. A
loss or gradient that is not finite stops the job before it can reach a checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from ringworld.data.loader import Batch, Loader, Part, prefetch
from ringworld.data.plan import PackingPlan
from ringworld.data.stores import open_stores
from ringworld.errors import UserError
from ringworld.exits import DONE, PREEMPTED
from ringworld.mesh import ROWS, MeshSpec, make_mesh
from ringworld.planning.expected import expected, peak_bytes
from ringworld.train.checkpoint import Checkpoints, save_params
from ringworld.train.flops import device_peak_flops, training_flops
from ringworld.train.progress import ProgressLog, Record, now
from ringworld.train.recipe import TrainJob
from ringworld.train.shapes import ShapedSteps, describe, renamed, shaped_steps
from ringworld.train.step import Arrays, Metrics, State, TrainStep
from ringworld.train.vigil import StopRequest, Vigil
from ringworld.train.vocabularies import check_vocabularies
from ringworld.train.weights import load_weights

SAVE_SECONDS = 1800.0  # patience for writing the last checkpoint


def train(job: TrainJob, state_dir: str, mesh_spec: MeshSpec) -> int:
    """Run the job to its end or to a request to stop; returns the exit code. Every process of the job calls it."""
    options = job.options
    with Vigil(options.stall_seconds, options.startup_seconds) as vigil, StopRequest() as stop:
        return _train(job, state_dir, make_mesh(mesh_spec), vigil, stop)


def _train(job: TrainJob, state_dir: str, mesh: Mesh, vigil: Vigil, stop: StopRequest) -> int:
    options = job.options
    loader = open_loader(job)
    shaped = shaped_steps(job.recipe, options, mesh, loader)
    _write(job, "steps.json", describe(shaped, loader))
    programs = Programs(shaped)
    with Checkpoints(state_dir, options.keep) as checkpoints:
        first, state = begin(job, shaped.steps[0], checkpoints)
        recorder = Recorder(job, loader, mesh, state_dir, first)
        longest = shaped.steps[0]
        planned = expected(longest.recipe, longest.options, longest.mesh, _typical_pairs(loader, job.recipe.steps))
        done = first
        for done, (batch, waited) in enumerate(timed(feed(loader, shaped, first, job.recipe.steps)), start=first + 1):
            if programs.is_new(done - 1):
                vigil.grant(options.startup_seconds)  # it is compiled first
            state, metrics = programs.step(done - 1, state, batch)
            recorder.finished(done, metrics, waited)
            vigil.beat()
            stopping = stop.reached(done)
            if done % options.save_every == 0 or stopping or done == job.recipe.steps:
                recorder.flush()
                vigil.grant(max(SAVE_SECONDS, options.stall_seconds))
                if checkpoints.latest_step() != done:
                    checkpoints.save(done, state)
                vigil.beat()
            if stopping and done < job.recipe.steps:
                checkpoints.wait()
                print(f"asked to stop: step {done} is saved", file=sys.stderr, flush=True)
                return PREEMPTED
        vigil.grant(SAVE_SECONDS)
        checkpoints.wait()
        save_params(os.path.join(job.inputs.output, "params"), state["params"])
        _write(job, "expected.json", {**vars(planned), "peak_bytes": peak_bytes()})
    return DONE


class Programs:
    """The compiled step of every shape, compiled when its first step comes."""

    def __init__(self, shaped: ShapedSteps) -> None:
        self._shaped = shaped
        self._compiled: dict[int, tuple[Any, State]] = {}

    def is_new(self, step: int) -> bool:
        return int(self._shaped.plan.of_step[step]) not in self._compiled

    def step(self, step: int, state: State, batch: Arrays) -> tuple[State, Metrics]:
        """The state after a step, counted from 0, and its metrics; the given state is used up."""
        shape = int(self._shaped.plan.of_step[step])
        if shape not in self._compiled:
            own = self._shaped.steps[shape]
            self._compiled[shape] = own.compiled(), own.state_shardings()
            sizes = ", ".join(f"{axis}={size}" for axis, size in own.mesh.shape.items() if size > 1) or "one device"
            rows, sequence = batch.tokens.shape
            print(f"step {step + 1}: compiling rows of {sequence} x {rows} on {sizes}", file=sys.stderr, flush=True)
        compiled, shardings = self._compiled[shape]
        return compiled(renamed(state, shardings), batch)


def _write(job: TrainJob, name: str, content: Any) -> None:
    """A small file beside the weights, by the first process."""
    if jax.process_index() == 0:
        with open(os.path.join(job.inputs.output, name), "w", encoding="utf-8") as file:
            json.dump(content, file)


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


def begin(job: TrainJob, step: TrainStep, checkpoints: Checkpoints) -> tuple[int, State]:
    """The step already done and the state after it: the newest checkpoint's, else what the recipe's `init` says."""
    newest = checkpoints.latest_step()
    if newest is not None:
        print(f"resuming at step {newest}", file=sys.stderr, flush=True)
        return newest, checkpoints.restore(newest, step.abstract_state())
    recipe = job.recipe
    if recipe.init == "scratch":
        return 0, step.init(jax.random.key(recipe.seed))
    if job.inputs.params is None:
        raise UserError(f"init={recipe.init}, but inputs.params names no weights to start from")
    return 0, step.start_from(load_weights(job.inputs.params, recipe.model, step.mesh, new_rows=recipe.seed))


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


@dataclass
class _Pending:
    step: int
    metrics: Metrics
    waited: float


class Recorder:
    """Turns metrics into records one step late, so that reading a loss never makes the device wait for the host."""

    def __init__(self, job: TrainJob, loader: Loader, mesh: Mesh, state_dir: str, first: int) -> None:
        self._job, self._loader = job, loader
        self._writes = jax.process_index() == 0
        self._log = ProgressLog(os.path.join(state_dir, "progress.jsonl"), first) if self._writes else None
        device = mesh.devices.flat[0]
        self._peak = device_peak_flops(device, jnp.dtype(job.recipe.dtype)) * mesh.devices.size
        self._pending: _Pending | None = None
        self._clock = time.perf_counter()

    def finished(self, step: int, metrics: Metrics, waited: float) -> None:
        """A step has been dispatched, after `waited` seconds for its batch: record the one before it."""
        self.flush()
        self._pending = _Pending(step, metrics, waited)

    def flush(self) -> None:
        """Wait for the pending step and record it. UserError, naming step and batch, when it is not finite."""
        if self._pending is None:
            return
        step, metrics, waited = self._pending.step, self._pending.metrics, self._pending.waited
        metrics = jax.device_get(metrics)
        loss, norm, rate = float(metrics.loss), float(metrics.gradient_norm), float(metrics.learning_rate)
        self._pending = None
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise UserError(self._not_finite(step, loss, norm))
        seconds, self._clock = time.perf_counter() - self._clock, time.perf_counter()
        if self._log is not None:
            recipe = self._job.recipe
            flops = training_flops(recipe.model, recipe.batch_tokens, self._loader.attention_pairs(step - 1))
            self._log.append(
                Record(
                    step=step,
                    tokens=step * recipe.batch_tokens,
                    loss=loss,
                    gradient_norm=norm,
                    learning_rate=rate,
                    seconds=round(seconds, 4),
                    tokens_per_second=round(recipe.batch_tokens / seconds, 1),
                    mfu=round(flops / seconds / self._peak, 4),
                    time=now(),
                    data_wait=round(waited, 4),
                    **_losses(metrics.losses),
                )
            )

    def _not_finite(self, step: int, loss: float, norm: float) -> str:
        loader = self._loader
        rows = loader.rows_at(step - 1)
        rate = self._job.recipe.optimizer.learning_rate
        return (
            f"step {step}: loss={loss}, gradient norm={norm}. Its batch is rows {rows.tolist()} of the packing plan. "
            f"The checkpoints before it are kept; lower optimizer.learning_rate (now {rate}), lengthen warmup_steps, "
            f"or look at these rows"
        )


def _losses(losses: np.ndarray) -> dict[str, float]:
    """By vocabulary, of a model that has two."""
    named = zip(("loss_text", "loss_vision"), losses.tolist(), strict=False) if len(losses) > 1 else ()
    return {name: loss for name, loss in named if not math.isnan(loss)}


def _bounds(slices: list[slice], size: int) -> slice:
    """The smallest slice that holds all of these."""
    spans = [piece.indices(size) for piece in slices]
    return slice(min(span[0] for span in spans), max(span[1] for span in spans))


def _within(piece: slice, outer: slice, size: int) -> slice:
    start, stop, _ = piece.indices(size)
    return slice(start - outer.start, stop - outer.start)
