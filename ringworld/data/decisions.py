"""What later stages decide about documents, as tables: which to drop, and which spans to cut. The text itself is never
rewritten; whoever reads it, reads it by these tables.

- `drops.parquet`: a row for each document that is left out, with the reason.
- `cuts.parquet`: a row for each span of characters that is left out of a document, disjoint and in order. The pieces
  between them are the documents that remain: the first is named as the document is, the next `name#2`, and so on.
- Both are sorted by the file of the document, so that who reads one file reads only its rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from ringworld.data.files import open_to_read, open_to_write

DROPS = pa.schema(
    [
        ("file", pa.string()),  # of the documents stage: `documents/part-...`
        ("sha256", pa.string()),
        ("source", pa.string()),
        ("domain", pa.string()),  # null where documents have none
        ("bytes", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("similarity", pa.float64()),  # to `of`; null for other reasons
        ("of", pa.string()),  # the source of the document that stays instead
    ]
)
CUTS = pa.schema(
    [
        ("file", pa.string()),
        ("sha256", pa.string()),
        ("source", pa.string()),
        ("start", pa.int64()),  # in characters of the document's text
        ("end", pa.int64()),
        ("benchmark", pa.string()),
        ("line", pa.int64()),  # of the benchmark file, from 1
        ("matches", pa.int64()),  # n-grams in the span that the benchmarks hold
        ("matched", pa.string()),  # the text of the first, as the benchmark has it
    ]
)
_KEY = (("file", "ascending"), ("source", "ascending"))
_ROW_GROUP = 1 << 16


@dataclass(frozen=True)
class Decisions:
    """Of one file of documents. dropped: reason by sha256. cuts: spans by sha256, disjoint and ascending."""

    dropped: Mapping[str, str] = field(default_factory=dict)
    cuts: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)

    def pieces(self, sha256: str, source: str, text: str) -> list[tuple[str, str]]:
        """(source, text) of what remains of a document that is not dropped."""
        kept = list(between(self.cuts.get(sha256, ()), len(text)))
        names = (source if number == 1 else f"{source}#{number}" for number in range(1, len(kept) + 1))
        return [(name, text[start:end].strip()) for name, (start, end) in zip(names, kept, strict=True)]


def between(cuts: Iterable[tuple[int, int]], length: int) -> Iterable[tuple[int, int]]:
    """The spans of `length` characters that lie between cuts, without empty ones."""
    begin = 0
    for start, end in cuts:
        if start > begin:
            yield begin, start
        begin = end
    if length > begin:
        yield begin, length


def write_drops(place: str, rows: pa.Table) -> None:
    """rows: columns of `DROPS`, in any order; others are left out, and what is lacking is null."""
    _write(place, _shaped(rows, DROPS).sort_by(list(_KEY)))


def write_cuts(place: str, rows: pa.Table) -> None:
    """rows: columns of `CUTS`, as for `write_drops`."""
    _write(place, _shaped(rows, CUTS).sort_by([*_KEY, ("start", "ascending")]))


def read_decisions(file: str, drops: Iterable[str], cuts: str | None = None) -> Decisions:
    """The decisions on one file of documents, from tables that several stages have written."""
    dropped: dict[str, str] = {}
    for place in drops:
        dropped |= {row["sha256"]: row["reason"] for row in _rows_of(place, file, ["sha256", "reason"])}
    spans: dict[str, list[tuple[int, int]]] = {}
    for row in _rows_of(cuts, file, ["sha256", "start", "end"]) if cuts else ():
        spans.setdefault(row["sha256"], []).append((row["start"], row["end"]))
    return Decisions(dropped, spans)


def _rows_of(place: str, file: str, columns: list[str]) -> list[dict]:
    with open_to_read(place) as opened:
        return pq.read_table(opened, columns=columns, filters=[("file", "==", file)]).to_pylist()


def _shaped(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        rows[column.name].cast(column.type) if column.name in rows.column_names else pa.nulls(len(rows), column.type)
        for column in schema
    ]
    return pa.table(columns, schema)


def _write(place: str, table: pa.Table) -> None:
    with open_to_write(place) as file:
        pq.write_table(table, file, compression="zstd", row_group_size=_ROW_GROUP)
