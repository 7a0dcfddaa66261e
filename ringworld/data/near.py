"""Which documents are near duplicates, and which of them stay. Pure; tables and arrays, never text.

A document is a number. Pairs are found bucket by bucket, in any order; who stays is decided on all pairs at once:
documents are taken from the longest to the shortest, of equals the one with the smallest source name first, and each
that is not yet dropped stays and drops every document paired with it. So a dropped document is always similar to
one that stays, no pair stays whole, and a chain of small changes does not take its far end along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ringworld.data.minhash import similarity

_LEADERS = 64  # of a bucket: the others are compared with its longest documents only
_BLOCK = 1 << 18  # pairs compared at a time


@dataclass(frozen=True, eq=False)
class Pairs:
    """first, second: int64 [pairs], first < second, each pair once, ascending. similarity: float64 [pairs]."""

    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray, similarity: np.ndarray) -> Pairs:
        """From pairs in any order, in either direction, some of them repeated."""
        low, high = np.minimum(first, second), np.maximum(first, second)
        order = np.lexsort((high, low))
        low, high = low[order], high[order]
        new = np.append(True, (np.diff(low) != 0) | (np.diff(high) != 0))[: len(low)]
        return cls(low[new], high[new], similarity[order][new])


@dataclass(frozen=True, eq=False)
class Verdict:
    """Of documents that are paired: `document` int64 [paired], ascending, and for each the one it is dropped for.

    kept: int64 [paired], the document that stays instead, or itself. similarity: to that one; 1 for itself.
    cluster: int64 [paired], the smallest document that pairs lead to.
    """

    document: np.ndarray
    kept: np.ndarray
    similarity: np.ndarray
    cluster: np.ndarray


def similar_pairs(rows: pa.Table, threshold: float) -> Pairs:
    """Documents that share a band and are estimated to be at least `threshold` alike.

    rows: band uint64, document int64, bytes int64, low: fixed-size binary (see `minhash.low_bytes`). In a bucket of
    more than 64 documents each is compared with the 64 longest, which bounds the work.
    """
    band, document, size = (rows[name].to_numpy() for name in ("band", "document", "bytes"))
    order = np.lexsort((document, -size, band))
    band, document = band[order], document[order]
    low = _bytes_of(rows["low"])
    begins = np.flatnonzero(np.append(True, band[1:] != band[:-1])[: len(band)])
    sizes = np.diff(begins, append=len(band))
    begin = np.repeat(begins, sizes)
    members = np.flatnonzero(np.repeat(sizes, sizes) > 1)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for leader in range(_LEADERS):
        members = members[members - begin[members] > leader]
        if not len(members):
            break
        leaders = begin[members] + leader
        alike = np.concatenate(
            [
                similarity(low[order[leaders[at : at + _BLOCK]]], low[order[members[at : at + _BLOCK]]])
                for at in range(0, len(members), _BLOCK)
            ]
        )
        close = alike >= threshold
        found.append((document[leaders[close]], document[members[close]], alike[close]))
        members = members[alike < 1]  # the same set as the leader's: what it is like, the leader is like
    first, second, alike = (np.concatenate(column) for column in zip(*found, strict=True)) if found else _NONE
    return Pairs.of(first, second, alike)


def decide(pairs: Pairs, sizes: Sequence[int] | np.ndarray, sources: Sequence[str]) -> Verdict:
    """Who stays. sizes, sources: of each document, in the order of `np.unique` of all that are paired."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    document, place = np.unique(np.concatenate([pairs.first, pairs.second]), return_inverse=True)
    number, many = len(document), len(pairs.first)
    first, second = place[:many], place[many:]
    rank = np.empty(number, np.int64)
    rank[sorted(range(number), key=lambda one: (-sizes[one], sources[one]))] = np.arange(number)
    # Each pair from the one that goes first to the one that comes later, in the order in which they are met.
    earlier = np.where(rank[first] < rank[second], first, second)
    later = first + second - earlier
    order = np.lexsort((rank[later], rank[earlier]))
    kept, alike = np.arange(number), np.ones(number)
    dropped = np.zeros(number, bool)
    for one, other, value in zip(
        earlier[order].tolist(), later[order].tolist(), pairs.similarity[order].tolist(), strict=True
    ):
        if not dropped[one] and not dropped[other]:
            dropped[other], kept[other], alike[other] = True, one, value
    _, label = connected_components(coo_array((np.ones(many), (first, second)), (number, number)), directed=False)
    smallest = np.full(number, number)
    np.minimum.at(smallest, label, np.arange(number))
    return Verdict(document, document[kept], alike, document[smallest[label]])


_NONE = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))


def _bytes_of(column: pa.ChunkedArray) -> np.ndarray:
    """uint8 [rows, width] of a column of fixed-size binary."""
    width = column.type.byte_width
    parts = [
        np.frombuffer(part.buffers()[1], np.uint8, len(part) * width, part.offset * width)
        for part in column.chunks
        if len(part)
    ]
    return np.concatenate(parts).reshape(-1, width) if parts else np.zeros((0, width), np.uint8)
