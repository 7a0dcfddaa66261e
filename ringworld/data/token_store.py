"""The tokens of a corpus, stored once: flat arrays and an index of the documents in them.

- A store is a folder, local or on gs://: `store.json` (what the tokens are), `index.parquet` (where each document lies)
  and `shard-00000/`, ... (one-dimensional zarr v3 arrays). Every document ends with its end-of-text id. Nothing depends
  on a sequence length.
- A shard is written whole by whoever tokenised it; the index is written last, by one process.
- Reads name a document and a range in it, and decode only the chunks of 256K tokens that hold it, each checked by its
  CRC-32C.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import tensorstore as ts

from ringworld.data.files import absolute, join, read_json, read_table, write_json, write_table
from ringworld.errors import UserError

Split = Literal["train", "held_out"]

_SCHEMA = 1
_INFO = "store.json"
_INDEX = "index.parquet"
_CHUNK_TOKENS = 1 << 18
_FILE_TOKENS = 1 << 26  # chunks share files of this many tokens, so that a large corpus is not a million small files
_CACHE_BYTES = 1 << 28

INDEX_SCHEMA = pa.schema(
    [
        ("document", pa.int64()),
        ("sha256", pa.string()),
        ("source", pa.string()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("tokens", pa.int64()),
        ("split", pa.string()),
    ]
)


@dataclass(frozen=True)
class StoreInfo:
    """What the tokens are. dtype: `uint16` or `uint32` on storage; readers always get int32."""

    tokenizer_hash: str
    vocabulary_size: int
    eos_id: int
    pad_id: int
    schema: int = _SCHEMA

    @property
    def dtype(self) -> str:
        return "uint16" if self.vocabulary_size <= 1 << 16 else "uint32"


@dataclass(frozen=True)
class TokenIndex:
    """The documents as columns, one entry per document, in order of `document` = 0, 1, ...

    tokenizer_hash: of the tokens. shard int32, offset int64 (in the shard), tokens int64 (with the end-of-text id),
    held_out bool.
    """

    tokenizer_hash: str
    shard: np.ndarray
    offset: np.ndarray
    tokens: np.ndarray
    held_out: np.ndarray

    def documents(self, split: Split) -> np.ndarray:
        """int64: the documents of a split, ascending."""
        return np.flatnonzero(self.held_out if split == "held_out" else ~self.held_out)


def shard_name(shard: int) -> str:
    return f"shard-{shard:05d}"


def write_shard(url: str, shard: int, documents: Sequence[np.ndarray], info: StoreInfo) -> np.ndarray:
    """Write documents (integer ids, each with its end-of-text id) one after another as a whole shard.

    A shard of an earlier try is replaced. Returns int64 [documents]: the offset of each in the shard.
    """
    lengths = np.array([len(ids) for ids in documents], np.int64)
    flat = np.concatenate(documents).astype(info.dtype) if documents else np.zeros(0, info.dtype)
    little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
    item = flat.dtype.itemsize
    compressed = {
        "name": "blosc",
        "configuration": {"cname": "zstd", "clevel": 3, "shuffle": "shuffle", "typesize": item, "blocksize": 0},
    }
    chunks = {
        "chunk_shape": [_CHUNK_TOKENS],
        "codecs": [little_endian, compressed, {"name": "crc32c"}],
        "index_codecs": [little_endian, {"name": "crc32c"}],
    }
    spec = _array(url, shard) | {
        "metadata": {
            "shape": [len(flat)],
            "data_type": info.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [_FILE_TOKENS]}},
            "codecs": [{"name": "sharding_indexed", "configuration": chunks}],
        }
    }
    array: Any = ts.open(spec, create=True, delete_existing=True).result()
    array.write(flat).result()
    return np.cumsum(lengths) - lengths


def write_index(url: str, info: StoreInfo, index: pa.Table) -> None:
    """Complete a store whose shards are written. `index` has the columns of `INDEX_SCHEMA`, document = 0, 1, ..."""
    write_table(join(url, _INDEX), index.select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA))
    write_json(join(url, _INFO), asdict(info) | {"dtype": info.dtype})


class TokenStore:
    """A complete store, for reading. Safe to share between threads."""

    def __init__(self, url: str, info: StoreInfo, index: TokenIndex) -> None:
        self.url = url
        self.info = info
        self.index = index
        # One cache for all shards: neighbouring slices decode their common chunk once.
        self._context = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
        self._shards: dict[int, Any] = {}

    @classmethod
    def open(cls, url: str) -> TokenStore:
        """Raises UserError when there is no complete store at `url`."""
        url = absolute(url)
        found = read_json(join(url, _INFO))
        if found.get("schema") != _SCHEMA:
            raise UserError(f"{url}: token store of schema {found.get('schema')!r}, this version reads {_SCHEMA}")
        info = StoreInfo(**{field.name: found[field.name] for field in fields(StoreInfo)})
        table = read_table(join(url, _INDEX), ["shard", "offset", "tokens", "split"])
        shard, offset, tokens = (table[name].to_numpy() for name in ("shard", "offset", "tokens"))
        held_out = np.asarray(table["split"].to_numpy(zero_copy_only=False) == "held_out", bool)
        return cls(url, info, TokenIndex(info.tokenizer_hash, shard, offset, tokens, held_out))

    @property
    def tokenizer_hash(self) -> str:
        return self.info.tokenizer_hash

    @property
    def vocabulary_size(self) -> int:
        return self.info.vocabulary_size

    def provenance(self) -> pa.Table:
        """The index with the source and sha256 of every document: columns of `INDEX_SCHEMA`."""
        return read_table(join(self.url, _INDEX))

    def read(self, document: int, start: int = 0, length: int | None = None) -> np.ndarray:
        """int32 [length]: tokens start, start + 1, ... of a document, to its end when no length is given.

        Raises IndexError for a range outside the document, OSError for a chunk whose checksum is wrong.
        """
        tokens = int(self.index.tokens[document])
        return self.read_many([document], [start], [tokens - start if length is None else length])[0]

    def read_many(self, documents: Sequence[int], starts: Sequence[int], lengths: Sequence[int]) -> list[np.ndarray]:
        """`read` for each triple, all at once."""
        pending = []
        for document, start, length in zip(documents, starts, lengths, strict=True):
            tokens = int(self.index.tokens[document])
            if not 0 <= start <= start + length <= tokens:
                raise IndexError(
                    f"document {document} of {self.url} has {tokens} tokens, not [{start}, {start + length})"
                )
            begin = int(self.index.offset[document]) + start
            shard = int(self.index.shard[document])
            pending.append((shard, self._shard(shard)[begin : begin + length].read()))
        return [self._result(shard, future) for shard, future in pending]

    def _shard(self, shard: int) -> Any:
        if shard not in self._shards:
            spec = _array(self.url, shard) | {"recheck_cached_data": "open"}
            self._shards[shard] = ts.open(spec, read=True, context=self._context).result()
        return self._shards[shard]

    def _result(self, shard: int, future: Any) -> np.ndarray:
        try:
            return np.asarray(future.result()).astype(np.int32)
        except ValueError as wrong:
            raise OSError(f"{join(self.url, shard_name(shard))} is damaged; make its stage again: {wrong}") from wrong


def _array(url: str, shard: int) -> dict[str, Any]:
    return {"driver": "zarr3", "kvstore": _kvstore(join(absolute(url), shard_name(shard)) + "/")}


def _kvstore(url: str) -> dict[str, str]:
    if "://" not in url:
        return {"driver": "file", "path": url}
    parts = urlsplit(url)
    if parts.scheme == "file":
        return {"driver": "file", "path": parts.path}
    if parts.scheme in ("gs", "gcs"):
        return {"driver": "gcs", "bucket": parts.netloc, "path": parts.path.lstrip("/")}
    raise UserError(f"{url}: a token store lies in a local folder or on gs://, not on {parts.scheme}://")
