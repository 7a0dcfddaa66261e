"""The training loop: restore or begin, feed, step, record, save.

What a step trains on is a function of the step number alone, so the loop keeps no other position: after any death it
continues at the newest checkpoint with the very tokens that come next. A loss or gradient that is not finite stops the
job before it can reach a checkpoint.
"""

from __future__ import annotations

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

from ringworld.data.loader import Loader
from ringworld.data.packing import PackingPlan
from ringworld.data.token_store import TokenStore
from ringworld.errors import UserError
from ringworld.exits import DONE, PREEMPTED
from ringworld.mesh import ROWS, MeshSpec, make_mesh
from ringworld.train.checkpoint import Checkpoints, save_params
from ringworld.train.flops import device_peak_flops, training_flops
from ringworld.train.progress import ProgressLog, Record, now
from ringworld.train.recipe import TrainJob
from ringworld.train.step import Arrays, Metrics, State, TrainStep
from ringworld.train.vigil import StopRequest, Vigil
from ringworld.train.weights import load_weights

SAVE_SECONDS = 1800.0  # patience for writing the last checkpoint


def train(job: TrainJob, state_dir: str, mesh_spec: MeshSpec) -> int:
    """Run the job to its end or to a request to stop; returns the exit code. Every process of the job calls it."""
    options = job.options
    vigil, stop = Vigil(options.stall_seconds, options.startup_seconds), StopRequest()
    mesh = make_mesh(mesh_spec)
    step = TrainStep(job.recipe, options, mesh)
    loader = open_loader(job, mesh)
    with Checkpoints(state_dir, options.keep) as checkpoints:
        first, state = begin(job, step, checkpoints)
        recorder = Recorder(job, loader, mesh, state_dir, first)
        compiled = step.compiled()
        done = first
        for done, batch in enumerate(feed(loader, mesh, first, job.recipe.steps), start=first + 1):
            state, metrics = compiled(state, batch)
            recorder.finished(done, metrics)
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
    return DONE


def open_loader(job: TrainJob, mesh: Mesh) -> Loader:
    """The loader of a job, which lays rows out for the mesh's ring as the options say.

    UserError where the plan, the tokens and the recipe do not belong together.
    """
    recipe = job.recipe
    store, plan = TokenStore.open(job.inputs.tokens), PackingPlan.load(job.inputs.plan)
    if store.info.vocabulary_size > recipe.model.vocabulary:
        raise UserError(
            f"model.vocabulary={recipe.model.vocabulary} is smaller than the tokenizer's {store.info.vocabulary_size}; "
            f"set model.vocabulary to {store.info.vocabulary_size} or more"
        )
    if plan.sequence != recipe.sequence:
        raise UserError(f"sequence={recipe.sequence}, but the packing plan has rows of {plan.sequence} tokens")
    ring = mesh.shape["ring"] if job.options.layout == "balanced" else 1
    return Loader(store, plan, seed=recipe.seed, rows_per_batch=recipe.rows, ring=ring)


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
    return 0, step.start_from(load_weights(job.inputs.params, recipe.model, step.mesh))


def feed(loader: Loader, mesh: Mesh, first: int, last: int) -> Iterator[Arrays]:
    """Batches first..last-1 on the mesh. Each process reads only the slots that its own devices hold."""
    sharding = NamedSharding(mesh, ROWS)
    shape = (loader.rows_per_batch, loader.plan.sequence)
    held: list[Any] = list(sharding.addressable_devices_indices_map(shape).values())
    rows, columns = (_bounds([index[axis] for index in held], shape[axis]) for axis in (0, 1))

    def place(local: np.ndarray) -> jax.Array:
        def piece(index: Any) -> np.ndarray:
            own = _within(index[0], rows, shape[0]), _within(index[1], columns, shape[1])
            return local[own]

        return jax.make_array_from_callback(shape, sharding, piece)

    for batch in loader.prefetch(first, last, rows, columns):
        yield Arrays(**{name: place(getattr(batch, name)) for name in Arrays._fields})


@dataclass
class _Pending:
    step: int
    metrics: Metrics


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

    def finished(self, step: int, metrics: Metrics) -> None:
        """A step has been dispatched: record the one before it."""
        self.flush()
        self._pending = _Pending(step, metrics)

    def flush(self) -> None:
        """Wait for the pending step and record it. UserError, naming step and batch, when it is not finite."""
        if self._pending is None:
            return
        step, metrics = self._pending.step, self._pending.metrics
        loss, norm, rate = (float(value) for value in jax.device_get(metrics))
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


def _bounds(slices: list[slice], size: int) -> slice:
    """The smallest slice that holds all of these."""
    spans = [piece.indices(size) for piece in slices]
    return slice(min(span[0] for span in spans), max(span[1] for span in spans))


def _within(piece: slice, outer: slice, size: int) -> slice:
    start, stop, _ = piece.indices(size)
    return slice(start - outer.start, stop - outer.start)
