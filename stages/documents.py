"""Raw files to clean documents, each once, with a ledger of every document seen and why it is in or out.

- Reading and cleaning run on Ray Data, a few files to a task; each task writes its documents as Parquet and returns its
  rows of the ledger.
- Every document has a domain, that of the sources it came from. How it is cleaned is decided by its domain, or else by
  its kind of text (prose, web or code); see `ringworld.data.clean`.
- Exact duplicates (sha256 of the cleaned text) are decided on the ledger alone: the copy with the smallest source name
  stays. Then only the files that hold a duplicate are written again, without it.
- Outputs: `documents/*.parquet` (`DOCUMENT_SCHEMA`) and `ledger.parquet` (source, domain, sha256, bytes, kept, reason,
  detail, license, language, and of each kind of mask how many).
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.stage import Result, StageContext
from ringworld.data.clean import PRESETS, Cleaning, clean
from ringworld.data.files import absolute, join, read_table, write_table
from ringworld.data.packing import length_histogram
from ringworld.data.pii import KINDS as MASKS
from ringworld.data.readers import RawDocument, ReadOptions, read
from ringworld.data.sources import INSTALLED, KINDS, Distribution, Item, SourceFile, expand_domains
from ringworld.errors import UserError
from stages.blocks import map_blocks
from stages.tallies import in_words, tally

TEXT = "text"  # the domain of `sources`
DUPLICATE = "duplicate"
_NAMED = 20
_SAMPLES = 10
_SAMPLE_CHARACTERS = 300
_PART_BYTES = 1 << 25  # of documents that are held until they are written
_KEPT = pc.field("reason").is_null()
_DOMAIN = re.compile(r"[A-Za-z0-9][\w.-]*")

DOCUMENT_SCHEMA = pa.schema(
    [
        ("sha256", pa.string()),
        ("source", pa.string()),
        ("domain", pa.string()),
        ("license", pa.string()),  # null where neither the row nor the text states one
        ("language", pa.string()),  # null where it was not asked for
        ("bytes", pa.int64()),
        ("text", pa.large_string()),
    ]
)
_PUBLIC = (
    "source", "domain", "sha256", "read_bytes", "bytes", "kept", "reason", "detail", "license", "language", *MASKS,
)  # fmt: skip
_SEEN_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("domain", pa.string()),
        ("sha256", pa.string()),  # null for a document that was refused
        ("read_bytes", pa.int64()),  # of what was read
        ("bytes", pa.int64()),  # of the cleaned text; of what was read, for a document that was refused
        ("reason", pa.string()),  # null for a document that is kept
        ("detail", pa.string()),
        ("license", pa.string()),
        ("language", pa.string()),
        *((kind, pa.int32()) for kind in MASKS),  # how many were masked
        ("file", pa.string()),
        ("sample", pa.string()),  # the beginning of the text, of the documents with the smallest hashes of a task
    ]
)


@dataclass(frozen=True)
class DocumentsRecipe:
    """sources: paths, globs, folders (local or gs://), or `installed` for the Python packages of the environment.

    domains: further sources, by the name of their domain; those of `sources` are in the domain `text`.
    cleaning: of a domain, or of a kind of text (prose, web, code) where its domain has none; without either, a text is
    only brought into form.
    field, column: of .jsonl and .parquet files. installed_bytes: taken at most of each distribution. A document longer
    than max_document_bytes is refused by name, one shorter than minimum_bytes is dropped.
    """

    kind: ClassVar[str] = "documents"
    sources: tuple[str, ...] = (INSTALLED,)
    domains: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    cleaning: Mapping[str, Cleaning] = dataclasses.field(default_factory=dict)
    field: str = "text"
    column: str = "text"
    installed_bytes: int = 1 << 18
    minimum_bytes: int = 64
    max_document_bytes: int = 1 << 26

    def __post_init__(self) -> None:
        for name in self.domains:
            if not _DOMAIN.fullmatch(name) or (name == TEXT and self.sources):
                remedy = "it is the name of sources.text" if name == TEXT else "use letters, digits, dots and hyphens"
                raise UserError(f"domains.{name}: no name for a domain; {remedy}")
        known = (*self.by_domain, *KINDS)
        if unknown := sorted(set(self.cleaning) - set(known)):
            raise UserError(f"cleaning.{unknown[0]}: neither a domain nor a kind of text; allowed: {', '.join(known)}")

    @property
    def by_domain(self) -> dict[str, tuple[str, ...]]:
        return {**({TEXT: self.sources} if self.sources else {}), **self.domains}

    def cleaning_of(self, domain: str, kind: str) -> Cleaning:
        return self.cleaning.get(domain) or self.cleaning.get(kind) or PRESETS["none"]


def run(context: StageContext, recipe: DocumentsRecipe) -> Result:
    """Raises UserError when the sources of a domain name nothing, or nothing usable."""
    items = expand_domains(recipe.by_domain or {TEXT: ()}, recipe.installed_bytes)
    folder = join(absolute(context.attempt_dir), "documents")
    seen = _read_all(context, recipe, items, folder)
    ledger = mark_duplicates(seen)
    _check_domains(recipe, ledger)
    files = _without_duplicates(context, ledger, folder)
    ledger = ledger.append_column("kept", ledger["reason"].is_null())
    write_table(join(context.attempt_dir, "ledger.parquet"), ledger.select(_PUBLIC))
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
    target = int(np.clip(sum(item.bytes for item in items) // 64, 1 << 21, 1 << 26))
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
            "domain": [item.domain for item in members],
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
    seen: list[dict[str, Any]] = []
    parts = _Parts(folder, block["block"][0].as_py())
    for domain, raw in _documents(block, options):
        row, document = _cleaned(domain, raw, recipe)
        seen.append(row if document is None else row | {"file": parts.add(document)})
    parts.flush()
    _drop_samples(seen)
    return pa.Table.from_pylist(seen, _SEEN_SCHEMA)


class _Parts:
    """The files that a task writes its documents to, named after its block: a repeated task overwrites them."""

    def __init__(self, folder: str, block: int) -> None:
        self._folder, self._block = folder, block
        self._held: list[dict[str, Any]] = []
        self._number = self._size = 0

    def add(self, document: dict[str, Any]) -> str:
        """The name of the file that the document will be in."""
        if self._size + document["bytes"] > _PART_BYTES:
            self.flush()
        self._held.append(document)
        self._size += document["bytes"]
        return self._name()

    def flush(self) -> None:
        if self._held:
            write_table(join(self._folder, self._name()), pa.Table.from_pylist(self._held, DOCUMENT_SCHEMA))
            self._held, self._size, self._number = [], 0, self._number + 1

    def _name(self) -> str:
        return f"part-{self._block:05d}-{self._number:04d}.parquet"


def _cleaned(domain: str, raw: RawDocument, recipe: DocumentsRecipe) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A row of the ledger, and the document where it is kept."""
    row: dict[str, Any] = {"source": raw.source, "domain": domain, "license": raw.license}
    row |= {"read_bytes": raw.bytes, "bytes": raw.bytes}
    if raw.text is None:
        return row | {"reason": raw.reason, "detail": raw.detail}, None
    made = clean(raw.text, recipe.cleaning_of(domain, raw.kind), recipe.minimum_bytes)
    row |= {"license": raw.license or made.license, "language": made.language}
    if made.text is None:
        return row | {"reason": made.reason, "detail": made.detail or raw.detail}, None
    data = made.text.encode()
    row |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "detail": raw.detail, **made.masked}
    document = {name: row[name] for name in DOCUMENT_SCHEMA.names if name != "text"} | {"text": data}
    return row | {"sample": made.text[:_SAMPLE_CHARACTERS]}, document


def _drop_samples(seen: Sequence[dict[str, Any]]) -> None:
    """Keep those of the smallest hashes: whatever the other tasks found, the smallest of all are among them."""
    smallest = sorted({row["sha256"] for row in seen if row.get("sha256")})[:_SAMPLES]
    for row in seen:
        if row.get("sha256") not in smallest:
            row["sample"] = None


def _documents(block: pa.Table, options: ReadOptions) -> Iterator[tuple[str, RawDocument]]:
    for item in block.to_pylist():
        kind = Distribution if item["installed"] else SourceFile
        for raw in read(kind(item["name"], item["bytes"]), options):
            yield item["domain"], raw


def _without_duplicates(context: StageContext, ledger: pa.Table, folder: str) -> list[str]:
    """Rewrite the files that hold duplicates; returns the names of all files of documents, sorted."""
    dropped = ledger.filter(pc.field("reason") == DUPLICATE).select(["file", "source"])
    names = set(ledger["file"].drop_null().to_pylist())
    affected = sorted(set(dropped["file"].to_pylist()))
    blocks = [dropped.filter(pc.field("file") == name).combine_chunks() for name in affected]
    if blocks:
        context.report(note=f"removing {dropped.num_rows} duplicates")
        for written in map_blocks(context, blocks, _rewrite, {"folder": folder}):
            names.update(written["file"].drop_null().to_pylist())
    return sorted(names - set(affected))


def _rewrite(block: pa.Table, folder: str) -> pa.Table:
    """Write a file's other documents to a file of a new name: a repeated task must still find the one it reads."""
    name = block["file"][0].as_py()
    table = read_table(join(folder, name))
    rest = table.filter(~pc.field("source").isin(block["source"].to_pylist()))
    unique = name.replace(".parquet", "-unique.parquet") if rest.num_rows else None
    if unique:
        write_table(join(folder, unique), rest)
    return pa.table({"file": pa.array([unique], pa.string())})


def _figures(ledger: pa.Table) -> dict[str, object]:
    kept, refused = ledger.filter(_KEPT), ledger.filter(~_KEPT)
    named = refused.filter(pc.field("reason") != DUPLICATE)
    return {
        "seen": ledger.num_rows,
        "documents": kept.num_rows,
        "bytes": int(kept["bytes"].to_numpy().sum()),
        "read_lengths": length_histogram(ledger["read_bytes"].to_numpy()),
        "kept_lengths": length_histogram(kept["bytes"].to_numpy()),
        "domains": _by_domain(kept),
        "reasons": tally(refused["reason"]),
        "refused": named.select(["source", "reason", "detail"]).slice(0, _NAMED).to_pylist(),
        "languages": tally(kept["language"]),
        "masked": {kind: int(kept[kind].drop_null().to_numpy().sum()) for kind in MASKS},
        "samples": _samples(kept),
    }


def _by_domain(kept: pa.Table) -> dict[str, dict[str, int]]:
    totals = kept.group_by("domain").aggregate([("bytes", "sum"), ([], "count_all")]).sort_by("domain")
    return {row["domain"]: {"documents": row["count_all"], "bytes": row["bytes_sum"]} for row in totals.to_pylist()}


def _samples(kept: pa.Table) -> list[dict[str, str]]:
    """The beginnings of the documents with the smallest hashes: chosen by nobody, and the same every time."""
    rows = kept.filter(pc.field("sample").is_valid()).sort_by("sha256").slice(0, _SAMPLES)
    renamed = rows.select(["source", "domain", "sample"]).rename_columns(["source", "domain", "text"])
    return renamed.to_pylist()


def _check_domains(recipe: DocumentsRecipe, ledger: pa.Table) -> None:
    for domain, asked in recipe.by_domain.items():
        of_domain = ledger.filter(pc.field("domain") == domain)
        if of_domain.filter(_KEPT).num_rows:
            continue
        counts = in_words(tally(of_domain["reason"]))
        counts = counts or "no rows in them"
        for row in of_domain.slice(0, 1).to_pylist():
            counts += f"; {row['source']}: {row['reason']} {row['detail'] or ''}".rstrip()
        which = "" if domain == TEXT else f" of the domain {domain!r}"
        raise UserError(
            f"sources {', '.join(asked)}{which}: no usable document among {of_domain.num_rows} ({counts}); "
            "give other sources"
        )
