"""When this job saves: by steps, by time, or both, and all its processes after the same step.

Steps are counted alike everywhere; clocks are not. So the first process alone reads its clock, a few times between two
saves, and tells the others either to save now or after how many steps to ask again. The cost of every save is measured,
and with `save_seconds: auto` the time to the next follows from it and from the failures seen (`cadence`).
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ringworld.train.cadence import automatic_interval, save_cost, steps_to_wait
from ringworld.train.checkpoint import Checkpoints
from ringworld.train.recipe import TrainOptions
from ringworld.train.sessions import SessionLog

REMEMBERED_STEPS, REMEMBERED_SAVES = 50, 5


class Saves:
    """Call `due` once after each step, on every process of the job, and `save` where it says so."""

    def __init__(self, checkpoints: Checkpoints, options: TrainOptions, session: SessionLog) -> None:
        self._checkpoints, self._options, self._session = checkpoints, options, session
        self._look = 0  # the step after which the clock is read again
        self._began = self._last = time.perf_counter()  # the last save; the last step
        self._compiled = 0.0
        self._calm: deque[float] = deque(maxlen=REMEMBERED_STEPS)  # seconds of steps while nothing was being saved
        self._during: list[float] | None = None  # and of those while something is
        self._blocked = 0.0
        self._costs: deque[float] = deque(maxlen=REMEMBERED_SAVES)

    def due(self, step: int) -> bool:
        """Whether to save after `step`. Raises what the save before has failed with."""
        options = self._options
        self._checkpoints.check()
        if jax.process_index() == 0:
            self._measure()
        if any(every and step % every == 0 for every in (options.save_every, options.keep_every)):
            return True
        if not options.save_seconds or step < self._look:
            return False
        remaining = self._interval() - (time.perf_counter() - self._began)
        ahead = _of_first_process(steps_to_wait(remaining, statistics.median(self._calm) if self._calm else 0.0))
        self._look = step + ahead
        return ahead == 0

    def save(self, step: int, state: Any) -> None:
        """Begin to save the state after `step`, unless that is done."""
        if self._checkpoints.latest_step() == step:
            return
        began = time.perf_counter()
        self._checkpoints.save(step, state)
        self._began, self._blocked = began, time.perf_counter() - began
        self._session.saved(self._blocked)
        self._during, self._look = [], step + 1

    def settle(self) -> None:
        """Return when every save is durable."""
        self._checkpoints.wait()
        self._note_durable()

    def _measure(self) -> None:
        """A step has passed."""
        now, compiled = time.perf_counter(), self._session.session.compile_seconds
        seconds = now - self._last - (compiled - self._compiled)
        self._last, self._compiled = now, compiled
        (self._calm if self._during is None else self._during).append(seconds)
        self._note_durable()

    def _note_durable(self) -> None:
        durable = self._checkpoints.saved_in()
        if self._during is not None and durable is not None:
            self._session.durable(durable)
            self._costs.append(save_cost(self._during, self._calm, self._blocked))
            self._during = None

    def _interval(self) -> float:
        """Seconds between saves; of the first process."""
        options, session = self._options, self._session.session
        seconds = options.save_seconds
        if seconds == "auto":
            hours = session.host_hours + (time.time() - session.begun) / 3600 * session.hosts
            seconds = automatic_interval(
                tuple(self._costs), session.failures, hours, session.hosts,
                options.save_seconds_least, options.save_seconds_most, session.save_seconds or 0.0,
            )  # fmt: skip
        self._session.interval(seconds)
        return seconds


def _of_first_process(value: int) -> int:
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))
