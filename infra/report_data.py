"""What the report shows, as values: gathered from storage by `infra.report`, rendered by `infra.report_html`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra.goodput import Goodput
from infra.records import Failed, Step


@dataclass(frozen=True)
class Picture:
    """A PNG of a manifest, as a data URI."""

    name: str
    uri: str


@dataclass(frozen=True)
class StageReport:
    """What is known of a stage. values, recipe: redacted plain JSON. steps: of the newest series. None: not known yet.

    state: one word for the graph, as the runner gives it; "done" or "waiting" by the manifest where it gives none.
    seconds: of the attempt that succeeded; waited: those of them in which it waited for machines. goodput: of a stage
    that trains. failures: the attempts that failed, oldest first.
    """

    name: str
    kind: str
    state: str
    inputs: Mapping[str, str]
    recipe: Mapping[str, Any]
    values: Mapping[str, Any]
    steps: tuple[Step, ...]
    files: tuple[tuple[str, int], ...]
    pictures: tuple[Picture, ...]
    fingerprint: str
    series: int | None
    attempts: int | None
    seconds: float | None
    started: str | None
    finished: str | None
    host: str | None
    commit: str | None
    versions: Mapping[str, str]
    waited: float = 0.0
    goodput: Goodput | None = None
    failures: tuple[Failed, ...] = ()

    @property
    def worked(self) -> float | None:
        """Seconds without the wait for machines; None while not finished."""
        return None if self.seconds is None else max(0.0, self.seconds - self.waited)


@dataclass(frozen=True)
class ReportData:
    """A run at the moment `written` (ISO 8601 UTC). stages: each after its inputs. command: how it was started."""

    run: str
    place: str
    written: str
    stages: tuple[StageReport, ...]
    command: str = ""
    curriculum: str = ""

    def of_kind(self, kind: str) -> tuple[StageReport, ...]:
        return tuple(stage for stage in self.stages if stage.kind == kind)
