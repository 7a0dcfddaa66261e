"""How often each value stands in a column: the counts of reasons, kinds and languages that stages report."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa


def tally(column: pa.ChunkedArray) -> dict[str, int]:
    """By value, in their order; nulls are not counted."""
    counted = column.drop_null().value_counts().to_pylist()
    return {entry["values"]: entry["counts"] for entry in sorted(counted, key=lambda entry: entry["values"])}


def in_words(tally: Mapping[str, int]) -> str:
    """`3 empty, 1 truncated`; empty where nothing was counted."""
    return ", ".join(f"{count} {value}" for value, count in tally.items())
