"""Files by path or URL: the few operations that this library needs, the same on a local folder and on gs://.

A place is a string: a local path, or a URL with a protocol that fsspec knows. Nothing here retries or caches: clients
of object stores try again by themselves, for about half a minute, and then raise.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import fsspec.config
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from ringworld.errors import UserError

# Other processes write to the same bucket: gcsfs would show its first listing of a folder for ever, to Orbax too.
fsspec.config.conf.setdefault("gs", {}).setdefault("use_listings_cache", False)
_BUFFER_BYTES = 1 << 18


class StorageSilent(Exception):
    """Object storage did not answer, or refused for now, however often its client asked.

    Not an OSError: nothing is wrong with the file, and whoever counts damaged files must not count it.
    """


def is_local(place: str) -> bool:
    """Whether a place is in reach of the operating system: there files can be appended to, and looked at often."""
    return "://" not in place


def absolute(place: str) -> str:
    """A local path made absolute, so that other processes read the same file; a URL unchanged."""
    return place if "://" in place else os.path.abspath(os.path.expanduser(place))


def join(place: str, *parts: str) -> str:
    return "/".join([place.rstrip("/"), *parts])


def open_to_read(place: str) -> BinaryIO:
    """Raises StorageSilent, now and when read, where it is not the file that is at fault."""
    filesystem, path = url_to_fs(place)
    if is_local(place):
        return cast(BinaryIO, filesystem.open(path, "rb"))
    with _told_apart(place):
        return cast(BinaryIO, io.BufferedReader(_Remote(place, filesystem.open(path, "rb")), _BUFFER_BYTES))


def open_to_write(place: str) -> BinaryIO:
    """The file at `place`, its folders made where the storage has folders; whole only once closed."""
    filesystem, path = url_to_fs(place)
    if "file" in filesystem.protocol:  # an object store has no folders
        os.makedirs(os.path.dirname(path), exist_ok=True)
    return cast(BinaryIO, filesystem.open(path, "wb"))


def read_bytes(place: str) -> bytes:
    with open_to_read(place) as file:
        return file.read()


def read_if_there(place: str) -> bytes | None:
    """The content of a file; None when there is none."""
    try:
        return read_bytes(place)
    except FileNotFoundError:
        return None


def write_bytes(place: str, data: bytes) -> None:
    with _told_apart(place), open_to_write(place) as file:
        file.write(data)


def write_whole(place: str, data: bytes) -> None:
    """Write a file, its folder too, that appears whole or not at all, over what was there."""
    if not is_local(place):  # an object appears when its upload has ended
        write_bytes(place, data)
        return
    partial = f"{place}.{secrets.token_hex(4)}.partial"
    write_bytes(partial, data)
    os.replace(partial, place)


def copy_file(place: str, target: str) -> None:
    """A small file: it passes through memory."""
    write_bytes(target, read_bytes(place))


def size_of(place: str) -> int | None:
    """Bytes of a file; None when there is none."""
    filesystem, path = url_to_fs(place)
    try:
        with _told_apart(place):
            return int(filesystem.info(path)["size"])
    except FileNotFoundError:
        return None


def exists(place: str) -> bool:
    """Whether there is a file, or a folder that holds some."""
    return size_of(place) is not None


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
    with _told_apart(place):
        return sorted(found[len(prefix) :] for found in filesystem.find(path) if found.startswith(prefix))


def list_folder(place: str) -> list[str]:
    """Sorted names of what lies in a folder, folders among it; empty when there is no such folder."""
    filesystem, path = url_to_fs(place)
    try:
        with _told_apart(place):
            found = filesystem.ls(path, detail=False)
    except FileNotFoundError:
        return []
    return sorted(name.rstrip("/").rpartition("/")[2] for name in found)


class _Remote(io.RawIOBase):
    """A file of an object store whose failures say what they are."""

    def __init__(self, place: str, file: Any) -> None:
        self._place, self._file = place, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _told_apart(self._place):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        with _told_apart(self._place):
            return self._file.read()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@contextlib.contextmanager
def _told_apart(place: str) -> Iterator[None]:
    """Failures of storage, told apart from failures of a file."""
    try:
        yield
    except Exception as error:
        if is_local(place) or place.startswith("file://") or not _of_storage(error):
            raise
        raise StorageSilent(f"{place}: storage does not answer ({type(error).__name__}: {error})") from error


def _of_storage(error: Exception) -> bool:
    if isinstance(error, (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError)):
        return False
    if getattr(error, "code", None) in (408, 429, 500, 502, 503, 504) or type(error).__module__.startswith("aiohttp"):
        return True
    # gcsfs says with a plain OSError that access is refused; all others are sockets that broke or stayed silent.
    return isinstance(error, OSError) and not str(error).startswith("Forbidden")
