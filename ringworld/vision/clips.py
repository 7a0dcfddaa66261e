"""A clip: one image or video, where its bytes lie, and what is said about it. Values only; nothing is read here.

A clip is named by its place alone: a path or URL, `!member` of an archive, `#row` of a table or of a file of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from ringworld.data.conversations import Turn

Kind = Literal["image", "video"]

SUFFIXES: Mapping[str, Kind] = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"), "image"),
    **dict.fromkeys((".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif"), "video"),
}
Content = bytes | str  # of a file: its bytes, or where they lie


@dataclass(frozen=True)
class Clip:
    """name: unique among all clips of a run. kind: by its name; a GIF of one picture is found out when it is read.

    place: the path or URL of the file that holds it. member: of an archive, its name; of a table, `column#row` with
    rows from 1. caption or conversation, whichever the source has; neither where it has none. license: as the source
    states it. split_key: clips of one key are held out together; None: a clip goes by its own content.
    """

    name: str
    kind: Kind
    place: str
    member: str | None = None
    caption: str | None = None
    conversation: tuple[Turn, ...] = ()
    license: str | None = None
    split_key: str | None = None


@dataclass(frozen=True)
class Missed:
    """What a source names and what is no clip: a reason that is counted, and what exactly was found."""

    name: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class SourceOptions:
    """media, caption: names of the field or column, the first that a row has. root: the folder that paths in rows are
    relative to; None: that of the file of rows. max_bytes: of an image or video that is held in memory, and of a row.
    """

    media: tuple[str, ...] = ("file_name", "image", "video", "path", "file", "jpg", "png", "webp", "mp4", "bytes")
    caption: tuple[str, ...] = ("caption", "text", "txt")
    root: str | None = None
    max_bytes: int = 1 << 29


def kind_by_name(name: str) -> Kind | None:
    """By the suffix; None for a name that is neither an image's nor a video's."""
    return SUFFIXES.get(PurePosixPath(name.lower()).suffix)


def kind_by_bytes(head: bytes) -> Kind:
    """By the first 12 bytes: mp4 and its kin, Matroska, AVI and GIF may hold videos; anything else can be no video."""
    video = head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip") or head[:4] == b"\x1a\x45\xdf\xa3"
    return "video" if video or head[:4] == b"GIF8" or (head[:4] == b"RIFF" and head[8:12] == b"AVI ") else "image"
