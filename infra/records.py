"""What storage says about a run, for those who only show it: the tracker and the report.

A record is one series of one stage, with its manifest once it is finished; steps of its progress.jsonl are read when
asked for. Only what bears the stage's present fingerprint is looked at: the leavings of another recipe are not this
stage's history. Nothing here decides what to run, and the only thing written is a view, which may be lost without harm.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra import manifest as manifests
from infra.manifest import Manifest
from infra.stage import Stage

if TYPE_CHECKING:
    from infra.storage import Store

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
    found = store.read(f"{record.stage.name}/state/{record.series}/progress.jsonl")
    return parse_steps(found.data.decode("utf-8", "replace")) if found else ()


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
