"""Does a file of video end before its container says that it does? Told by the sizes that the container states.

FFmpeg gives what it finds and takes the end of a file for the end of the video. Of an mp4 the packets tell (one is
short, or fewer come than the index has); Matroska (WebM) and AVI state in their first bytes how long the file is, and a
GIF is a chain of blocks with an end.
"""

from __future__ import annotations

from typing import BinaryIO

_HEAD = 4096
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def missing_bytes(file: BinaryIO) -> int:
    """At least how many bytes a Matroska, AVI or GIF file lacks at its end. Leaves the file at its beginning.

    0 for other files, and for live recordings, which state no size.
    """
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(_HEAD)
    file.seek(0)
    if head[:4] == b"RIFF":
        return max(0, 8 + int.from_bytes(head[4:8], "little") - size)
    if head[:4] == _EBML:
        return max(0, _matroska_end(head) - size)
    if head[:4] == b"GIF8":
        missing = _gif_end(file) - size
        file.seek(0)
        return max(0, missing)
    return 0


def _matroska_end(head: bytes) -> int:
    """Where the segment ends, which follows the header at once (RFC 8794 has the form of sizes); 0 where unknown."""
    header = _size(head, 4)
    if header is None:
        return 0
    begin = header[0] + header[1]
    if head[begin : begin + 4] != _SEGMENT:
        return 0
    segment = _size(head, begin + 4)
    return 0 if segment is None else segment[0] + segment[1]


def _size(head: bytes, at: int) -> tuple[int, int] | None:
    """(where the element's content begins, its bytes); None where it is not stated or not here."""
    if at >= len(head) or head[at] == 0:
        return None
    length = 9 - head[at].bit_length()
    value = int.from_bytes(head[at : at + length], "big") & (1 << 7 * length) - 1
    return None if value == (1 << 7 * length) - 1 else (at + length, value)


def _gif_end(file: BinaryIO) -> int:
    """Where the block that closes a GIF ends, or how far it must reach for its blocks to be whole (GIF89a)."""
    file.seek(10)
    at = 13 + _palette(file.read(1))
    while True:
        file.seek(at)
        block = file.read(10)
        if block[:1] == b"\x21":  # an extension: a label, then parts
            at += 2
        elif block[:1] == b"\x2c":  # a picture: its place, a palette, the size of codes, then parts
            at += 11 + _palette(block[9:])
        else:  # the end, or what decoders take for it
            return at + 1
        file.seek(at)
        while (length := file.read(1)) not in (b"", b"\0"):
            at = file.seek(length[0], 1)
        at += 1
        if not length:
            return at


def _palette(flags: bytes) -> int:
    return 3 * 2 ** ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0
