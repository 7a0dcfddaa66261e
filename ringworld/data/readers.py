"""One item read into documents, or into the reason why it gives none.

- One broken file never stops a stage: whatever its bytes are, reading it ends, in bounded memory, with documents and
  named reasons.
- A file of rows (.jsonl, .parquet) gives a document per row, streamed; any other file gives one. `.gz` and `.zst` are
  opened for every kind. A suffix that nobody knows is read as plain text, unless its bytes say that it is none.
- An archive (.zip, .tar, .tar.gz, .tgz, .tar.zst) gives what its members give, each named `archive!member`.
- `read_rows` gives the rows themselves, for what is more than a text: conversations.
- Reasons are few and countable (`REASONS`); `detail` says the rest.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from ringworld.data.archives import BROKEN, tar_members, zip_members
from ringworld.data.encoding import decode, looks_binary
from ringworld.data.files import open_to_read
from ringworld.data.html import SUFFIXES as HTML_SUFFIXES
from ringworld.data.html import declared_charset, html_text
from ringworld.data.parquet_pages import largest_page
from ringworld.data.repository import imports_first
from ringworld.data.sources import (
    Distribution,
    Item,
    Kind,
    SourceFile,
    distribution_files,
    distribution_license,
    kind_of,
)

# fmt: off
REASONS = (
    "empty", "binary", "too large", "broken file", "broken row", "no such field", "not text", "unreadable",
    "unsafe path",
)
# fmt: on

_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_JSON_LINES = (".jsonl", ".ndjson")
_ZIP, _TAR = ".zip", ".tar"
_LICENSE = "license"  # the field or column that states it, as data sets have it
_LICENSE_CHARACTERS = 200
_HEAD = 1 << 16
_BUFFER_BYTES = 1 << 20
_PARQUET_ROWS = 64
_BATCH_BYTES = 1 << 26  # of the rows that are held at once
_PAGE_BYTES = 1 << 29  # of the largest page that is read


@dataclass(frozen=True)
class ReadOptions:
    """field: of a JSON line; column: of a Parquet file; max_document_bytes: a longer document is refused, not read."""

    field: str = "text"
    column: str = "text"
    max_document_bytes: int = 1 << 30


@dataclass(frozen=True)
class RawDocument:
    """source: file, with `!member` of an archive and `#row` (from 1) of a file of rows. bytes: read for it.

    text, or else reason and detail. license: where the row or the package states one. kind: of the text, by its name.
    """

    source: str
    bytes: int
    text: str | None
    reason: str | None = None
    detail: str = ""
    license: str | None = None
    kind: Kind = "prose"


@dataclass(frozen=True)
class RawRow:
    """source: file and `#row` (from 1). bytes: read for it. value: what the row holds, or else reason and detail."""

    source: str
    bytes: int
    value: Any
    reason: str | None = None
    detail: str = ""


def read(item: Item, options: ReadOptions) -> Iterator[RawDocument]:
    """The documents of one item, in order. Raises nothing for any content of a file: see `RawDocument.reason`."""
    if isinstance(item, Distribution):
        yield _read_distribution(item)
        return
    kind, compression = _kind(item)
    try:
        with open_to_read(item.name) as file:
            if kind in (_ZIP, _TAR):
                yield from _read_archive(item, file, options)
            else:
                yield from _read_file(item, file, options)
    except (OSError, EOFError, pa.ArrowException, *BROKEN) as wrong:
        yield _refused(item.name, item.bytes, _broken(kind, compression), str(wrong))


def _read_archive(item: SourceFile, file: BinaryIO, options: ReadOptions) -> Iterator[RawDocument]:
    kind, compression = _kind(item)
    if item.bytes == 0:
        yield _refused(item.name, 0, "empty", "0 bytes")
        return
    empty = True
    with _decompressed(file, compression) as stream:
        for member in zip_members(file) if kind == _ZIP else tar_members(stream):
            empty, name = False, f"{item.name}!{member.name}"
            if member.reason is not None:
                yield _refused(name, member.bytes, member.reason, member.detail)
                continue
            if name.lower().endswith(".parquet"):
                yield _refused(
                    name, member.bytes, "unreadable", "Parquet cannot be streamed; take it out of the archive"
                )
                continue
            try:
                yield from _read_file(SourceFile(name, member.bytes), member.stream, options)
            except (OSError, EOFError, pa.ArrowException, *BROKEN) as wrong:  # the next member may be whole
                yield _refused(name, member.bytes, "broken file", str(wrong))
    if empty:
        yield _refused(item.name, item.bytes, "empty", "no files in it")


def _read_file(item: SourceFile, file: BinaryIO, options: ReadOptions) -> Iterator[RawDocument]:
    """Of a file or of a member of an archive, which cannot be sought."""
    kind, compression = _kind(item)
    if item.bytes == 0:
        yield _refused(item.name, 0, "empty", "0 bytes")
    elif kind == ".parquet":
        yield from _read_parquet(item, file, options)
    else:
        with _decompressed(file, compression) as stream:
            if kind in _JSON_LINES:
                for row in _json_lines(item, stream, options.max_document_bytes):
                    yield _text_of(row, options.field)
            else:
                yield _read_whole(item, stream, options, html=kind in HTML_SUFFIXES)


def read_rows(item: SourceFile, columns: Sequence[str], max_row_bytes: int) -> Iterator[RawRow]:
    """The rows of a .jsonl or .parquet file, in order: what each line says, or the row's `columns` as a mapping.

    Raises nothing for any content of a file: see `RawRow.reason`.
    """
    kind, compression = _kind(item)
    if item.bytes == 0:
        yield RawRow(item.name, 0, None, "empty", "0 bytes")
        return
    try:
        with open_to_read(item.name) as file:
            if kind == ".parquet":
                yield from _parquet_rows(item, file, columns)
            elif kind in _JSON_LINES:
                with _decompressed(file, compression) as stream:
                    yield from _json_lines(item, stream, max_row_bytes)
            else:
                allowed = "give .jsonl, .ndjson (also .gz, .zst) or .parquet"
                yield RawRow(
                    item.name, item.bytes, None, "unreadable", f"a {kind or 'nameless kind of'} file; {allowed}"
                )
    except (OSError, EOFError, pa.ArrowException) as wrong:
        yield RawRow(item.name, item.bytes, None, _broken(kind, compression), str(wrong)[:300])


def _kind(item: SourceFile) -> tuple[str, str | None]:
    """The suffix without that of the compression, and the compression."""
    path = PurePosixPath(item.name.lower())
    if path.suffix == ".tgz":
        return _TAR, "gzip"
    compression = _COMPRESSIONS.get(path.suffix)
    return (path.with_suffix("").suffix if compression else path.suffix), compression


def _broken(kind: str, compression: str | None) -> str:
    return "broken file" if compression or kind in (".parquet", _ZIP, _TAR) else "unreadable"


def _refused(source: str, size: int, reason: str, detail: str = "") -> RawDocument:
    return RawDocument(source, size, None, reason, detail[:300])


def _decompressed(file: BinaryIO, compression: str | None) -> io.BufferedReader:
    if compression is None:
        # Lines are looked for in the buffer, and fsspec's is of 8 KiB.
        return io.BufferedReader(cast(Any, file), _BUFFER_BYTES)
    # Arrow's stream, because the zstandard library takes the end of a truncated file for the end of the data.
    stream: Any = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), compression)
    # What a broken file held in its last buffer is lost with it.
    return io.BufferedReader(stream, 1 << 15)


def _read_whole(item: SourceFile, stream: Any, options: ReadOptions, html: bool) -> RawDocument:
    limit = options.max_document_bytes
    if item.bytes > limit:
        return _refused(item.name, item.bytes, "too large", f"{item.bytes} bytes, max_document_bytes={limit}")
    data = stream.read(_HEAD)
    if looks_binary(data):
        return _refused(item.name, item.bytes, "binary")
    data += stream.read(limit + 1 - len(data))
    if len(data) > limit:
        return _refused(item.name, item.bytes, "too large", f"unpacks to over max_document_bytes={limit}")
    if not data:
        return _refused(item.name, 0, "empty", "0 bytes")
    text = decode(data, declared=declared_charset(data) if html else None)
    if text is None:
        return _refused(item.name, len(data), "binary", "no known encoding")
    return RawDocument(item.name, len(data), html_text(text) if html else text, kind=kind_of(item.name))


def _json_lines(item: SourceFile, stream: Any, limit: int) -> Iterator[RawRow]:
    """What each line says that is not blank; `limit` is in bytes."""
    row = 0
    while line := stream.readline(limit + 1):
        row += 1
        source = f"{item.name}#{row}"
        if len(line) > limit and not line.endswith(b"\n"):
            size = len(line)
            while rest := stream.readline(1 << 20):
                size += len(rest)
                if rest.endswith(b"\n"):
                    break
            yield RawRow(source, size, None, "too large", f"a line of {size} bytes, max_document_bytes={limit}")
        elif line.strip():
            try:
                yield RawRow(source, len(line), json.loads(line))
            except (ValueError, RecursionError) as wrong:
                yield RawRow(source, len(line), None, "broken row", str(wrong)[:300])
    if row == 0:
        yield RawRow(item.name, 0, None, "empty", "0 lines")


def _text_of(row: RawRow, field: str) -> RawDocument:
    source, value = row.source, row.value
    if row.reason is not None:
        return _refused(source, row.bytes, row.reason, row.detail)
    if not isinstance(value, dict) or field not in value:
        has = ", ".join(value) if isinstance(value, dict) else type(value).__name__
        return _refused(source, row.bytes, "no such field", f"no field {field!r}; has: {has}")
    text = value[field]
    if text is None:
        return _refused(source, row.bytes, "empty", f"{field} is null")
    if not isinstance(text, str):
        return _refused(source, row.bytes, "not text", f"{field} is {type(text).__name__}")
    return RawDocument(source, row.bytes, text, license=_license(value.get(_LICENSE)))


def _license(value: Any) -> str | None:
    """A row's licence, or licences; None for anything that cannot be one."""
    names = value if isinstance(value, list) else [value]
    text = ", ".join(name.strip() for name in names if isinstance(name, str) and name.strip())
    return text if text and len(text) <= _LICENSE_CHARACTERS else None


def _parquet_rows(item: SourceFile, file: BinaryIO, columns: Sequence[str]) -> Iterator[RawRow]:
    table = pq.ParquetFile(file)
    names = table.schema_arrow.names
    wanted = [name for name in columns if name in names]
    if not wanted:
        detail = f"none of the columns {', '.join(columns)}; has: {', '.join(names)}"
        yield RawRow(item.name, item.bytes, None, "no such field", detail[:300])
        return
    row = 0
    for batch in table.iter_batches(_PARQUET_ROWS, columns=wanted):
        for at in range(batch.num_rows):
            row += 1
            source, one = f"{item.name}#{row}", batch.slice(at, 1)
            try:
                [value] = one.to_pylist()
            except UnicodeDecodeError as wrong:  # Parquet writers do not all check that a string is UTF-8
                yield RawRow(source, 0, None, "broken row", str(wrong)[:300])
                continue
            yield RawRow(source, one.nbytes, value)
    if row == 0:
        yield RawRow(item.name, item.bytes, None, "empty", "0 rows")


def _read_parquet(item: SourceFile, file: BinaryIO, options: ReadOptions) -> Iterator[RawDocument]:
    table = pq.ParquetFile(file)
    column, schema = options.column, table.schema_arrow
    if column not in schema.names:
        detail = f"no column {column!r}; has: {', '.join(schema.names)}"
        yield _refused(item.name, item.bytes, "no such field", detail)
        return
    kind = schema.field(column).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)):
        yield _refused(item.name, item.bytes, "not text", f"column {column!r} is {kind}")
        return
    row = 0
    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        chunk = _chunk(table, group, column)
        if (page := largest_page(file, chunk)) > max(_PAGE_BYTES, options.max_document_bytes):
            detail = f"a page of {page} bytes, which must be read whole; write the file with smaller pages"
            yield _refused(f"{item.name}#{row + 1}-{row + rows}", page, "too large", detail)
            row += rows
            continue
        at_once = max(1, min(_PARQUET_ROWS, rows * _BATCH_BYTES // max(1, chunk.total_uncompressed_size)))
        for text, license in _cells(table, group, column, at_once):
            row += 1
            yield _from_parquet(f"{item.name}#{row}", text, license, options)
    if row == 0:
        yield _refused(item.name, item.bytes, "empty", "0 rows")


def _chunk(table: pq.ParquetFile, group: int, column: str) -> Any:
    found = table.metadata.row_group(group)
    chunks = [found.column(number) for number in range(found.num_columns)]
    return next(chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)


def _cells(table: pq.ParquetFile, group: int, column: str, at_once: int) -> Iterator[tuple[pa.Buffer | None, Any]]:
    """The text and the licence of each row of a group."""
    columns = [column, *({_LICENSE} & set(table.schema_arrow.names) - {column})]
    for batch in table.iter_batches(at_once, row_groups=[group], columns=columns):
        values = batch.column(column)
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        try:
            licenses = batch.column(_LICENSE).to_pylist() if _LICENSE in columns[1:] else [None] * len(values)
        except UnicodeDecodeError:
            licenses = [None] * len(values)
        for scalar, license in zip(values.cast(pa.large_binary()), licenses, strict=True):
            yield scalar.as_buffer() if scalar.is_valid else None, license


def _from_parquet(source: str, value: pa.Buffer | None, license: Any, options: ReadOptions) -> RawDocument:
    if value is None:
        return _refused(source, 0, "empty", "null")
    if value.size > options.max_document_bytes:
        return _refused(source, value.size, "too large", f"max_document_bytes={options.max_document_bytes}")
    # Parquet writers do not all check that a string is UTF-8.
    return RawDocument(source, value.size, str(memoryview(value), "utf-8", "replace"), license=_license(license))


def _read_distribution(item: Distribution) -> RawDocument:
    """Whole files under headings of their paths, each after those it imports.

    Taken by path; those that no longer fit into `item.bytes` are left out.
    """
    try:
        files = distribution_files(item.name)
    except (metadata.PackageNotFoundError, OSError) as wrong:
        return _refused(item.source, 0, "unreadable", str(wrong))
    texts, taken, left_out = {}, 0, 0
    for path, where in files:
        try:
            size = where.stat().st_size
            if size == 0:
                continue
            text = decode(where.read_bytes()) if taken + size <= item.bytes else None
        except OSError:
            text, size = None, 0
        if text is None:
            left_out += 1
            continue
        texts[path] = text.strip()
        taken += size
    if not texts:
        return _refused(item.source, 0, "empty", "no text files")
    parts = [f"# {path}\n\n{texts[path]}\n" for path in imports_first(texts)]
    detail = f"{left_out} of {len(files)} files left out"
    return RawDocument(item.source, taken, "\n\n".join(parts), None, detail, distribution_license(item.name), "code")
