"""Documents to tokens, once for all lengths: a token store, with the held-out split and the figures of the lengths.

- Each file of documents is tokenised by one Ray Data task, which writes it as one shard and returns its rows of the
  index.
- What `deduplicate` and `decontaminate` decided is done here: their drops are left out, and of a document with cuts
  each piece is a document of its own. Pieces share the sha256 of their document, so the split never parts them.
- A document of fewer than 2 tokens has nothing to predict and is dropped. What is left out is counted by its reason.
- Output: `tokens/`: store.json, index.parquet and the shards; see `ringworld.data.token_store`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
from pyarrow.compute import field

from infra.stage import Result, StageContext
from ringworld.data.decisions import Decisions
from ringworld.data.files import absolute, join, list_files
from ringworld.data.packing import length_histogram
from ringworld.data.split import held_out
from ringworld.data.token_store import StoreInfo, write_index, write_shard
from ringworld.data.tokenizers import load_tokenizer
from ringworld.errors import UserError
from stages.blocks import map_blocks
from stages.corpus import DecisionTables, Document, file_blocks, read_documents

MINIMUM_TOKENS = 2
_TOO_SHORT = "fewer than 2 tokens"
_NAMED = 20

_ROW_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("tokens", pa.int64()),  # with the end-of-text id; 0 for a document that was dropped
        ("sha256", pa.string()),
        ("source", pa.string()),
        ("corpus", pa.string()),  # the document's domain; empty where documents have none
        ("cut", pa.bool_()),  # whether it is a piece of a document with cuts
        ("reason", pa.string()),  # of a document that was dropped; null for others
    ]
)


@dataclass(frozen=True)
class TokensRecipe:
    """held_out: the fraction of the documents kept for evaluation, drawn with seed. buckets: the stages' lengths."""

    kind: ClassVar[str] = "tokens"
    held_out: float = 0.1
    seed: int = 0
    buckets: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if list(self.buckets) != sorted({length for length in self.buckets if length > 0}):
            raise UserError(f"buckets={list(self.buckets)}: give different positive lengths in ascending order")


def run(context: StageContext, recipe: TokensRecipe) -> Result:
    """Input ports `documents` and `tokenizer`, and `deduplicate` and `decontaminate` where there are such stages.

    Raises UserError when fewer than two documents are left.
    """
    folder = join(absolute(context.attempt_dir), "tokens")
    tokenizer = load_tokenizer(context.inputs["tokenizer"].path("tokenizer"))
    info = StoreInfo(tokenizer.hash, tokenizer.vocabulary_size, tokenizer.eos_id, tokenizer.pad_id)
    rows = _tokenize_all(context, folder, info)
    dropped, index = rows.filter(~field("reason").is_null()), rows.filter(field("reason").is_null())

    tokens = index["tokens"].to_numpy()
    chosen = choose_held_out(index["sha256"], tokens, recipe)
    index = index.append_column("document", pa.array(np.arange(len(tokens))))
    index = index.append_column("split", pa.array(np.where(chosen, "held_out", "train")))
    has_domains = any(index["corpus"].unique().to_pylist())
    write_index(folder, info, index if has_domains else index.drop_columns(["corpus"]))
    files = tuple(f"tokens/{name}" for name in list_files(folder))
    too_short = dropped.filter(field("reason") == _TOO_SHORT)
    values = {
        "documents": len(tokens),
        "tokens": int(tokens.sum()),
        "train": _total(tokens[~chosen]),
        "held_out": _total(tokens[chosen]),
        "lengths": length_histogram(tokens),
        "buckets": bucket_counts(tokens, recipe.buckets),
        "dropped": dict(sorted(Counter(dropped["reason"].to_pylist()).items())),
        "dropped_sources": too_short["source"].slice(0, _NAMED).to_pylist(),
        "pieces": int(index["cut"].to_numpy(zero_copy_only=False).sum()),
        "vocabulary_size": info.vocabulary_size,
    }
    return Result(files, values)


def choose_held_out(sha256: pa.ChunkedArray, tokens: np.ndarray, recipe: TokensRecipe) -> np.ndarray:
    """bool [documents]: True for those held out. Pieces of a document go together; the longest of them counts. Pure."""
    whole = sha256.combine_chunks().dictionary_encode()
    document = whole.indices.to_numpy()
    longest = np.zeros(len(whole.dictionary), np.int64)
    np.maximum.at(longest, document, tokens)
    bucket = max(recipe.buckets, default=0)
    return held_out(whole.dictionary.to_pylist(), longest, recipe.held_out, recipe.seed, bucket)[document]


def bucket_counts(tokens: np.ndarray, buckets: Sequence[int]) -> dict[str, dict[str, int]]:
    """Documents and tokens by the longest stage length that a document fills: {"0": ..., "512": ...}. Pure."""
    edges = np.array([0, *buckets])
    bucket = np.searchsorted(edges, tokens, side="right") - 1
    return {str(edge): _total(tokens[bucket == k]) for k, edge in enumerate(edges.tolist())}


def _total(tokens: np.ndarray) -> dict[str, int]:
    return {"documents": len(tokens), "tokens": int(tokens.sum())}


def _tokenize_all(context: StageContext, folder: str, info: StoreInfo) -> pa.Table:
    """Every document's row, in order of (shard, offset)."""
    blocks = file_blocks(context.inputs["documents"])
    arguments = {
        "folder": folder,
        "info": info,
        "tokenizer": context.inputs["tokenizer"].path("tokenizer"),
        "decided": DecisionTables.of(context.inputs),
    }
    tables: list[pa.Table] = []
    began, tokens = time.monotonic(), 0
    for rows in map_blocks(context, blocks, _tokenize_block, arguments):
        tables.append(rows)
        tokens += int(rows["tokens"].to_numpy().sum())
        context.report(step=len(tables), of=len(blocks), tokens_per_second=tokens / (time.monotonic() - began))
    # Documents lie in a shard in the order of their rows, which sorting by shard keeps.
    tables.sort(key=lambda rows: rows["shard"][0].as_py())
    return pa.concat_tables(tables)


def _tokenize_block(block: pa.Table, folder: str, info: StoreInfo, tokenizer: str, decided: DecisionTables) -> pa.Table:
    """Tokenise a file of documents into a shard; returns its rows in order. Runs in a Ray task."""
    encoder = load_tokenizer(tokenizer)
    [task] = block.to_pylist()
    decisions = decided.on(task["file"])
    end = np.array([info.eos_id], np.int32)
    rows: list[dict[str, object]] = []
    kept: list[np.ndarray] = []
    for batch in read_documents(task["place"]):
        pieces = [piece for document in batch for piece in _pieces(document, decisions)]
        encoded = iter(encoder.encode_batch([text for row, text in pieces if row["reason"] is None]))
        for row, _ in pieces:
            if row["reason"] is None:
                ids = next(encoded)
                if len(ids) >= MINIMUM_TOKENS:
                    kept.append(np.concatenate([ids, end]).astype(info.dtype))
                    row["tokens"] = len(ids) + 1
                else:
                    row["reason"] = _TOO_SHORT
            rows.append(row | {"shard": task["number"]})
    if kept:
        offsets = iter(write_shard(folder, task["number"], kept, info).tolist())
        for row in rows:
            row["offset"] = next(offsets) if row["tokens"] else 0
    return pa.Table.from_pylist(rows, _ROW_SCHEMA)


def _pieces(document: Document, decisions: Decisions) -> list[tuple[dict[str, object], str]]:
    """What is made of a document: a row that still lacks its place and tokens, and its text."""
    row = {"sha256": document.sha256, "source": document.source, "corpus": document.domain, "offset": 0, "tokens": 0}
    reason = decisions.dropped.get(document.sha256)
    if reason is not None:
        return [(row | {"cut": False, "reason": reason}, "")]
    cut = document.sha256 in decisions.cuts
    return [
        (row | {"source": source, "cut": cut, "reason": None}, text)
        for source, text in decisions.pieces(document.sha256, document.source, document.text)
    ]
