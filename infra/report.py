"""The report of a run: what storage says, gathered into one frozen `ReportData`, rendered to {root}/{run}/report.html.

Read from manifests, progress.jsonl and what attempts left, at any moment of a run: whatever is missing is simply not
shown. Stages are understood by the kind of their recipe and the names of their figures, never by their name. Secrets
are removed here, so that nothing behind this file sees one.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from infra.goodput import History, waited
from infra.records import Record, goodput_of, read_failures, read_history, read_records, read_steps, write_view
from infra.redact import redact, redact_text
from infra.report_data import Picture, ReportData, StageReport
from infra.report_html import render
from infra.stage import Stage, canonical, topological

if TYPE_CHECKING:
    from infra.storage import Store

REPORT = "report.html"
PICTURE_BYTES = 4 * 2**20
PICTURES_PER_STAGE = 6
FAILURES_PER_STAGE = 50


def write_report(
    store: Store, stages: Iterable[Stage], states: Mapping[str, str], command: str = "", curriculum: str = ""
) -> str:
    """Render the run as it stands now and put it in its place, atomically; its path or URL.

    states: stage name -> done, reused, running, failed, waiting or any word of the plan. Raises what storage raises.
    """
    return write_page(store, gather(store, stages, states, command, curriculum))


def write_page(store: Store, data: ReportData) -> str:
    """Render what was gathered and put it in its place, atomically; its path or URL."""
    write_view(store, REPORT, render(data).encode())
    return store.url(REPORT)


def gather(
    store: Store, stages: Iterable[Stage], states: Mapping[str, str], command: str = "", curriculum: str = ""
) -> ReportData:
    """Everything that the page shows, read once."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        reports = tuple(
            pool.map(lambda stage: _stage_report(store, stage, states.get(stage.name)), topological(stages))
        )
    return ReportData(
        run=store.run,
        place=redact_text(store.url()),
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        stages=reports,
        command=redact_text(command),
        curriculum=curriculum or store.run,
    )


def _stage_report(store: Store, stage: Stage, state: str | None) -> StageReport:
    records = read_records(store, stage)
    finished = next((record for record in records if record.manifest), None)
    manifest = finished.manifest if finished else None
    origin = manifest.provenance if manifest else None
    newest = records[-1] if records else None
    steps = read_steps(store, newest) if newest else ()
    history = read_history(store, stage.name, newest.series, steps) if newest else History()
    at_work = state in ("running", "retrying")
    goodput = goodput_of(history, newest.manifest, time.time() if at_work else None) if newest and steps else None
    attempts = [claim["attempt"] for claim in history.claims]
    return StageReport(
        name=stage.name,
        kind=stage.recipe.kind,
        state=state or ("done" if manifest else "waiting"),
        inputs={port: source.name for port, source in stage.inputs.items()},
        recipe=redact(canonical(stage.recipe)),
        values=redact(manifest.values) if manifest else {},
        steps=steps,
        files=tuple((entry.path, entry.bytes) for entry in manifest.files) if manifest else (),
        pictures=tuple(_pictures(store, finished)) if finished else (),
        fingerprint=stage.fingerprint,
        series=newest.series if newest else None,
        attempts=origin.attempts if origin else None,
        seconds=origin.seconds if origin else None,
        started=origin.started if origin else None,
        finished=origin.finished if origin else None,
        host=origin.host if origin else None,
        commit=origin.commit if origin else None,
        versions=dict(origin.versions) if origin else {},
        waited=waited(history.gangs, manifest.attempt) if manifest else 0.0,
        goodput=goodput,
        failures=read_failures(store, stage.name, attempts[-FAILURES_PER_STAGE:]),
    )


def _pictures(store: Store, record: Record) -> Iterable[Picture]:
    """Small PNGs that the manifest lists, a few per stage; what is not a PNG inside is not shown as one."""
    manifest = record.manifest
    assert manifest is not None
    listed = [entry for entry in manifest.files if entry.path.endswith(".png") and entry.bytes <= PICTURE_BYTES]
    for entry in listed[:PICTURES_PER_STAGE]:
        found = store.read(f"{manifest.stage}/attempt-{manifest.attempt}/{entry.path}")
        if found is not None and found.data.startswith(b"\x89PNG\r\n\x1a\n"):
            yield Picture(entry.path, "data:image/png;base64," + base64.b64encode(found.data).decode())
