"""The tokens of a corpus, stored once: flat arrays and an index of the documents in them.

- A store is a folder, local or on gs://: `store.json` (what the tokens are), `index.parquet` (where each document lies)
  and `shard-00000/`, ... (one-dimensional zarr v3 arrays). Every document ends with its end-of-text id. Nothing depends
  on a sequence length.
- A store of conversations marks answers: each shard has a second array, `answers-00000/`, with 1 for every token that
  the loss counts. That is schema 2; a store of text is schema 1.
- The index of conversations says to which corpus each belongs; that of a text store may name each document's domain in
  the same column.
- A store with pictures in its text has their codes as ids past those of text, in the same arrays; its index counts, for
  each document, the targets that are codes.
- A shard is written whole by whoever tokenised it; the index is written last, by one process.
- Reads name a document and a range in it, and decode only the chunks of 16K tokens that hold it, each checked by its
  CRC-32C; a damaged one is an error that names the shard and the document.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorstore as ts

from ringworld.data.files import (
    StorageSilent,
    absolute,
    join,
    open_to_read,
    read_json,
    read_table,
    write_json,
    write_table,
)
from ringworld.errors import UserError

Split = Literal["train", "held_out"]

_SCHEMA = 1
_SCHEMA_WITH_ANSWERS = 2
_INFO = "store.json"
_INDEX = "index.parquet"
_CHUNK_TOKENS = 1 << 14  # what one read decodes at least: a host of a ring wants parts of a row, a row many documents
_FILE_TOKENS = 1 << 26  # chunks share files of this many tokens, so that a large corpus is not a million small files
_CACHE_BYTES = 1 << 28
_IDS = ("tokenizer_hash", "vocabulary_size", "eos_id", "pad_id")
_VISION = ("vision_offset", "vision_vocabulary")

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
DOMAIN_INDEX_SCHEMA = pa.schema([*INDEX_SCHEMA, ("corpus", pa.string())])
# answers: the tokens marked 1, without the document's first, which is never a target.
ANSWERS_INDEX_SCHEMA = pa.schema([*DOMAIN_INDEX_SCHEMA, ("answers", pa.int64())])
_SEEN = pa.field("seen", pa.int64())  # the targets that count and are vision ids


@dataclass(frozen=True)
class StoreInfo:
    """What the tokens are. dtype: `uint16` or `uint32` on storage; readers always get int32.

    answers: whether the store marks answers. vision_offset, vision_vocabulary: the first vision id, at least
    vocabulary_size, and how many there are; 0: none.
    """

    tokenizer_hash: str
    vocabulary_size: int
    eos_id: int
    pad_id: int
    answers: bool = False
    vision_offset: int = 0
    vision_vocabulary: int = 0

    @property
    def schema(self) -> int:
        return _SCHEMA_WITH_ANSWERS if self.answers else _SCHEMA

    @property
    def index_schema(self) -> pa.Schema:
        if self.vision_vocabulary:
            return (ANSWERS_INDEX_SCHEMA if self.answers else DOMAIN_INDEX_SCHEMA).append(_SEEN)
        return ANSWERS_INDEX_SCHEMA if self.answers else INDEX_SCHEMA

    @property
    def ids(self) -> int:
        """The largest id, of text or of vision, and one."""
        return max(self.vocabulary_size, self.vision_offset + self.vision_vocabulary)

    @property
    def dtype(self) -> str:
        return "uint16" if self.ids <= 1 << 16 else "uint32"


@dataclass(frozen=True)
class TokenIndex:
    """The documents as columns, one entry per document, in order of `document` = 0, 1, ...

    tokenizer_hash: of the tokens. shard int32, offset int64 (in the shard), tokens int64 (with the end-of-text id),
    held_out bool. In a store that marks answers also answers int64, the targets that count; in one with vision ids also
    seen int64, the targets that count and are such. corpus (text): of a conversation its corpus, of a text its domain;
    None where the store names none.
    """

    tokenizer_hash: str
    shard: np.ndarray
    offset: np.ndarray
    tokens: np.ndarray
    held_out: np.ndarray
    answers: np.ndarray | None = None
    corpus: np.ndarray | None = None
    seen: np.ndarray | None = None

    def documents(self, split: Split) -> np.ndarray:
        """int64: the documents of a split, ascending."""
        return np.flatnonzero(self.held_out if split == "held_out" else ~self.held_out)


def shard_name(shard: int) -> str:
    return f"shard-{shard:05d}"


def answers_name(shard: int) -> str:
    return f"answers-{shard:05d}"


def write_shard(
    url: str,
    shard: int,
    documents: Sequence[np.ndarray],
    info: StoreInfo,
    answers: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Write documents (integer ids, each with its end-of-text id) one after another as a whole shard.

    answers: for a store that marks them, 0 or 1 for each token of each document; ValueError when they do not match.
    A shard of an earlier try is replaced. Returns int64 [documents]: the offset of each in the shard.
    """
    lengths = np.array([len(ids) for ids in documents], np.int64)
    if (answers is not None) != info.answers or (
        answers is not None and [len(marks) for marks in answers] != lengths.tolist()
    ):
        raise ValueError(f"shard {shard}: answers must be given for each token of a store that marks them, else none")
    _write_array(_array(url, shard_name(shard)), documents, info.dtype)
    if answers is not None:
        _write_array(_array(url, answers_name(shard)), answers, "uint8")
    return np.cumsum(lengths) - lengths


def _write_array(where: dict[str, Any], parts: Sequence[np.ndarray], dtype: str) -> None:
    flat = np.concatenate(parts).astype(dtype) if len(parts) else np.zeros(0, dtype)
    little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
    item = flat.dtype.itemsize
    compressed = {
        "name": "blosc",
        "configuration": {"cname": "zstd", "clevel": 3, "shuffle": "shuffle", "typesize": item, "blocksize": 0},
    }
    chunks = {
        "chunk_shape": [_CHUNK_TOKENS],
        "codecs": [little_endian if item > 1 else {"name": "bytes"}, compressed, {"name": "crc32c"}],
        "index_codecs": [little_endian, {"name": "crc32c"}],
    }
    spec = where | {
        "metadata": {
            "shape": [len(flat)],
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [_FILE_TOKENS]}},
            "codecs": [{"name": "sharding_indexed", "configuration": chunks}],
        }
    }
    array: Any = ts.open(spec, create=True, delete_existing=True).result()
    array.write(flat).result()


def write_index(url: str, info: StoreInfo, index: pa.Table) -> None:
    """Complete a store whose shards are written. index: the columns of `info.index_schema`, document = 0, 1, ...; for a
    store of text also `corpus`, the domains, where they have names."""
    schema = info.index_schema
    if schema is INDEX_SCHEMA and "corpus" in index.column_names:
        schema = DOMAIN_INDEX_SCHEMA
    write_table(join(url, _INDEX), index.select(schema.names).cast(schema))
    names = (*_IDS, *_VISION) if info.vision_vocabulary else _IDS
    described = {name: getattr(info, name) for name in (*names, "schema", "dtype")}
    write_json(join(url, _INFO), described)


class TokenStore:
    """A complete store, for reading. Safe to share between threads."""

    def __init__(self, url: str, info: StoreInfo, index: TokenIndex) -> None:
        self.url = url
        self.info = info
        self.index = index
        # One cache for all shards: neighbouring slices decode their common chunk once.
        self._context = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
        self._arrays: dict[str, Any] = {}

    @classmethod
    def open(cls, url: str) -> TokenStore:
        """Raises UserError when there is no complete store at `url`."""
        url = absolute(url)
        found = read_json(join(url, _INFO))
        if found.get("schema") not in (_SCHEMA, _SCHEMA_WITH_ANSWERS):
            raise UserError(
                f"{url}: token store of schema {found.get('schema')!r}, this version reads {_SCHEMA} (text) and "
                f"{_SCHEMA_WITH_ANSWERS} (conversations); make its stage again"
            )
        marked = found["schema"] == _SCHEMA_WITH_ANSWERS
        kept = {name: found[name] for name in _IDS} | {name: found.get(name, 0) for name in _VISION}
        info = StoreInfo(**kept, answers=marked)
        with open_to_read(join(url, _INDEX)) as file:
            index = pq.ParquetFile(file)
            unread = {"document", "sha256", "source"}
            table = index.read([name for name in index.schema_arrow.names if name not in unread])
        shard, offset, tokens = (table[name].to_numpy() for name in ("shard", "offset", "tokens"))
        held_out = np.asarray(table["split"].to_numpy(zero_copy_only=False) == "held_out", bool)
        answers = table["answers"].to_numpy() if info.answers else None
        corpus = _names(table["corpus"]) if "corpus" in table.column_names else None
        seen = table["seen"].to_numpy() if info.vision_vocabulary else None
        return cls(url, info, TokenIndex(info.tokenizer_hash, shard, offset, tokens, held_out, answers, corpus, seen))

    @property
    def tokenizer_hash(self) -> str:
        return self.info.tokenizer_hash

    @property
    def vocabulary_size(self) -> int:
        return self.info.vocabulary_size

    def provenance(self) -> pa.Table:
        """The index with the source and sha256 of every document: columns of `info.index_schema`."""
        return read_table(join(self.url, _INDEX))

    def sources(self, documents: Sequence[int]) -> list[str]:
        """The source of each of some documents."""
        with open_to_read(join(self.url, _INDEX)) as file:
            return pq.ParquetFile(file).read(["source"])["source"].take(pa.array(documents, pa.int64())).to_pylist()

    def read(self, document: int, start: int = 0, length: int | None = None) -> np.ndarray:
        """int32 [length]: tokens start, start + 1, ... of a document, to its end when no length is given.

        Raises IndexError for a range outside the document, OSError for a chunk whose checksum is wrong.
        """
        tokens = int(self.index.tokens[document])
        return self.read_many([document], [start], [tokens - start if length is None else length])[0]

    def read_many(self, documents: Sequence[int], starts: Sequence[int], lengths: Sequence[int]) -> list[np.ndarray]:
        """`read` for each triple, all at once."""
        return [ids.astype(np.int32) for ids in self._read(shard_name, documents, starts, lengths)]

    def read_answers(self, documents: Sequence[int], starts: Sequence[int], lengths: Sequence[int]) -> list[np.ndarray]:
        """bool [length] for each triple: whether each of these tokens is part of an answer.

        Raises UserError for a store that marks none, and otherwise as `read` does.
        """
        if not self.info.answers:
            raise UserError(f"{self.url} is a store of plain text, which marks no answers; every token counts")
        return [marks.astype(bool) for marks in self._read(answers_name, documents, starts, lengths)]

    def _read(
        self,
        name: Callable[[int], str],
        documents: Sequence[int],
        starts: Sequence[int],
        lengths: Sequence[int],
    ) -> list[np.ndarray]:
        pending = []
        for document, start, length in zip(documents, starts, lengths, strict=True):
            tokens = int(self.index.tokens[document])
            if not 0 <= start <= start + length <= tokens:
                raise IndexError(
                    f"document {document} of {self.url} has {tokens} tokens, not [{start}, {start + length})"
                )
            begin = int(self.index.offset[document]) + start
            array = name(int(self.index.shard[document]))
            pending.append((document, array, self._open(array)[begin : begin + length].read()))
        return [self._result(*read) for read in pending]

    def _open(self, array: str) -> Any:
        if array not in self._arrays:
            spec = _array(self.url, array) | {"recheck_cached_data": "open"}
            self._arrays[array] = ts.open(spec, read=True, context=self._context).result()
        return self._arrays[array]

    def _result(self, document: int, array: str, future: Any) -> np.ndarray:
        try:
            return np.asarray(future.result())
        except ValueError as wrong:
            if re.search(r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED)\b", str(wrong)):
                raise StorageSilent(f"{join(self.url, array)}: storage does not answer ({wrong})") from wrong
            raise OSError(
                f"{join(self.url, array)} is damaged where document {document} lies; make its stage again: {wrong}"
            ) from wrong


def _names(column: pa.ChunkedArray) -> np.ndarray:
    """object [documents]: few names, shared by many documents."""
    encoded = column.combine_chunks().dictionary_encode()
    return np.array(encoded.dictionary.to_pylist(), object)[encoded.indices.to_numpy()]


def _array(url: str, name: str) -> dict[str, Any]:
    return {"driver": "zarr3", "kvstore": _kvstore(join(absolute(url), name) + "/")}


def _kvstore(url: str) -> dict[str, str]:
    if "://" not in url:
        return {"driver": "file", "path": url}
    parts = urlsplit(url)
    if parts.scheme == "file":
        return {"driver": "file", "path": parts.path}
    if parts.scheme in ("gs", "gcs"):
        return {"driver": "gcs", "bucket": parts.netloc, "path": parts.path.lstrip("/")}
    raise UserError(f"{url}: a token store lies in a local folder or on gs://, not on {parts.scheme}://")
