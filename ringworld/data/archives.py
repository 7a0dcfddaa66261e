"""The files inside a .zip or a .tar, one after another, as streams. Nothing is ever unpacked to storage.

- A member is read once, in the order of the archive, before the next one is asked for; memory does not grow with their
  number or size (a .zip's own list of members is held, since it is how the format is read).
- What is no file inside the archive is refused by name: a path that leaves its root, a link, a device, a locked member.
- Folders, hidden members and macOS's copies of attributes are passed over, as in a folder of sources.
"""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import Any, BinaryIO

BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, NotImplementedError)  # what a damaged archive raises


@dataclass(frozen=True)
class Member:
    """name: the path inside the archive. bytes: unpacked, as the archive states. stream, or else reason and detail."""

    name: str
    bytes: int
    stream: Any
    reason: str | None = None
    detail: str = ""


def zip_members(file: BinaryIO) -> Iterator[Member]:
    """file: seekable. Raises one of `BROKEN` for an archive that is none."""
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.is_dir() or _passed_over(info.filename):
                continue
            # The upper half of the attributes is a Unix mode, of which the type of a link is 0o12.
            if refusal := _refusal(info.filename, link=info.external_attr >> 28 == 0o12, regular=True):
                yield Member(info.filename, info.file_size, None, *refusal)
            elif info.flag_bits & 1:
                yield Member(info.filename, info.file_size, None, "unreadable", "encrypted")
            else:
                with archive.open(info) as stream:
                    yield Member(info.filename, info.file_size, stream)


def tar_members(file: Any) -> Iterator[Member]:
    """file: anything with `read`; it is never sought. Raises one of `BROKEN` for an archive that is none."""
    with tarfile.open(fileobj=file, mode="r|") as archive:
        while (info := archive.next()) is not None:
            archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue] (it would keep all it has seen)
            if info.isdir() or _passed_over(info.name):
                continue
            if refusal := _refusal(info.name, link=info.issym() or info.islnk(), regular=info.isreg()):
                yield Member(info.name, info.size, None, *refusal)
            else:
                yield Member(info.name, info.size, archive.extractfile(info))


# Windows' paths have both kinds of slashes, and drives.


def _passed_over(name: str) -> bool:
    parts = PureWindowsPath(name).parts
    return "__MACOSX" in parts or any(part.startswith(".") and part != ".." for part in parts)


def _refusal(name: str, link: bool, regular: bool) -> tuple[str, str] | None:
    path = PureWindowsPath(name)
    if path.root or path.drive or ".." in path.parts:
        return "unsafe path", "leaves the archive"
    if link:
        return "unsafe path", "a link"
    return None if regular else ("unsafe path", "no file but a device or a pipe")
