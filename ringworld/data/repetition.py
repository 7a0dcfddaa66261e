"""How much of a text repeats itself: duplicate lines, paragraphs and word n-grams. Pure; numpy.

The measures are Gopher's (Rae et al. 2021, arXiv:2112.11446, table A1).

- A duplicate is what stood in the text before: its first occurrence does not count.
- The characters of an n-gram are those from its first word to its last, spaces included; a character that lies in
  several is counted once.
- Words are those of `ringworld.data.words`: in lower case, without punctuation.
- Meant for a window of at most 65,536 characters: in a longer text ever more n-grams come back by chance, and the
  thresholds, set on web pages, would lose their meaning.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ringworld.data.words import Words

TOP_NGRAMS = (2, 3, 4)
DUPLICATE_NGRAMS = (5, 6, 7, 8, 9, 10)
WINDOW = 1 << 16

_PARAGRAPHS = re.compile(r"\n(?:[ \t]*\n)+")
# The place of an n-gram shares a word with its hash, so that one sort brings equal ones together in order.
_PLACE = np.uint64(WINDOW - 1)
_BASE = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Repetition:
    """Of a window. lines and paragraphs: that are not blank. top: characters in the most frequent n-gram of 2, 3 and 4
    words, 0 where none comes twice. duplicate: characters in repeated n-grams of 5 to 10 words.
    """

    lines: int
    duplicate_lines: int
    duplicate_line_characters: int
    paragraphs: int
    duplicate_paragraphs: int
    duplicate_paragraph_characters: int
    top: tuple[int, ...]
    duplicate: tuple[int, ...]


def repetition(window: str, found: Words) -> Repetition:
    """found: the words of the window. ValueError for a longer text than `WINDOW`."""
    if len(window) > WINDOW:
        raise ValueError(f"{len(window)} characters: a window has at most {WINDOW}")
    lines = [line for line in window.split("\n") if line and not line.isspace()]
    paragraphs = [part for part in _PARAGRAPHS.split(window) if part and not part.isspace()]
    return Repetition(len(lines), *_duplicates(lines), len(paragraphs), *_duplicates(paragraphs), *_ngrams(found))


def _duplicates(parts: Sequence[str]) -> tuple[int, int]:
    """How many parts stood there before, and their characters."""
    unique = set(parts)
    return len(parts) - len(unique), sum(map(len, parts)) - sum(map(len, unique))


def _ngrams(found: Words) -> tuple[tuple[int, ...], tuple[int, ...]]:
    top, duplicate = [0] * len(TOP_NGRAMS), [0] * len(DUPLICATE_NGRAMS)
    hashes = found.hashes
    # An n-gram comes twice only where the one shorter by a word does: ever fewer places are left to look at.
    places = np.arange(len(found))
    for length in range(2, DUPLICATE_NGRAMS[-1] + 1):
        places = places[: np.searchsorted(places, len(found) - length + 1)]
        hashes = hashes[: len(places)] * _BASE + found.hashes[places + (length - 1)]
        packed = np.sort((hashes & ~_PLACE) | places.astype(np.uint64))
        equal = (packed[1:] ^ packed[:-1]) <= _PLACE
        if not equal.any():
            break
        ordered = (packed & _PLACE).astype(np.int64)
        if length in TOP_NGRAMS:
            begin, end = _longest_run(equal)
            top[TOP_NGRAMS.index(length)] = _characters(found.starts, found.ends, ordered[begin : end + 1], length)
        else:
            again = ordered[1:][equal]
            duplicate[DUPLICATE_NGRAMS.index(length)] = _characters(found.starts, found.ends, again, length)
        several = np.zeros(len(packed), bool)
        several[1:] |= equal
        several[:-1] |= equal
        keep = np.zeros(len(found), bool)
        keep[ordered[several]] = True
        chosen = keep[places]
        places, hashes = places[chosen], hashes[chosen]
    return tuple(top), tuple(duplicate)


def _longest_run(equal: np.ndarray) -> tuple[int, int]:
    """[begin, end): the first of the longest runs of True."""
    edges = np.diff(equal.view(np.int8), prepend=0, append=0)
    begins, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    longest = int(np.argmax(ends - begins))
    return int(begins[longest]), int(ends[longest])


def _characters(starts: np.ndarray, ends: np.ndarray, places: np.ndarray, length: int) -> int:
    """The characters that lie in an n-gram at one of these places."""
    covered = _within(len(starts), places, length)
    joined = _within(len(starts), places, length - 1)[:-1]
    gaps = starts[1:] - ends[:-1]
    return int((ends - starts)[covered].sum() + gaps[joined].sum())


def _within(size: int, places: np.ndarray, length: int) -> np.ndarray:
    """bool [size]: True from each place on, `length` long."""
    change = np.zeros(size + length + 1, np.int32)
    change[places] += 1
    np.subtract.at(change, places + length, 1)
    return np.cumsum(change)[:size] > 0
