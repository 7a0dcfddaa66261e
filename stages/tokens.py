"""Documents to tokens, once for all lengths: a token store, with the held-out split and the figures of the lengths.

- Each file of documents is tokenised by one Ray Data task, which writes it as one shard and returns its rows of the
  index.
- A document of fewer than 2 tokens has nothing to predict and is dropped, with its reason counted.
- Output: `tokens/`: store.json, index.parquet and the shards; see `ringworld.data.token_store`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.compute import field

from infra.stage import Result, StageContext
from ringworld.data.files import absolute, join, list_files, open_to_read
from ringworld.data.packing import length_histogram
from ringworld.data.split import held_out
from ringworld.data.token_store import INDEX_SCHEMA, StoreInfo, write_index, write_shard
from ringworld.data.tokenizers import load_tokenizer
from ringworld.errors import UserError
from stages.blocks import map_blocks

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
    """Input ports `documents` and `tokenizer`. Raises UserError when fewer than two documents are left."""
    folder = join(absolute(context.attempt_dir), "tokens")
    tokenizer = load_tokenizer(context.inputs["tokenizer"].path("tokenizer"))
    info = StoreInfo(tokenizer.hash, tokenizer.vocabulary_size, tokenizer.eos_id, tokenizer.pad_id)
    rows = _tokenize_all(context, folder, info)
    dropped, index = rows.filter(field("tokens") == 0), rows.filter(field("tokens") > 0)

    tokens = index["tokens"].to_numpy()
    longest = max(recipe.buckets, default=0)
    chosen = held_out(index["sha256"].to_pylist(), tokens, recipe.held_out, recipe.seed, longest)
    index = index.append_column("document", pa.array(np.arange(len(tokens))))
    index = index.append_column("split", pa.array(np.where(chosen, "held_out", "train")))
    write_index(folder, info, index.select(INDEX_SCHEMA.names))
    files = tuple(f"tokens/{name}" for name in list_files(folder))
    values = {
        "documents": len(tokens),
        "tokens": int(tokens.sum()),
        "train": _total(tokens[~chosen]),
        "held_out": _total(tokens[chosen]),
        "lengths": length_histogram(tokens),
        "buckets": bucket_counts(tokens, recipe.buckets),
        "dropped": {_TOO_SHORT: dropped.num_rows} if dropped.num_rows else {},
        "dropped_sources": dropped["source"].slice(0, _NAMED).to_pylist(),
        "vocabulary_size": info.vocabulary_size,
    }
    return Result(files, values)


def bucket_counts(tokens: np.ndarray, buckets: Sequence[int]) -> dict[str, dict[str, int]]:
    """Documents and tokens by the longest stage length that a document fills: {"0": ..., "512": ...}. Pure."""
    edges = np.array([0, *buckets])
    bucket = np.searchsorted(edges, tokens, side="right") - 1
    return {str(edge): _total(tokens[bucket == k]) for k, edge in enumerate(edges.tolist())}


def _total(tokens: np.ndarray) -> dict[str, int]:
    return {"documents": len(tokens), "tokens": int(tokens.sum())}


def _tokenize_all(context: StageContext, folder: str, info: StoreInfo) -> pa.Table:
    """Every document's row, in order of (shard, offset)."""
    documents = context.inputs["documents"]
    files = [documents.path(name) for name in sorted(documents.files) if name.startswith("documents/")]
    blocks = [pa.table({"shard": [shard], "file": [file]}) for shard, file in enumerate(files)]
    arguments = {"folder": folder, "info": info, "tokenizer": context.inputs["tokenizer"].path("tokenizer")}
    tables: list[pa.Table] = []
    began, tokens = time.monotonic(), 0
    for rows in map_blocks(context, blocks, _tokenize_block, arguments):
        tables.append(rows)
        tokens += int(rows["tokens"].to_numpy().sum())
        context.report(step=len(tables), of=len(blocks), tokens_per_second=tokens / (time.monotonic() - began))
    # Documents lie in a shard in the order of their rows, which sorting by shard keeps.
    tables.sort(key=lambda rows: rows["shard"][0].as_py())
    return pa.concat_tables(tables)


def _tokenize_block(block: pa.Table, folder: str, info: StoreInfo, tokenizer: str) -> pa.Table:
    """Tokenise a file of documents into a shard; returns its rows in order. Runs in a Ray task."""
    encoder = load_tokenizer(tokenizer)
    [task] = block.to_pylist()
    end = np.array([info.eos_id], np.int32)
    rows: list[dict[str, object]] = []
    kept: list[np.ndarray] = []
    with open_to_read(task["file"]) as opened:
        for batch in pq.ParquetFile(opened).iter_batches(64):
            encoded = encoder.encode_batch(batch["text"].to_pylist())
            for digest, source, ids in zip(batch["sha256"], batch["source"], encoded, strict=True):
                row = {
                    "shard": task["shard"],
                    "offset": 0,
                    "tokens": 0,
                    "sha256": digest.as_py(),
                    "source": source.as_py(),
                }
                if len(ids) >= MINIMUM_TOKENS:
                    kept.append(np.concatenate([ids, end]).astype(info.dtype))
                    row["tokens"] = len(ids) + 1
                rows.append(row)
    if kept:
        offsets = iter(write_shard(folder, task["shard"], kept, info).tolist())
        for row in rows:
            row["offset"] = next(offsets) if row["tokens"] else 0
    return pa.Table.from_pylist(rows, _ROW_SCHEMA)
