"""Clips as a table: how a stage lists them for the next one."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from ringworld.data.conversations import Turn
from ringworld.vision.clips import Clip

_TURNS = pa.list_(pa.struct([("role", pa.string()), ("text", pa.string())]))

CLIP_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("kind", pa.string()),
        ("place", pa.string()),
        ("member", pa.string()),
        ("caption", pa.string()),
        ("conversation", _TURNS),  # empty for a clip with a caption
        ("license", pa.string()),
        ("split_key", pa.string()),
    ]
)


def table_of(clips: Iterable[Clip]) -> pa.Table:
    return pa.Table.from_pylist([row_of(clip) for clip in clips], CLIP_SCHEMA)


def row_of(clip: Clip) -> dict[str, object]:
    row: dict[str, object] = {name: getattr(clip, name) for name in CLIP_SCHEMA.names}
    return row | {"conversation": [{"role": turn.role, "text": turn.text} for turn in clip.conversation]}


def clips_of(table: pa.Table) -> list[Clip]:
    """From a table with at least the columns of `CLIP_SCHEMA`."""
    rows = table.select(CLIP_SCHEMA.names).to_pylist()
    return [
        Clip(**{**row, "conversation": tuple(Turn(turn["role"], turn["text"]) for turn in row["conversation"])})
        for row in rows
    ]
