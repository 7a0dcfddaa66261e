"""A text as hashed words with their places in it, and runs of words as one hash each. Pure numpy, no loop over words.

What deduplication, decontamination and the chaining of related documents mean by a word:
- a run of letters, digits and their combining marks, of any script, in lower case; punctuation and spaces end it.
- In scripts written without spaces each letter is a word.
- For code, with `marks`, each punctuation character is a word too: `a + b` is not `a - b`.

A hash is a function of the word alone: the same on any machine, in any process, wherever the word stands. A text is
hashed in chunks, so memory beyond the result does not grow with it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_CHUNK = 1 << 16  # characters: the arrays of a chunk stay in a core's cache
_KNOWN = 0x30000  # code points above are ideographs, or rare enough to be taken for them
_SPACE, _LETTER, _ALONE, _MARK = range(4)
# Ideographs, kana, and the scripts of South-East Asia that put no spaces between words.
_UNSPACED = (
    (0x0E00, 0x0F00),
    (0x1000, 0x10A0),
    (0x1780, 0x1800),
    (0x3040, 0x3100),
    (0x3400, 0x4DC0),
    (0x4E00, 0xA000),
    (0xF900, 0xFB00),
    (0x20000, _KNOWN),
)
# Odd, so that they have inverses modulo 2^64.
_LETTER_BASE = 0x9E3779B97F4A7C15
_WORD_BASE = 0xD6E8FEB86659FD93
_WRAP = 1 << 64


@dataclass(frozen=True, eq=False)
class Words:
    """hashes uint64 [words]; starts and ends int64 [words]: each word is text[start:end], in order."""

    hashes: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.hashes)


def words(text: str, marks: bool = False) -> Words:
    """All words of a text. For texts of any length use `chunks`: this takes 24 bytes a word."""
    parts = list(chunks(text, marks=marks))
    return Words(
        *(np.concatenate(column) for column in zip(*((p.hashes, p.starts, p.ends) for p in parts), strict=True))
    )


def chunks(text: str, overlap: int = 0, marks: bool = False) -> Iterator[Words]:
    """The words of a text in order, some thousands at a time; at least one chunk, which may be empty.

    overlap: every chunk but the first begins with the last so many words of those before, so that with overlap k - 1
    each run of k words lies whole in exactly one chunk.
    """
    kept: Words | None = None
    begin = 0
    while True:
        end = _boundary(text, begin + _CHUNK)
        found = _hashed(text[begin:end], begin, marks)
        if kept is not None and len(kept):
            found = Words(
                np.concatenate([kept.hashes, found.hashes]),
                np.concatenate([kept.starts, found.starts]),
                np.concatenate([kept.ends, found.ends]),
            )
        yield found
        if end >= len(text):
            return
        tail = slice(max(0, len(found) - overlap), None)
        kept = Words(found.hashes[tail], found.starts[tail], found.ends[tail])
        begin = end


def runs(hashes: np.ndarray, length: int) -> np.ndarray:
    """uint64 [max(0, words - length + 1)]: the hash of each run of `length` words, whose order counts.

    Runs are doubled, so the cost is that of the logarithm of the length.
    """
    if length < 1:
        raise ValueError(f"length={length}: a run has 1 word or more")
    made, size = np.zeros(max(0, len(hashes) - length + 1), np.uint64), 0
    power, power_size = hashes, 1  # runs of a power of two of words
    while True:
        if length & power_size:
            made = made * np.uint64(pow(_WORD_BASE, power_size, _WRAP)) + power[size : size + len(made)]
            size += power_size
        if size == length:
            return mixed(made)
        shorter = max(0, len(power) - power_size)
        power = power[:shorter] * np.uint64(pow(_WORD_BASE, power_size, _WRAP)) + power[power_size:][:shorter]
        power_size *= 2


def mixed(values: np.ndarray) -> np.ndarray:
    """uint64: a bijection that spreads every bit over all (the finaliser of SplitMix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _boundary(text: str, near: int) -> int:
    """The end of a chunk: at `near` or a little before it, where no word is cut unless it is very long."""
    if near >= len(text):
        return len(text)
    for end in range(near, near - 256, -1):
        if not text[end - 1].isalnum() and text[end - 1].isascii():
            return end
    return near


def _hashed(text: str, offset: int, marks: bool) -> Words:
    """The hash of a word is that of the polynomial of its letters: a difference of prefix sums, shifted to place 0."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    classes, lower = _tables()
    kind = classes.take(points, mode="clip")
    if not marks:
        kind = np.where(kind == _MARK, _SPACE, kind)
    letter, alone = kind == _LETTER, kind >= _ALONE
    inside = np.zeros(len(points) + 2, bool)
    inside[1:-1] = letter
    starts = np.flatnonzero((letter & ~inside[:-2]) | alone)
    ends = np.flatnonzero((letter & ~inside[2:]) | alone) + 1
    folded = np.where(points < _KNOWN, lower.take(points, mode="clip"), points).astype(np.uint64) + np.uint64(1)
    powers, inverses = _powers()
    sums = np.zeros(len(points) + 1, np.uint64)
    np.cumsum(folded * powers[: len(points)], out=sums[1:])
    return Words(mixed((sums[ends] - sums[starts]) * inverses[starts]), starts + offset, ends + offset)


@lru_cache(maxsize=1)
def _powers() -> tuple[np.ndarray, np.ndarray]:
    """uint64 [chunk]: the powers 0, 1, ... of the base modulo 2^64, and of its inverse."""

    def powers(base: int) -> np.ndarray:
        factors = np.full(_CHUNK, base, np.uint64)
        factors[0] = 1
        return np.cumprod(factors)

    return powers(_LETTER_BASE), powers(pow(_LETTER_BASE, -1, _WRAP))


@lru_cache(maxsize=1)
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """By code point: its class (uint8), and its lower case where that is one code point (uint32)."""
    classes, lower = np.empty(_KNOWN, np.uint8), np.arange(_KNOWN, dtype=np.uint32)
    for point in range(_KNOWN):
        category = unicodedata.category(chr(point))
        if category[0] in "LNM":
            classes[point] = _LETTER
        else:
            classes[point] = _MARK if category[0] in "PS" else _SPACE
        if category in ("Lu", "Lt") and len(small := chr(point).lower()) == 1:
            lower[point] = ord(small)
    for first, end in _UNSPACED:
        area = classes[first:end]
        area[area == _LETTER] = _ALONE
    classes[-1] = _ALONE  # what lies above is clipped to it
    return classes, lower
