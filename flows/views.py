"""What a run leaves for people: plan.json, the report page and the MLflow experiment, kept up to date while it works.

All are views: they are made from what storage holds, may be deleted, and never stop a run. plan.json (which
flows/status.py reads) and the page are written again after a change of state, and every few minutes in any case;
MLflow every few seconds. Each has a thread of its own, so that nobody waits for them.
"""

from __future__ import annotations

import logging
import shlex
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from flows.outlines import outlined
from infra.manifest import Manifest
from infra.observer import State
from infra.outline import Outline, Outlined, write_outline
from infra.plan import Plan
from infra.redact import redact_text
from infra.report import gather, write_page
from infra.retries import Decision, Failure
from infra.stage import Stage, topological
from infra.storage import Store
from infra.tracking import Tracker, choose_target

_LOG = logging.getLogger(__name__)
PAGE_SECONDS = 5.0  # between two writings of the page
FRESH_SECONDS = 300.0  # the page is no older, while a run is at work
CLOSE_SECONDS = 20.0  # for the last words of each


class Views:
    """An observer of one run, and a context manager around it."""

    def __init__(self, store: Store, stages: Sequence[Stage], curriculum: str, words: Sequence[str]) -> None:
        self._store, self._stages = store, stages
        self._curriculum, self._command = curriculum, shlex.join(["python", "flows/full_curriculum.py", *words])
        self._states: dict[str, tuple[str, str]] = {}
        self._outlined: tuple[Outlined, ...] = ()
        self._target = choose_target(store.root)
        self._tracker = Tracker(store, store.run, stages, self._target)
        self._changed, self._closing = threading.Event(), threading.Event()
        self._writer = threading.Thread(target=self._keep_writing, name="report", daemon=True)
        self._finished = False
        self._listeners: list[Callable[[str, float], None]] = []

    def __enter__(self) -> Self:
        self._tracker.start()
        self._writer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._finished:
            self._end()

    def tell_goodput(self, listener: Callable[[str, float], None]) -> None:
        """Call the listener with a stage's name and goodput (0..1), for each that trains, whenever the page is made."""
        self._listeners.append(listener)

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
        self._states = {step.stage.name: (step.action, step.reason) for step in plan.steps}
        self._changed.set()

    def on_state(self, stage: Stage, state: State, detail: str) -> None:
        self._states[stage.name] = (state, detail)
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
            self._changed.wait(FRESH_SECONDS)
            self._changed.clear()
            last = self._closing.is_set()
            if self._states:
                # First what costs little, and what others wait for.
                self._write("plan.json", self._write_outline)
                self._write("the report page", self._write_page)
            if last:
                return
            self._closing.wait(PAGE_SECONDS)

    def _write(self, name: str, write: Callable[[], object]) -> None:
        try:
            write()
        # The boundary: a full disk, a damaged manifest, storage that does not answer. None may end the run for want of
        # a page, and the next change writes it again.
        except Exception as error:
            _LOG.warning("%s could not be written: %s", name, error)

    def _write_page(self) -> None:
        states = {name: state for name, (state, _) in dict(self._states).items()}
        data = gather(self._store, self._stages, states, self._command, self._curriculum)
        write_page(self._store, data)
        for stage in data.stages:
            if stage.goodput is not None and stage.goodput.share is not None:
                for listener in self._listeners:
                    listener(stage.name, stage.goodput.share)

    def _write_outline(self) -> None:
        if not self._outlined:
            self._outlined = tuple(outlined(stage) for stage in topological(self._stages))
        states = dict(self._states)
        stages = (replace(stage, **_said(states.get(stage.name))) for stage in self._outlined)
        command, curriculum = redact_text(self._command), redact_text(self._curriculum)
        write_outline(self._store, Outline(self._store.run, curriculum, command, time.time(), tuple(stages)))


def _said(state: tuple[str, str] | None) -> dict[str, str]:
    return {"state": state[0], "detail": redact_text(state[1])} if state else {}
