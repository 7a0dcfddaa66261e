"""Files by path or URL: the few operations that the data code needs, the same on a local folder and on gs://.

A place is a string: a local path, or a URL with a protocol that fsspec knows. Nothing here retries or caches.
"""

from __future__ import annotations

import json
import os
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from ringworld.errors import UserError


def absolute(place: str) -> str:
    """A local path made absolute, so that other processes read the same file; a URL unchanged."""
    return place if "://" in place else os.path.abspath(os.path.expanduser(place))


def join(place: str, *parts: str) -> str:
    return "/".join([place.rstrip("/"), *parts])


def open_to_read(place: str) -> BinaryIO:
    filesystem, path = url_to_fs(place)
    return cast(BinaryIO, filesystem.open(path, "rb"))


def open_to_write(place: str) -> BinaryIO:
    """The file at `place`, its folders made where the storage has folders; whole only once closed."""
    filesystem, path = url_to_fs(place)
    filesystem.makedirs(filesystem._parent(path), exist_ok=True)
    return cast(BinaryIO, filesystem.open(path, "wb"))


def read_bytes(place: str) -> bytes:
    with open_to_read(place) as file:
        return file.read()


def write_bytes(place: str, data: bytes) -> None:
    with open_to_write(place) as file:
        file.write(data)


def read_json(place: str) -> Any:
    """UserError naming the file when it is missing or is no JSON."""
    try:
        return json.loads(read_bytes(place))
    except FileNotFoundError:
        raise UserError(f"{place} does not exist; make the stage that writes it first") from None
    except ValueError as wrong:
        raise UserError(f"{place} is no JSON ({wrong}); it was cut short or changed: make its stage again") from wrong


def write_json(place: str, value: Any) -> None:
    write_bytes(place, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_table(place: str, columns: list[str] | None = None) -> pa.Table:
    with open_to_read(place) as file:
        return pq.read_table(file, columns=columns)


def write_table(place: str, table: pa.Table) -> None:
    """A Parquet file; its bytes are the same for the same table, so a repeated task overwrites with the same file."""
    with open_to_write(place) as file:
        pq.write_table(table, file, compression="zstd")


def list_files(place: str) -> list[str]:
    """Every file below a folder, as sorted paths relative to it; empty when there is no such folder."""
    filesystem, path = url_to_fs(place)
    prefix = path.rstrip("/") + "/"
    return sorted(found[len(prefix) :] for found in filesystem.find(path) if found.startswith(prefix))
