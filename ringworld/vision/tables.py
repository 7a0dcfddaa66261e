"""Parquet tables of images or videos: bytes in a column, `{bytes, path}` as the datasets library writes, or paths.

- Only the columns that are needed are read, a few rows at a time: so many as a bounded number of bytes holds.
- A page must be held whole, so one that is too large is refused before it is read, with its row group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ringworld.data.conversations import FIELDS
from ringworld.data.files import open_to_read
from ringworld.data.parquet_pages import largest_page
from ringworld.vision.clips import Clip, Content, Missed, SourceOptions, kind_by_bytes, kind_by_name
from ringworld.vision.pixels import Refused
from ringworld.vision.rows import EXTRA, inside, said

SUFFIX = ".parquet"

_BATCH_ROWS = 64
_BATCH_BYTES = 1 << 26
_FAILURES = (OSError, EOFError, pa.ArrowException)


def table_clips(place: str, options: SourceOptions) -> Iterator[tuple[Clip, Content] | Missed]:
    """Every row's image or video, in order. Raises nothing for any content of the file."""
    row = 0
    try:
        with open_to_read(place) as file:
            table = pq.ParquetFile(file)
            names = table.schema_arrow.names
            media = next((name for name in options.media if name in names), None)
            if media is None:
                detail = f"none of the columns {', '.join(options.media)}; has: {', '.join(names)}"
                yield Missed(place, "no such field", detail[:300])
                return
            extra = [name for name in (*options.caption, *FIELDS, *EXTRA) if name in names and name != media]
            for group in range(table.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                if (page := _largest(file, table, group, media)) > options.max_bytes:
                    detail = f"a page of {page} bytes, max_bytes={options.max_bytes}; write smaller pages"
                    yield Missed(f"{place}#{row + 1}-{row + rows}", "too large", detail)
                    row += rows
                    continue
                for value in _rows(table, group, [media, *extra]):
                    row += 1
                    yield _clip(place, row, media, value, options)
    except _FAILURES as wrong:
        yield Missed(place, "broken file", f"after {row} rows: {type(wrong).__name__}: {wrong}"[:300])
        return
    if row == 0:
        yield Missed(place, "empty", "0 rows")


def table_contents(place: str, members: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """(member, bytes) of the members asked for, by column and row. Reads only row groups that hold one."""
    wanted: dict[str, set[int]] = {}
    for member in members:
        column, _, row = member.rpartition("#")
        wanted.setdefault(column, set()).add(int(row))
    with open_to_read(place) as file:
        table = pq.ParquetFile(file)
        for column, rows in wanted.items():
            row = 0
            for group in range(table.num_row_groups):
                many = table.metadata.row_group(group).num_rows
                if rows.isdisjoint(range(row + 1, row + many + 1)):
                    row += many
                    continue
                for value in _rows(table, group, [column]):
                    row += 1
                    if row in rows:
                        data, _ = _stored(value[column])
                        if data is not None:
                            yield f"{column}#{row}", data


def _clip(
    place: str, row: int, media: str, value: Mapping[str, Any], options: SourceOptions
) -> tuple[Clip, Content] | Missed:
    name = f"{place}#{row}"
    data, path = _stored(value[media])
    if data is not None:
        kind = (kind_by_name(path) if path else None) or kind_by_bytes(data[:12])
        where, content, member = place, data, f"{media}#{row}"
    elif path:
        found = inside(options.root or place.rpartition("/")[0], path)
        if isinstance(found, Refused):
            return Missed(name, found.reason, found.detail)
        kind = kind_by_name(path)
        if kind is None:
            return Missed(name, "no media", f"{path:.200}: neither an image nor a video by its name")
        where, content, member = found, found, None
    else:
        return Missed(name, "empty", f"{media} is null or holds neither bytes nor a path")
    text = said(value, kind, options)
    if isinstance(text, Refused):
        return Missed(name, text.reason, text.detail)
    clip = Clip(name, kind, where, member, text.caption, text.conversation, text.license, text.split_key)
    return clip, content


def _stored(value: Any) -> tuple[bytes | None, str | None]:
    """(bytes, path) of a cell."""
    if isinstance(value, Mapping):
        data, path = value.get("bytes"), value.get("path")
        return (data if isinstance(data, bytes) else None), (path if isinstance(path, str) else None)
    return (value, None) if isinstance(value, bytes) else (None, value if isinstance(value, str) else None)


def _rows(table: pq.ParquetFile, group: int, columns: list[str]) -> Iterator[dict[str, Any]]:
    found = table.metadata.row_group(group)
    size = sum(chunk.total_uncompressed_size for name in columns for chunk in _chunks(table, group, name))
    at_once = max(1, min(_BATCH_ROWS, found.num_rows * _BATCH_BYTES // max(1, size)))
    for batch in table.iter_batches(at_once, row_groups=[group], columns=columns):
        yield from batch.to_pylist()


def _largest(file: Any, table: pq.ParquetFile, group: int, column: str) -> int:
    return max(largest_page(file, chunk) for chunk in _chunks(table, group, column))


def _chunks(table: pq.ParquetFile, group: int, column: str) -> list[Any]:
    """The column, or each field of it where it is a struct."""
    found = table.metadata.row_group(group)
    chunks = [found.column(number) for number in range(found.num_columns)]
    return [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == column]
