"""Passages of benchmarks found in documents by their n-grams of words, and what to cut for them. Pure.

The scheme is GPT-3's (Brown et al. 2020, arXiv:2005.14165, appendix C): an n-gram of a benchmark that a document holds
is cut with a margin on both sides; pieces that are too short go too; a document in too many pieces is left out, and an
n-gram that stands in many documents is a common phrase, which says nothing about the benchmark. Added here: a document
of which the benchmarks hold too large a share is left out, and a text shorter than an n-gram is looked for whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ringworld.data.decisions import between
from ringworld.data.words import chunks, runs, words

_SNAP = 64  # characters that a cut may grow to reach a space


@dataclass(frozen=True)
class BenchmarkText:
    """line: of the file, from 1. whole: looked for as it is, however short, and never taken for a common phrase."""

    benchmark: str
    line: int
    text: str
    whole: bool = False


@dataclass(frozen=True, eq=False)
class Grams:
    """The different n-grams of benchmarks. All [grams], sorted by (length, hash).

    length uint8: words. hash uint64. text int64: the first text that holds it. start, end int64: characters there.
    whole bool. too_short: texts that give none.
    """

    length: np.ndarray
    hash: np.ndarray
    text: np.ndarray
    start: np.ndarray
    end: np.ndarray
    whole: np.ndarray
    too_short: int

    @classmethod
    def of(cls, texts: Sequence[BenchmarkText], length: int, shortest: int) -> Grams:
        """The n-grams of `length` words; a text of fewer words, but `shortest` or more, is one n-gram."""
        columns: list[tuple[np.ndarray, ...]] = [tuple(np.zeros(0, kind) for kind in _GRAM_TYPES)]
        too_short = 0
        for number, text in enumerate(texts):
            found = words(text.text)
            size = min(length, len(found))
            if size < (1 if text.whole else shortest):
                too_short += 1
                continue
            hashes = runs(found.hashes, size)
            many = len(hashes)
            starts, ends = found.starts[:many], found.ends[size - 1 :]
            columns.append(
                (np.full(many, size), hashes, np.full(many, number), starts, ends, np.full(many, text.whole))
            )
        joined = [
            np.concatenate(column).astype(kind)
            for column, kind in zip(zip(*columns, strict=True), _GRAM_TYPES, strict=True)
        ]
        order = np.lexsort((joined[3], joined[2], ~joined[5], joined[1], joined[0]))
        joined = [column[order] for column in joined]
        new = np.append(True, (np.diff(joined[0]) != 0) | (np.diff(joined[1]) != 0))[: len(order)]
        size, hashes, text, start, end, whole = (column[new] for column in joined)
        return cls(size, hashes, text, start, end, whole, too_short)

    def table(self) -> pa.Table:
        """What a `Matcher` needs: length, hash."""
        return pa.table({"length": self.length, "hash": self.hash})


_GRAM_TYPES = (np.uint8, np.uint64, np.int64, np.int64, np.int64, np.bool_)


@dataclass(frozen=True, eq=False)
class Matches:
    """gram int64: the number of the n-gram. start, end int64: where it stands in the text, in characters, in order."""

    gram: np.ndarray
    start: np.ndarray
    end: np.ndarray


class Matcher:
    """Finds the n-grams of `Grams.table()` in texts."""

    def __init__(self, grams: pa.Table) -> None:
        lengths, hashes = grams["length"].to_numpy(), grams["hash"].to_numpy()
        self._longest = int(lengths.max(initial=1))
        self._by_length = []
        for length in np.unique(lengths).tolist():
            first, end = np.searchsorted(lengths, [length, length + 1]).tolist()
            sorted_hashes = np.ascontiguousarray(hashes[first:end])
            # One look into a small table tells nearly all other n-grams apart.
            bits = int(np.clip(len(sorted_hashes).bit_length() + 5, 16, 27))
            known = np.zeros(1 << bits, bool)
            known[sorted_hashes >> np.uint64(64 - bits)] = True
            self._by_length.append((length, first, sorted_hashes, np.uint64(64 - bits), known))

    def find(self, text: str) -> Matches:
        found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = [_NONE]
        for part in chunks(text, overlap=self._longest - 1):
            for length, first, sorted_hashes, shift, known in self._by_length:
                hashes = runs(part.hashes, length)
                maybe = np.flatnonzero(known[hashes >> shift])
                at = np.searchsorted(sorted_hashes, hashes[maybe])
                same = sorted_hashes[np.minimum(at, len(sorted_hashes) - 1)] == hashes[maybe]
                place = maybe[same]
                found.append((at[same] + first, part.starts[place], part.ends[place + length - 1]))
        gram, start, end = (np.concatenate(column) for column in zip(*found, strict=True))
        # Those shorter than the longest can lie in the overlap of two chunks.
        order = np.lexsort((gram, end, start))
        gram, start, end = gram[order], start[order], end[order]
        new = np.append(True, (np.diff(start) != 0) | (np.diff(gram) != 0))[: len(order)]
        return Matches(gram[new], start[new], end[new])


_NONE = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))


@dataclass(frozen=True)
class CutRule:
    """margin: characters cut on both sides of an n-gram. shortest_piece: characters of a piece that is worth keeping.

    most_pieces: a document cut into more of them is left out; so is one of whose characters the n-grams, without their
    margins, hold a greater share than most_share.
    """

    margin: int = 200
    shortest_piece: int = 200
    most_pieces: int = 10
    most_share: float = 0.5


@dataclass(frozen=True)
class Cut:
    """start, end: characters. first: the place in the given matches of the first in the span. matches: how many."""

    start: int
    end: int
    first: int
    matches: int


@dataclass(frozen=True)
class Judged:
    """cuts: disjoint, ascending. reason: why nothing of the document is kept, else None. share: of its characters."""

    cuts: tuple[Cut, ...]
    share: float
    reason: str | None


def widened(text: str, matches: Matches, margin: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 [matches]: where the cut for each match begins and ends: the margin, and on to the next space if near."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    spaces = np.flatnonzero((points == 32) | (points == 10) | (points == 9))
    edges = np.concatenate([[-1], spaces, [len(text)]])
    left, right = np.maximum(matches.start - margin, 0), np.minimum(matches.end + margin, len(text))
    before = edges[np.searchsorted(edges, left, side="right") - 1] + 1
    before = np.where(left == 0, 0, before)
    after = edges[np.searchsorted(edges, right, side="left")]
    return (
        np.where(left - before <= _SNAP, np.minimum(before, left), left),
        np.where(after - right <= _SNAP, after, right),
    )


def judge(
    start: np.ndarray, end: np.ndarray, left: np.ndarray, right: np.ndarray, length: int, rule: CutRule
) -> Judged:
    """What to cut of a document of `length` characters. start, end, left, right: of its matches, ascending by start."""
    share = _covered(start, end) / max(1, length)
    cuts: list[Cut] = []
    for number in range(len(left)):
        begin, stop = int(left[number]), int(right[number])
        last = cuts[-1] if cuts else None
        if last and begin - last.end < rule.shortest_piece:
            cuts[-1] = Cut(last.start, max(last.end, stop), last.first, last.matches + 1)
        else:
            cuts.append(Cut(0 if last is None and begin < rule.shortest_piece else begin, stop, number, 1))
    if cuts and length - cuts[-1].end < rule.shortest_piece:
        last = cuts[-1]
        cuts[-1] = Cut(last.start, length, last.first, last.matches)
    pieces = len(list(between([(cut.start, cut.end) for cut in cuts], length)))
    reason = None
    if pieces == 0 or share > rule.most_share:
        reason = "held by a benchmark"
    elif pieces > rule.most_pieces:
        reason = "cut into too many pieces"
    return Judged(tuple(cuts), share, reason)


def _covered(start: np.ndarray, end: np.ndarray) -> int:
    """Characters in any of the spans, which are ascending by start."""
    reach = np.maximum.accumulate(end)
    before = np.concatenate([[0], reach[:-1]]) if len(end) else reach
    return int(np.maximum(0, reach - np.maximum(start, before)).sum())
