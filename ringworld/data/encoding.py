"""Bytes to text: which encoding, or none because the file is binary.

In order: a byte order mark, UTF-16 without a mark, UTF-8, the encoding that the file declares, UTF-8 with a few broken
bytes, UTF-8 mixed with Western text in another encoding, and what charset_normalizer finds in a sample. The sample is
of bounded size, since detection is slow, and made of the places that are not ASCII, since nothing else tells encodings
apart.
"""

from __future__ import annotations

import codecs

import numpy as np

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_HEAD = 1 << 16
_WINDOW = 2048
_WINDOWS = 16
_BINARY_SIGNATURES = (b"%PDF-", b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd")
_MAX_CONTROL_SHARE = 0.01
_MAX_BROKEN_SHARE = 0.01
_MIN_MIXED_SHARE = 0.4  # of what is not ASCII; in encodings of Asia up to a third looks like UTF-8 by chance

# C0 controls that text files do hold: backspace, tab, newline, vertical tab, form feed, return, Ctrl-Z, escape.
_CONTROL = np.zeros(256, bool)
_CONTROL[:32] = True
_CONTROL[[8, 9, 10, 11, 12, 13, 26, 27]] = False


def looks_binary(head: bytes) -> bool:
    """Whether the first bytes of a file (64 KiB are enough) are of no text in any encoding."""
    if any(head.startswith(mark) for mark, _ in _MARKS):
        return False
    if head.startswith(_BINARY_SIGNATURES):
        return True
    sample = np.frombuffer(head[:_HEAD], np.uint8)
    return sample.size > 0 and float(_CONTROL[sample].mean()) > _MAX_CONTROL_SHARE and _utf16(head) is None


def decode(data: bytes, declared: str | None = None) -> str | None:
    """The text of a file, without its byte order mark; None for a binary file or an encoding that nobody recognises.

    declared: the encoding that the file itself claims (HTML's meta charset), believed when it decodes without errors.
    Time and memory are linear in the size of data, with a bounded cost for detection.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return str(memoryview(data)[len(mark) :], encoding, "replace")
    if looks_binary(data[:_HEAD]):
        return None
    for encoding in filter(None, (_utf16(data), "utf-8", declared)):
        if (text := _strictly(data, encoding)) is not None:
            return text
    return _mostly_utf8(data) or _mixed(data) or _detected(data)


def _strictly(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        return None


def _utf16(data: bytes) -> str | None:
    """UTF-16 without a mark: of Latin text, nearly every second byte is 0."""
    head = np.frombuffer(data[: _HEAD & -2], np.uint8)
    if head.size < 16:
        return None
    zeros_even, zeros_odd = float((head[::2] == 0).mean()), float((head[1::2] == 0).mean())
    if zeros_odd > 0.4 and zeros_even < 0.01:
        return "utf-16-le"
    if zeros_even > 0.4 and zeros_odd < 0.01:
        return "utf-16-be"
    return None


def _mostly_utf8(data: bytes) -> str | None:
    """UTF-8 with a few broken bytes, each U+FFFD; None when too many of its non-ASCII characters are broken."""
    text = data.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    characters = np.frombuffer(data, np.uint8)
    # Continuation bytes are 10xxxxxx: all other bytes from 0x80 up begin a character.
    begun = int(np.count_nonzero(characters >= 0xC0))
    return text if broken <= _MAX_BROKEN_SHARE * begun else None


def _mixed(data: bytes) -> str | None:
    """Files joined from several: what is UTF-8 as such, every other byte as cp1252; None where little is UTF-8."""
    text = data.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    whole = len(text) - len(text.encode("ascii", "ignore")) - broken
    return data.decode("utf-8", _WESTERN) if whole > _MIN_MIXED_SHARE * (whole + broken) else None


def _as_western(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return error.object[error.start : error.end].decode("cp1252", "replace"), error.end


_WESTERN = "ringworld.western"
codecs.register_error(_WESTERN, _as_western)


def _detected(data: bytes) -> str | None:
    from charset_normalizer import from_bytes

    sample = _sample(data)
    best = from_bytes(sample).best()
    if best is None:
        return None
    encoding = best.encoding
    # Western text fits Central European and Baltic code pages about as well: near a tie the commonest one is right.
    western = from_bytes(sample, cp_isolation=["cp1252"]).best()
    if western and western.chaos < best.chaos + 0.02 and western.coherence > best.coherence - 0.1:
        encoding = "cp1252"
    if (text := _strictly(data, encoding)) is not None:
        return text
    return data.decode("latin-1" if encoding == "cp1252" else encoding, "replace")


def _sample(data: bytes) -> bytes:
    """Up to 64 KiB: lines that hold non-ASCII bytes, evenly spread over the file."""
    places = np.flatnonzero(np.frombuffer(data, np.uint8) >= 0x80)
    chosen = places[np.linspace(0, len(places) - 1, min(len(places), _WINDOWS)).astype(np.int64)]
    windows, end = [], 0
    for place in chosen.tolist():
        if place < end:
            continue
        begin = _edge(data, max(end, place - _WINDOW), place, first=True)
        end = _edge(data, place, min(len(data), place + _WINDOW), first=False)
        windows.append(data[begin:end])
    return b"\n".join(windows)


def _edge(data: bytes, begin: int, end: int, first: bool) -> int:
    """Where to cut in [begin, end], outermost: a newline, else a space (never half of a character), else anywhere."""
    for edge in (b"\n", b" "):
        found = data.find(edge, begin, end) if first else data.rfind(edge, begin, end)
        if found >= 0:
            return found
    return begin if first else end
