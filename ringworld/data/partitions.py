"""A shuffle through storage: rows of many files that belong together, brought together a partition at a time.

Each writer puts its rows into Arrow files, with a record batch for each partition, whether it has rows or not. Who
wants a partition reads that one batch of every file. So there are few files, a reader's memory is that of its
partition, and a repeated writer overwrites its own files with the same rows.
"""

from __future__ import annotations

from types import TracebackType

import numpy as np
import pyarrow as pa
from fsspec.core import url_to_fs

from ringworld.data.files import join, list_files, open_to_read, open_to_write

_TARGET_BYTES = 1 << 26  # of a partition
_LEAST, _MOST = 4, 4096
_HELD_BYTES = 1 << 27  # by a writer


def partitions_for(size: float) -> int:
    """How many partitions bring `size` bytes together: decided by the data alone, never by the number of workers."""
    return int(np.clip(np.ceil(size / _TARGET_BYTES), _LEAST, _MOST))


class PartitionWriter:
    """Rows into files of `folder` whose names begin with `name`, by the value of the uint64 column `key`.

    Values of `key` are well mixed; rows of equal values get to one partition. Written when closed without an exception.
    """

    def __init__(self, folder: str, name: str, partitions: int, schema: pa.Schema, key: str) -> None:
        self._place = join(folder, name)
        self._partitions, self._schema, self._key = partitions, schema, key
        self._held: list[pa.Table] = []
        self._bytes = self._files = 0

    def __enter__(self) -> PartitionWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if kind is None:
            self._flush()

    def add(self, rows: pa.Table) -> None:
        """Keep some rows, and write what is kept once it is much."""
        if rows.num_rows:
            self._held.append(rows)
            self._bytes += rows.nbytes
        if self._bytes > _HELD_BYTES:
            self._flush()

    def _flush(self) -> None:
        rows = pa.concat_tables([*self._held, self._schema.empty_table()])
        partition = (rows[self._key].to_numpy() % np.uint64(self._partitions)).astype(np.int64)
        ends = np.cumsum(np.bincount(partition, minlength=self._partitions)).tolist()
        rows = rows.take(np.argsort(partition, kind="stable")).combine_chunks()
        place = f"{self._place}-{self._files:06d}.arrow"
        with open_to_write(place) as file, pa.ipc.new_file(file, self._schema) as writer:
            for begin, end in zip([0, *ends], ends, strict=False):
                batches = rows.slice(begin, end - begin).to_batches()
                writer.write_batch(batches[0] if batches else pa.RecordBatch.from_pylist([], self._schema))
        self._held, self._bytes, self._files = [], 0, self._files + 1


def read_partition(folder: str, partition: int) -> pa.Table:
    """The rows of one partition in all files of the folder, in the order of their names and, in each, of its rows."""
    batches = []
    for name in list_files(folder):
        with open_to_read(join(folder, name)) as file:
            batches.append(pa.ipc.open_file(pa.PythonFile(file, mode="r")).get_batch(partition))
    return pa.Table.from_batches(batches)


def discard(folder: str) -> None:
    """Remove a folder whose readers are done, where there is one."""
    filesystem, path = url_to_fs(folder)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)
