"""What synthesis keeps between attempts: files that appear whole or not at all, and the shards among them.

A committed shard is a Parquet file of `ROWS`, one row for each chunk that was asked about, kept or not; its metadata
holds what it took to make (`Done`).
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from ringworld.data.files import join, list_files, open_to_read, read_bytes, read_table, write_bytes

ROWS = pa.schema(
    [
        ("document", pa.string()),
        ("sha256", pa.string()),  # of the whole source document
        ("number", pa.int32()),  # of the chunk in its document
        ("start", pa.int64()),  # characters of the document's text
        ("end", pa.int64()),
        ("tokens", pa.int32()),
        ("split", pa.string()),
        ("question", pa.string()),  # null where the reply is no pair
        ("answer", pa.string()),
        ("answer_start", pa.int64()),  # characters of the chunk's text, where the answer stands there
        ("answer_end", pa.int64()),
        ("excerpt", pa.string()),  # of the chunk's text, around the answer; null where it does not stand there
        ("kept", pa.bool_()),
        ("reason", pa.string()),  # null for a kept pair
        ("detail", pa.string()),
        ("provider", pa.string()),
        ("model", pa.string()),
        ("prompt_sha256", pa.string()),
        ("reply", pa.string()),  # raw; for a failed request what is known of it
        ("finish", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("reply_tokens", pa.int32()),
    ]
)
_DONE = b"ringworld.done"


@dataclass(frozen=True)
class Done:
    """A shard that is through. unasked: chunks for which the budget was spent. failures: failed tries by reason.

    requests: sent, tries included. seconds: from beginning to end.
    """

    asked: int
    kept: int
    unasked: int
    requests: int
    seconds: float
    failures: Mapping[str, int] = field(default_factory=dict)


def write_whole(place: str, data: bytes) -> None:
    """Write a file that appears whole or not at all."""
    if "://" in place:  # an object appears when its upload has ended
        write_bytes(place, data)
        return
    partial = f"{place}.{secrets.token_hex(4)}.partial"
    write_bytes(partial, data)
    os.replace(partial, place)


def read_if_there(place: str) -> bytes | None:
    try:
        return read_bytes(place)
    except FileNotFoundError:
        return None


def commit(place: str, table: pa.Table) -> None:
    """Write a Parquet file that appears whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_whole(place, sink.getvalue().to_pybytes())


def commit_shard(folder: str, name: str, rows: pa.Table, done: Done) -> None:
    told = {_DONE: json.dumps(asdict(done)).encode()}
    commit(join(folder, f"{name}.parquet"), rows.replace_schema_metadata(told))


def committed(folder: str) -> set[str]:
    """The names of the shards that are through."""
    filesystem, path = url_to_fs(folder)
    filesystem.invalidate_cache(path)  # of an object store: workers have written since it was last listed
    return {name.removesuffix(".parquet") for name in list_files(folder) if name.endswith(".parquet")}


def read_shard(folder: str, name: str) -> pa.Table:
    return read_table(join(folder, f"{name}.parquet")).replace_schema_metadata(None)


def read_done(folder: str, name: str) -> Done:
    with open_to_read(join(folder, f"{name}.parquet")) as opened:
        told = pq.read_schema(opened).metadata[_DONE]
    return Done(**json.loads(told))
