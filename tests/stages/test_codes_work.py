"""A shard that was committed is not made again, though nobody was told."""

from __future__ import annotations

from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pyarrow as pa

from stages.codes_work import ROWS, Done, Shard, Worker
from stages.shards import commit_shard


def test_what_a_worker_committed_before_it_died_is_taken(tmp_path):
    done = Done(clips=2, refused=1, frames=6, tokens=40, decoding=0.5, encoding=0.25, waiting=0.0)
    commit_shard(str(tmp_path), "000002", pa.Table.from_pylist([], ROWS), asdict(done))
    worker: Any = Worker()
    worker._job = SimpleNamespace(shards=str(tmp_path))  # and no encoder: it could not make one
    assert worker.encode(Shard(2, pa.table({}))) == done
