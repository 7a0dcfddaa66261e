"""Raw files to clean documents, each once, with a ledger of every document seen and why it is in or out.

- Reading and cleaning run on Ray Data, a few files to a task; each task writes its documents as Parquet and returns its
  rows of the ledger.
- Exact duplicates (sha256 of the cleaned text) are decided on the ledger alone: the copy with the smallest source name
  stays. Then only the files that hold a duplicate are written again, without it.
- Outputs: `documents/*.parquet` (sha256, source, bytes, text) and `ledger.parquet` (source, sha256, bytes, kept,
  reason, detail).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
from pyarrow.compute import field

from infra.stage import Result, StageContext
from ringworld.data.clean import clean, unusable
from ringworld.data.files import absolute, join, read_table, write_table
from ringworld.data.readers import RawDocument, ReadOptions, read
from ringworld.data.sources import INSTALLED, Distribution, Item, SourceFile, expand
from ringworld.errors import UserError
from stages.blocks import map_blocks

DUPLICATE = "duplicate"
_NAMED = 20
_PART_BYTES = 1 << 26
_KEPT = field("reason").is_null()

DOCUMENT_SCHEMA = pa.schema(
    [("sha256", pa.string()), ("source", pa.string()), ("bytes", pa.int64()), ("text", pa.large_string())]
)
_SEEN_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("sha256", pa.string()),  # null for a document that was refused
        ("bytes", pa.int64()),  # of the cleaned text; of what was read, for a document that was refused
        ("reason", pa.string()),  # null for a document that is kept
        ("detail", pa.string()),
        ("file", pa.string()),
    ]
)


@dataclass(frozen=True)
class DocumentsRecipe:
    """sources: paths, globs, folders (local or gs://), or `installed` for the Python packages of the environment.

    field, column: of .jsonl and .parquet files. installed_bytes: taken at most of each distribution. A document longer
    than max_document_bytes is refused by name, one shorter than minimum_bytes is dropped.
    """

    kind: ClassVar[str] = "documents"
    sources: tuple[str, ...] = (INSTALLED,)
    field: str = "text"
    column: str = "text"
    installed_bytes: int = 1 << 18
    minimum_bytes: int = 64
    max_document_bytes: int = 1 << 28


def run(context: StageContext, recipe: DocumentsRecipe) -> Result:
    """Raises UserError when the sources name nothing, or nothing usable."""
    items = expand(recipe.sources, recipe.installed_bytes)
    folder = join(absolute(context.attempt_dir), "documents")
    seen = _read_all(context, recipe, items, folder)
    ledger = mark_duplicates(seen)
    if not ledger.filter(_KEPT).num_rows:
        raise UserError(_nothing_usable(recipe, ledger))
    files = _without_duplicates(context, ledger, folder)
    ledger = ledger.append_column("kept", ledger["reason"].is_null())
    public = ledger.select(["source", "sha256", "bytes", "kept", "reason", "detail"])
    write_table(join(context.attempt_dir, "ledger.parquet"), public)
    return Result(("ledger.parquet", *(f"documents/{name}" for name in files)), _figures(ledger))


def mark_duplicates(seen: pa.Table) -> pa.Table:
    """The ledger sorted by source; a usable document whose text is that of a smaller source gets a reason. Pure."""
    ledger = seen.sort_by("source")
    source, digest, reason, detail = (ledger[name].to_pylist() for name in ("source", "sha256", "reason", "detail"))
    first: dict[str, str] = {}
    for row, found in enumerate(digest):
        if reason[row] is not None:
            continue
        if found in first:
            reason[row], detail[row] = DUPLICATE, f"of {first[found]}"
        else:
            first[found] = source[row]
    for name, values in (("reason", reason), ("detail", detail)):
        ledger = ledger.set_column(ledger.schema.get_field_index(name), name, pa.array(values, pa.string()))
    return ledger


def blocks_of(items: Sequence[Item]) -> list[list[Item]]:
    """Consecutive items in blocks of similar size, at least 2 MiB and at most 64 MiB unless one item is larger.

    Decided by the items alone: how many workers there are must not change which file a document ends up in.
    """
    target = int(np.clip(sum(item.bytes for item in items) // 16, 1 << 21, 1 << 26))
    blocks: list[list[Item]] = []
    size = 0
    for item in items:
        if not blocks or size + item.bytes > target or len(blocks[-1]) == 1000:
            blocks.append([])
            size = 0
        blocks[-1].append(item)
        size += item.bytes
    return blocks


def _read_all(context: StageContext, recipe: DocumentsRecipe, items: Sequence[Item], folder: str) -> pa.Table:
    described = []
    for block, members in enumerate(blocks_of(items)):
        columns = {
            "block": [block] * len(members),
            "installed": [isinstance(item, Distribution) for item in members],
            "name": [item.name for item in members],
            "bytes": [item.bytes for item in members],
        }
        described.append(pa.table(columns))
    tables, done = [], 0
    for seen in map_blocks(context, described, _read_block, {"recipe": recipe, "folder": folder}):
        tables.append(seen)
        done += seen.num_rows
        context.report(step=len(tables), of=len(described), note=f"{done} documents read")
    return pa.concat_tables(tables)


def _read_block(block: pa.Table, recipe: DocumentsRecipe, folder: str) -> pa.Table:
    """Read and clean the items of a block, write its documents, return its rows of the ledger. Runs in a Ray task."""
    options = ReadOptions(recipe.field, recipe.column, recipe.max_document_bytes)
    seen: list[dict[str, object]] = []
    part: list[dict[str, object]] = []
    number, size = 0, 0

    def name() -> str:
        return f"part-{block['block'][0].as_py():05d}-{number:04d}.parquet"

    for raw in _documents(block, options):
        row = {"source": raw.source, "bytes": raw.bytes, "reason": raw.reason, "detail": raw.detail}
        if raw.text is not None:
            text = clean(raw.text)
            reason = unusable(text, recipe.minimum_bytes)
            if reason is None:
                data = text.encode()
                row |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "file": name()}
                part.append({"sha256": row["sha256"], "source": raw.source, "bytes": len(data), "text": text})
                size += len(data)
            row["reason"] = reason
        seen.append(row)
        if size >= _PART_BYTES:
            write_table(join(folder, name()), pa.Table.from_pylist(part, DOCUMENT_SCHEMA))
            part, size, number = [], 0, number + 1
    if part:
        write_table(join(folder, name()), pa.Table.from_pylist(part, DOCUMENT_SCHEMA))
    return pa.Table.from_pylist(seen, _SEEN_SCHEMA)


def _documents(block: pa.Table, options: ReadOptions) -> Iterator[RawDocument]:
    for item in block.to_pylist():
        kind = Distribution if item["installed"] else SourceFile
        yield from read(kind(item["name"], item["bytes"]), options)


def _without_duplicates(context: StageContext, ledger: pa.Table, folder: str) -> list[str]:
    """Rewrite the files that hold duplicates; returns the names of all files of documents, sorted."""
    dropped = ledger.filter(field("reason") == DUPLICATE).select(["file", "source"])
    names = set(ledger["file"].drop_null().to_pylist())
    affected = sorted(set(dropped["file"].to_pylist()))
    blocks = [dropped.filter(field("file") == name).combine_chunks() for name in affected]
    if blocks:
        context.report(note=f"removing {dropped.num_rows} duplicates")
        for written in map_blocks(context, blocks, _rewrite, {"folder": folder}):
            names.update(written["file"].drop_null().to_pylist())
    return sorted(names - set(affected))


def _rewrite(block: pa.Table, folder: str) -> pa.Table:
    """Write a file's other documents to a file of a new name: a repeated task must still find the one it reads."""
    name = block["file"][0].as_py()
    table = read_table(join(folder, name))
    rest = table.filter(~field("source").isin(block["source"].to_pylist()))
    unique = name.replace(".parquet", "-unique.parquet") if rest.num_rows else None
    if unique:
        write_table(join(folder, unique), rest)
    return pa.table({"file": pa.array([unique], pa.string())})


def _figures(ledger: pa.Table) -> dict[str, object]:
    kept, refused = ledger.filter(_KEPT), ledger.filter(~_KEPT)
    named = refused.filter(field("reason") != DUPLICATE)
    return {
        "seen": ledger.num_rows,
        "documents": kept.num_rows,
        "bytes": int(kept["bytes"].to_numpy().sum()),
        "reasons": _reasons(refused),
        "refused": named.select(["source", "reason", "detail"]).slice(0, _NAMED).to_pylist(),
    }


def _reasons(refused: pa.Table) -> dict[str, int]:
    counted = refused["reason"].value_counts().to_pylist()
    return {entry["values"]: entry["counts"] for entry in sorted(counted, key=lambda entry: entry["values"])}


def _nothing_usable(recipe: DocumentsRecipe, ledger: pa.Table) -> str:
    counts = ", ".join(f"{count} {reason}" for reason, count in _reasons(ledger).items()) or "no rows in them"
    for row in ledger.slice(0, 1).to_pylist():
        counts += f"; {row['source']}: {row['reason']} {row['detail'] or ''}".rstrip()
    asked = ", ".join(recipe.sources)
    return f"sources {asked}: no usable document among {ledger.num_rows} ({counts}); give other sources"
