"""Who watches a run: the console, MLflow, a test. Watching never changes what is run, and never stops it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from infra.manifest import Manifest
from infra.plan import Plan
from infra.retries import Decision, Failure
from infra.stage import Stage

State = Literal["waiting", "reused", "running", "retrying", "finished", "failed", "stopped", "blocked"]

_LOG = logging.getLogger(__name__)


class Observer(Protocol):
    """Called from the runner's threads, one call at a time. Calls should return within milliseconds.

    on_report's figures are those of `StageContext.report`: step, of, loss, tokens_per_second, note and others.
    """

    def on_plan(self, plan: Plan) -> None: ...

    def on_state(self, stage: Stage, state: State, detail: str) -> None: ...

    def on_report(self, stage: Stage, figures: Mapping[str, Any]) -> None: ...

    def on_finished(self, stage: Stage, manifest: Manifest) -> None: ...

    def on_failure(self, stage: Stage, failure: Failure, decision: Decision) -> None: ...


class Observers:
    """Several observers as one, and none of them able to break a run: what they raise is logged."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers
        self._lock = threading.Lock()

    def on_plan(self, plan: Plan) -> None:
        self._tell(lambda observer: observer.on_plan(plan))

    def on_state(self, stage: Stage, state: State, detail: str) -> None:
        self._tell(lambda observer: observer.on_state(stage, state, detail))

    def on_report(self, stage: Stage, figures: Mapping[str, Any]) -> None:
        self._tell(lambda observer: observer.on_report(stage, figures))

    def on_finished(self, stage: Stage, manifest: Manifest) -> None:
        self._tell(lambda observer: observer.on_finished(stage, manifest))

    def on_failure(self, stage: Stage, failure: Failure, decision: Decision) -> None:
        self._tell(lambda observer: observer.on_failure(stage, failure, decision))

    def _tell(self, call: Callable[[Observer], None]) -> None:
        with self._lock:
            for observer in self._observers:
                try:
                    call(observer)
                except Exception:
                    _LOG.exception("%s failed; the run goes on without it", type(observer).__name__)
