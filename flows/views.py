"""What a run leaves for people: the report page and the MLflow experiment, kept up to date while it works.

Both are views: they are made from what storage holds, may be deleted, and never stop a run. The page is written again
at each change of state, MLflow every few seconds; each in a thread of its own.
"""

from __future__ import annotations

import logging
import shlex
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from infra.manifest import Manifest
from infra.observer import State
from infra.plan import Plan
from infra.redact import redact_text
from infra.report import write_report
from infra.retries import Decision, Failure
from infra.stage import Stage
from infra.storage import Store
from infra.tracking import Tracker, choose_target

_LOG = logging.getLogger(__name__)
PAGE_SECONDS = 5.0  # between two writings of the page
CLOSE_SECONDS = 20.0  # for the last words of each


class Views:
    """An observer of one run, and a context manager around it."""

    def __init__(self, store: Store, stages: Sequence[Stage], curriculum: str, words: Sequence[str]) -> None:
        self._store, self._stages = store, stages
        self._curriculum, self._command = curriculum, shlex.join(["python", "flows/full_curriculum.py", *words])
        self._states: dict[str, str] = {}
        self._target = choose_target(store.root)
        self._tracker = Tracker(store, store.run, stages, self._target)
        self._changed, self._closing = threading.Event(), threading.Event()
        self._writer = threading.Thread(target=self._keep_writing, name="report", daemon=True)
        self._finished = False

    def __enter__(self) -> Self:
        self._tracker.start()
        self._writer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._finished:
            self._end()

    def finish(self) -> str:
        """Write both a last time; where they are, for people."""
        complete = self._end()
        tracked = redact_text(self._target.uri) if self._target.uri else self._target.note
        late = (
            ""
            if complete or not self._target.uri
            else " (not up to date: the next run of this command writes the rest)"
        )
        return f"report  {self._store.url('report.html')}\nmlflow  {tracked}{late}"

    def on_plan(self, plan: Plan) -> None:
        self._states = {step.stage.name: step.action for step in plan.steps}
        self._changed.set()

    def on_state(self, stage: Stage, state: State, detail: str) -> None:
        self._states[stage.name] = state
        self._tracker.mark(stage.name, state)
        self._changed.set()

    def on_report(self, stage: Stage, figures: Mapping[str, Any]) -> None:
        """Live figures are the console's; the page shows what is on storage."""

    def on_finished(self, stage: Stage, manifest: Manifest) -> None:
        self._changed.set()

    def on_failure(self, stage: Stage, failure: Failure, decision: Decision) -> None:
        self._changed.set()

    def _end(self) -> bool:
        self._finished = True
        self._closing.set()
        self._changed.set()
        self._writer.join(CLOSE_SECONDS)
        return self._tracker.close(CLOSE_SECONDS)

    def _keep_writing(self) -> None:
        while True:
            self._changed.wait()
            self._changed.clear()
            last = self._closing.is_set()
            try:
                write_report(self._store, self._stages, dict(self._states), self._command, self._curriculum)
            # The boundary: a full disk, a damaged manifest, storage that does not answer. None may end the run for want
            # of a page, and the next change writes it again.
            except Exception as error:
                _LOG.warning("the report page could not be written: %s", error)
            if last:
                return
            self._closing.wait(PAGE_SECONDS)
