"""Chat data to tokens with their answers marked: one store for all corpora of the mixtures, each document with its own.

- One store and not one per corpus: a chat stage trains on one store, and a document's corpus is a column of its index.
- Files are parsed and tokenised by Ray Data tasks, each of which writes its shards and returns its rows of the index.
  Memory is bounded by a shard, not by a file.
- A record that is no conversation is refused by name, with a reason that is counted; of equal conversations the first
  stays. The held-out split is drawn within each corpus, so that each has both sides.
- Output: `tokens/`, a token store that marks answers, and `refused.parquet` (corpus, source, reason, detail).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.stage import Result, StageContext
from ringworld.data.conversations import FIELDS, Part, Refused, digest, encode, parse, plain
from ringworld.data.files import absolute, join, list_files, write_table
from ringworld.data.packing import length_histogram
from ringworld.data.readers import RawRow, read_rows
from ringworld.data.sources import INSTALLED, SourceFile, expand
from ringworld.data.split import held_out
from ringworld.data.token_store import StoreInfo, write_index, write_shard
from ringworld.data.tokenizers import load_tokenizer
from ringworld.errors import UserError
from stages.blocks import map_blocks
from stages.documents import DUPLICATE, blocks_of

_NAMED = 20
_SHARD_TOKENS = 1 << 25
_SHARDS_OF_A_BLOCK = 1000  # more than any block of files can fill; numbers that only the block decides
_BATCH_CHARACTERS = 1 << 21

_ROW_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("tokens", pa.int64()),
        ("answers", pa.int64()),
        ("corpus", pa.string()),
        ("source", pa.string()),
        ("sha256", pa.string()),  # null for a record that was refused
        ("reason", pa.string()),  # null for one that is kept
        ("detail", pa.string()),
    ]
)


@dataclass(frozen=True)
class ConversationsRecipe:
    """sources: of each corpus, paths, globs and folders of .jsonl (.gz, .zst) and .parquet files, local or on gs://.

    held_out: the fraction of each corpus's conversations kept from training, drawn with seed. A record longer than
    max_document_bytes is refused by name.
    """

    kind: ClassVar[str] = "conversations"
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    held_out: float = 0.1
    seed: int = 0
    max_document_bytes: int = 1 << 28


def run(context: StageContext, recipe: ConversationsRecipe) -> Result:
    """Input port `tokenizer`.

    Raises UserError for a corpus without sources, without files, or with fewer than two usable conversations.
    """
    files = _files(recipe)
    folder = join(absolute(context.attempt_dir), "tokens")
    tokenizer = load_tokenizer(context.inputs["tokenizer"].path("tokenizer"))
    info = StoreInfo(tokenizer.hash, tokenizer.vocabulary_size, tokenizer.eos_id, tokenizer.pad_id, answers=True)
    rows = mark_duplicates(_tokenize_all(context, recipe, files, folder, info))
    kept, refused = rows.filter(pc.field("reason").is_null()), rows.filter(~pc.field("reason").is_null())
    for corpus in files:
        _check_usable(recipe, corpus, rows.filter(pc.field("corpus") == corpus))

    chosen = _held_out(recipe, kept)
    index = kept.append_column("document", pa.array(np.arange(kept.num_rows)))
    index = index.append_column("split", pa.array(np.where(chosen, "held_out", "train")))
    write_index(folder, info, index)
    named = refused.select(["corpus", "source", "reason", "detail"])
    write_table(join(context.attempt_dir, "refused.parquet"), named)
    values = {
        **_total(kept),
        "corpora": {corpus: _total(kept.filter(pc.field("corpus") == corpus)) for corpus in files},
        "train": _total(kept.filter(pa.array(~chosen))),
        "held_out": _total(kept.filter(pa.array(chosen))),
        "lengths": length_histogram(kept["tokens"].to_numpy()),
        "reasons": _reasons(refused),
        "refused": named.filter(pc.field("reason") != DUPLICATE).slice(0, _NAMED).to_pylist(),
        "vocabulary_size": info.vocabulary_size,
    }
    return Result(("refused.parquet", *(f"tokens/{name}" for name in list_files(folder))), values)


def mark_duplicates(rows: pa.Table) -> pa.Table:
    """The rows, where a conversation that an earlier one equals gets a reason. Pure."""
    digests, sources, reasons, details = (rows[n].to_pylist() for n in ("sha256", "source", "reason", "detail"))
    first: dict[str, str] = {}
    for row, found in enumerate(digests):
        if reasons[row] is not None:
            continue
        if found in first:
            reasons[row], details[row] = DUPLICATE, f"of {first[found]}"
        else:
            first[found] = sources[row]
    for name, values in (("reason", reasons), ("detail", details)):
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(values, pa.string()))
    return rows


def _files(recipe: ConversationsRecipe) -> dict[str, list[SourceFile]]:
    """The files of each corpus, sorted."""
    found = {}
    for corpus, specs in recipe.sources.items():
        if not specs or INSTALLED in specs:
            raise UserError(
                f"sources.{corpus}={list(specs)}: a mixture names {corpus}, so it needs files of conversations: "
                f"give them, as in sources.{corpus}={corpus}/*.jsonl, or set mixture.{corpus}=0 in the chat stages"
            )
        found[corpus] = [item for item in expand(specs, 0) if isinstance(item, SourceFile)]
    return found


def _tokenize_all(
    context: StageContext,
    recipe: ConversationsRecipe,
    files: Mapping[str, list[SourceFile]],
    folder: str,
    info: StoreInfo,
) -> pa.Table:
    """Every record's row, in order of corpus, file and place in it."""
    blocks = []
    for corpus, items in files.items():
        for members in blocks_of(items):
            columns = {
                "block": [len(blocks)] * len(members),
                "corpus": [corpus] * len(members),
                "name": [item.name for item in members],
                "bytes": [item.bytes for item in members],
            }
            blocks.append(pa.table(columns))
    arguments = {
        "folder": folder,
        "info": info,
        "tokenizer": context.inputs["tokenizer"].path("tokenizer"),
        "max_bytes": recipe.max_document_bytes,
    }
    tables: list[pa.Table] = []
    began, tokens = time.monotonic(), 0
    for rows in map_blocks(context, blocks, _tokenize_block, arguments):
        tables.append(rows)
        tokens += int(rows["tokens"].to_numpy().sum())
        context.report(step=len(tables), of=len(blocks), tokens_per_second=tokens / (time.monotonic() - began))
    # Rows lie in their block in order, which sorting by the first shard keeps.
    tables.sort(key=lambda rows: rows["shard"][0].as_py())
    return pa.concat_tables(tables)


def _tokenize_block(block: pa.Table, folder: str, info: StoreInfo, tokenizer: str, max_bytes: int) -> pa.Table:
    """Parse and tokenise files of one corpus into shards; returns their rows in order. Runs in a Ray task."""
    encoder = load_tokenizer(tokenizer)
    shard = block["block"][0].as_py() * _SHARDS_OF_A_BLOCK
    rows: list[dict[str, Any]] = []
    ids: list[np.ndarray] = []
    answers: list[np.ndarray] = []
    offset = 0
    for batch in _batches(block, max_bytes):
        encoded = iter(encode(encoder, [parts for _, parts in batch if parts]))
        for row, parts in batch:
            row |= {"shard": shard, "offset": offset, "tokens": 0, "answers": 0}
            rows.append(row)
            if parts:
                found = next(encoded)
                ids.append(found.ids.astype(info.dtype))
                answers.append(found.answer)
                row |= {"tokens": len(found.ids), "answers": int(found.answer[1:].sum())}
                offset += len(found.ids)
        if offset >= _SHARD_TOKENS:
            write_shard(folder, shard, ids, info, answers)
            ids, answers, offset, shard = [], [], 0, shard + 1
    if ids:
        write_shard(folder, shard, ids, info, answers)
    return pa.Table.from_pylist(rows, _ROW_SCHEMA)


def _batches(block: pa.Table, max_bytes: int) -> Iterator[list[tuple[dict[str, Any], list[Part]]]]:
    """Records in order, as (row, parts), no parts for one that is refused; in lists of about `_BATCH_CHARACTERS`."""
    batch: list[tuple[dict[str, Any], list[Part]]] = []
    size = 0
    for file in block.to_pylist():
        for raw in read_rows(SourceFile(file["name"], file["bytes"]), FIELDS, max_bytes):
            batch.append(_record(raw, file["corpus"]))
            size += sum(len(part.text) for part in batch[-1][1])
            if size >= _BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _record(raw: RawRow, corpus: str) -> tuple[dict[str, Any], list[Part]]:
    row: dict[str, Any] = {"corpus": corpus, "source": raw.source, "reason": raw.reason, "detail": raw.detail}
    if raw.reason is not None:
        return row, []
    turns = parse(raw.value)
    if isinstance(turns, Refused):
        return row | {"reason": turns.reason, "detail": turns.detail}, []
    return row | {"sha256": digest(turns)}, plain(turns)


def _check_usable(recipe: ConversationsRecipe, corpus: str, rows: pa.Table) -> None:
    refused = rows.filter(~pc.field("reason").is_null())
    usable = rows.num_rows - refused.num_rows
    if usable >= 2:
        return
    why = ", ".join(f"{count} {reason}" for reason, count in _reasons(refused).items()) or "none refused"
    for row in refused.slice(0, 1).to_pylist():
        why += f"; {row['source']}: {row['reason']} {row['detail'] or ''}".rstrip()
    raise UserError(
        f"sources.{corpus}={list(recipe.sources[corpus])}: {usable or 'no'} usable conversation among {rows.num_rows} "
        f"records, two are needed ({why}); give other sources.{corpus}"
    )


def _held_out(recipe: ConversationsRecipe, kept: pa.Table) -> np.ndarray:
    """bool [conversations]."""
    chosen = np.zeros(kept.num_rows, bool)
    corpora = np.array(kept["corpus"].to_pylist())
    for corpus in recipe.sources:
        here = np.flatnonzero(corpora == corpus)
        part = kept.take(here)
        digests, tokens = part["sha256"].to_pylist(), part["tokens"].to_numpy()
        chosen[here] = held_out(digests, tokens, recipe.held_out, recipe.seed, longest=0)
    return chosen


def _total(rows: pa.Table) -> dict[str, int]:
    tokens, answers = (int(rows[name].to_numpy().sum()) for name in ("tokens", "answers"))
    return {"conversations": rows.num_rows, "tokens": tokens, "answer_tokens": answers}


def _reasons(refused: pa.Table) -> dict[str, int]:
    counted = refused["reason"].value_counts().to_pylist()
    return {entry["values"]: entry["counts"] for entry in sorted(counted, key=lambda entry: entry["values"])}
