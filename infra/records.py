"""What storage says about a run, for those who only show it: the tracker and the report.

A record is one series of one stage, with its manifest once it is finished; steps of its progress.jsonl are read when
asked for. Only what bears the stage's present fingerprint is looked at: the leavings of another recipe are not this
stage's history. Nothing here decides what to run, and the only thing written is a view, which may be lost without harm.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from infra import manifest as manifests
from infra.advice import advise
from infra.goodput import Goodput, History, account
from infra.manifest import Manifest
from infra.redact import redact_text
from infra.stage import Stage

if TYPE_CHECKING:
    from infra.storage import Store

TAIL_LINES = 40  # of a log, shown beside a failure
Step = Mapping[str, Any]
"""One line of progress.jsonl: step, tokens (cumulative over the stage), loss, tokens_per_second, seconds, time, ..."""


@dataclass(frozen=True)
class Record:
    """One series of a stage. manifest: None while the series is unfinished."""

    stage: Stage
    series: int
    manifest: Manifest | None


def read_records(store: Store, stage: Stage) -> tuple[Record, ...]:
    """Series of the stage's present fingerprint, oldest first: the one that the manifest names, and any unfinished.

    Series older than the manifest's, which a forced one has replaced, are left out. UserError for a damaged manifest.
    """
    loaded = manifests.load(store, stage.name)
    manifest = loaded[0] if loaded and loaded[0].fingerprint == stage.fingerprint else None
    found = [number for number, fingerprint in store.series(stage.name) if fingerprint == stage.fingerprint]
    if manifest:
        found = [manifest.series, *(number for number in found if number > manifest.series)]
    return tuple(
        Record(stage, number, manifest if manifest and manifest.series == number else None) for number in found
    )


def read_steps(store: Store, record: Record) -> tuple[Step, ...]:
    """The steps of a series, in order, tokens strictly rising; empty for a stage that does not train."""
    return steps_of(store, record.stage.name, record.series)


def steps_of(store: Store, stage: str, series: int) -> tuple[Step, ...]:
    """As `read_steps`, for those who know the stage by its name alone."""
    found = store.read(f"{stage}/state/{series}/progress.jsonl")
    return parse_steps(found.data.decode("utf-8", "replace")) if found else ()


def read_history(store: Store, stage: str, series: int, steps: tuple[Step, ...]) -> History:
    """All that the attempts of a series left for accounting, beside its steps."""
    state = f"{stage}/state/{series}"
    numbers = store.attempts(stage)
    claims = zip(numbers, _read_all(store, [f"{stage}/attempt-{n}/attempt.json" for n in numbers]), strict=True)
    return History(
        steps,
        _numbered(store, f"{state}/sessions"),
        _numbered(store, f"{state}/gangs"),
        tuple({**claim, "attempt": number} for number, claim in claims if claim.get("series") == series),
    )


def goodput_of(history: History, manifest: Manifest | None, now: float | None = None) -> Goodput:
    """Of a series; now: while a driver works on it. See `infra.goodput.account`."""
    return account(history, finished=unix(manifest.provenance.finished) if manifest else None, now=now)


@dataclass(frozen=True)
class Failed:
    """An attempt that failed, as its error.txt says. kind: its class, see `infra.verdict`. tail: the end of its log."""

    attempt: int
    kind: str
    message: str
    tail: str
    advice: str


def read_failures(store: Store, stage: str, attempts: Iterable[int]) -> tuple[Failed, ...]:
    """Those of the attempts that failed, oldest first."""
    numbers = tuple(attempts)
    with ThreadPoolExecutor(max_workers=16) as pool:
        found = list(pool.map(lambda number: store.read(f"{stage}/attempt-{number}/error.txt"), numbers))
    failures: list[Failed] = []
    for number, file in zip(numbers, found, strict=True):
        if file is None:
            continue
        first, _, rest = file.data.decode("utf-8", "replace").partition("\n")
        kind, separator, message = first.partition(": ")
        kind, message = (kind, message) if separator and " " not in kind else ("crashed", first)
        tail = "\n".join(redact_text(_log_of(rest)).strip().splitlines()[-TAIL_LINES:])
        preemptions = sum(failure.kind == "preempted" for failure in failures) + (kind == "preempted")
        advice = advise(kind, message, tail, preemptions)
        failures.append(Failed(number, kind, redact_text(message), tail, advice))
    return tuple(failures)


def _log_of(rest: str) -> str:
    """What people look for below the first line of an error.txt: the log of what failed, where a stage said it itself;
    the driver's own trace only where there is no other."""
    _, raised, after = rest.partition("\ninfra.stage.StageFailure: ")
    return after.partition("\n")[2].strip() or rest if raised else rest


def write_view(store: Store, key: str, data: bytes) -> None:
    """Write a file that only shows what storage says, atomically. Another driver that was faster keeps its own."""
    found = store.read(key)
    if found is None:
        store.create(key, data)
    elif found.data != data:
        store.replace(key, data, found.version)


def parse_steps(text: str) -> tuple[Step, ...]:
    """The steps of a progress.jsonl that may be in the middle of a write.

    A line that is no step (cut short, or torn by a crash that the trainer has yet to repair) is left out, and so is a
    step that does not advance: what remains can be drawn and logged as it is.
    """
    steps: list[Step] = []
    for line in text.splitlines():
        try:
            step = json.loads(line)
        except json.JSONDecodeError:
            continue
        if not isinstance(step, dict) or not isinstance(step.get("tokens"), int):
            continue
        if not steps or step["tokens"] > steps[-1]["tokens"]:
            steps.append(step)
    return tuple(steps)


def unix(moment: str) -> float:
    """Seconds since the epoch of an ISO 8601 time."""
    return datetime.fromisoformat(moment).timestamp()


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested JSON values as dotted keys with text values: {"a": {"b": 1}} -> {"a.b": "1"}.

    A list of scalars is one value; a list that holds lists or mappings gives one per item: `sources.0.path`.
    """
    flat: dict[str, str] = {}
    for key, value in mapping.items():
        at = f"{prefix}{key}"
        if isinstance(value, list) and any(isinstance(item, (Mapping, list)) for item in value):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{at}."))
        else:
            flat[at] = value if isinstance(value, str) else repr(value)
    return flat


def _numbered(store: Store, folder: str) -> tuple[Mapping[str, Any], ...]:
    """The objects 0001.json, 0002.json, ... of a folder, in order."""
    numbers = store.numbers(folder, suffix=".json")
    return _read_all(store, [f"{folder}/{number:04d}.json" for number in numbers])


def _read_all(store: Store, keys: list[str]) -> tuple[Mapping[str, Any], ...]:
    """JSON objects; an empty one for what is missing, in the middle of a write, or no object."""

    def read(key: str) -> Mapping[str, Any]:
        found = store.read(key)
        try:
            value = json.loads(found.data) if found else {}
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    if not keys:
        return ()
    with ThreadPoolExecutor(max_workers=16) as pool:
        return tuple(pool.map(read, keys))
