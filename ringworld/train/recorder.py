"""Metrics of a step become a line of progress.jsonl: read one step late, checked, counted."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ringworld.data.files import join
from ringworld.data.loader import Loader
from ringworld.errors import UserError
from ringworld.train.flops import device_peak_flops, training_flops
from ringworld.train.progress import ProgressLog, Record, now
from ringworld.train.recipe import TrainJob
from ringworld.train.sessions import SessionLog
from ringworld.train.step import Metrics


@dataclass
class _Pending:
    step: int
    metrics: Metrics
    waited: float


class Recorder:
    """Turns metrics into records one step late, so that reading a loss never makes the device wait for the host.

    discarded: the records of steps that must be trained again, of the first process.
    """

    def __init__(
        self, job: TrainJob, loader: Loader, mesh: Mesh, state_dir: str, first: int, session: SessionLog
    ) -> None:
        self._job, self._loader, self._session = job, loader, session
        self._writes = jax.process_index() == 0
        self._log = ProgressLog(join(state_dir, "progress.jsonl"), first) if self._writes else None
        self.discarded = self._log.discarded if self._log else []
        device = mesh.devices.flat[0]
        self._peak = device_peak_flops(device, jnp.dtype(job.recipe.dtype)) * mesh.devices.size
        self._pending: _Pending | None = None
        self._clock, self._before = time.perf_counter(), session.session

    def finished(self, step: int, metrics: Metrics, waited: float) -> None:
        """A step has been dispatched, after `waited` seconds for its batch: record the one before it."""
        self._flush()
        self._pending = _Pending(step, metrics, waited)
        self._session.stepped(step, waited)

    def settle(self) -> None:
        """Wait for the pending step; returns when the records of all steps are on storage. UserError, naming step and
        batch, when it is not finite."""
        self._flush()
        if self._log is not None:
            self._log.flush()

    def _flush(self) -> None:
        if self._pending is None:
            return
        step, metrics, waited = self._pending.step, self._pending.metrics, self._pending.waited
        metrics = jax.device_get(metrics)
        loss, norm, rate = float(metrics.loss), float(metrics.gradient_norm), float(metrics.learning_rate)
        self._pending = None
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise UserError(self._not_finite(step, loss, norm))
        seconds, self._clock = time.perf_counter() - self._clock, time.perf_counter()
        before, self._before = self._before, self._session.session
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
                    save=_since(before.save_blocked_seconds, self._before.save_blocked_seconds),
                    compile=_since(before.compile_seconds, self._before.compile_seconds),
                    **_losses(metrics.losses),
                )
            )

    def _not_finite(self, step: int, loss: float, norm: float) -> str:
        loader = self._loader
        rows = loader.rows_at(step - 1)
        rate = self._job.recipe.optimizer.learning_rate
        return (
            f"step {step}: loss={loss}, gradient norm={norm}. Its batch is rows {rows.tolist()} of the packing plan. "
            f"The checkpoints before it are kept; lower learning_rate (now {rate}), lengthen warmup_steps, "
            f"or look at these rows"
        )


def _losses(losses: np.ndarray) -> dict[str, float]:
    """By vocabulary, of a model that has two."""
    named = zip(("loss_text", "loss_vision"), losses.tolist(), strict=False) if len(losses) > 1 else ()
    return {name: loss for name, loss in named if not math.isnan(loss)}


def _since(before: float, after: float) -> float:
    return round(after - before, 4)
