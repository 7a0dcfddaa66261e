"""What a stage keeps between attempts, shard by shard: files that appear whole or not at all.

A committed shard is a Parquet file, and that it is there is the only sign of its being through; its metadata holds what
it took to make, as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ringworld.data.files import exists, join, list_files, open_to_read, read_table, write_whole

_TOLD = b"ringworld.done"


def commit(place: str, table: pa.Table) -> None:
    """Write a Parquet file that appears whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_whole(place, sink.getvalue().to_pybytes())


def commit_shard(folder: str, name: str, rows: pa.Table, told: Mapping[str, Any]) -> None:
    """told: plain JSON."""
    commit(join(folder, f"{name}.parquet"), rows.replace_schema_metadata({_TOLD: json.dumps(told).encode()}))


def committed(folder: str) -> set[str]:
    """The names of the shards that are through."""
    return {name.removesuffix(".parquet") for name in list_files(folder) if name.endswith(".parquet")}


def read_shard(folder: str, name: str) -> pa.Table:
    return read_table(join(folder, f"{name}.parquet")).replace_schema_metadata(None)


def told_before(folder: str, name: str) -> dict[str, Any] | None:
    """What `commit_shard` was told by a worker that died before it could say so itself; None for a shard to be made."""
    return read_told(folder, name) if exists(join(folder, f"{name}.parquet")) else None


def read_told(folder: str, name: str) -> dict[str, Any]:
    """What `commit_shard` was told."""
    with open_to_read(join(folder, f"{name}.parquet")) as opened:
        return json.loads(pq.read_schema(opened).metadata[_TOLD])
