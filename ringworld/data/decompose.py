"""Dataset Decomposition: rows that hold one document each, of many lengths, short ones in large batches.

After Pouransari et al. (arXiv:2405.13226): a document is cut into parts whose lengths are powers of two, the longest
first, so every row is full, nothing in it is of another document, and attention costs what documents are long. A step
has rows of one length, as many as fit its tokens. What is left of a document below the least length is not dropped, as
there, but packed into rows of that length with others.

`odds` and `cycles` make it a curriculum. The paper's Grow-P2 is odds 2: at any moment of a cycle a step of some rows is
twice as likely as one of rows twice as long, until they are used up; its best runs have several cycles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ringworld.data.packing import Slices
from ringworld.data.token_store import TokenIndex
from ringworld.errors import UserError


@dataclass(frozen=True)
class Decompose:
    """least: slots of the shortest rows, a power of two; 0: no decomposition, all rows as long as the stage's.

    cycles, odds: see the file. odds 1: in any order.
    """

    least: int = 0
    cycles: int = 8
    odds: float = 2.0

    def __post_init__(self) -> None:
        if self.least < 0 or self.least & (self.least - 1):
            raise UserError(f"decompose.least={self.least}: a power of two, such as 512")
        if self.cycles < 1 or not self.odds > 0:
            raise UserError(f"decompose.cycles={self.cycles}, odds={self.odds}: 1 cycle or more, odds above 0")


def check_decompose(how: Decompose, sequence: int) -> None:
    """UserError where a stage's rows have no power of two from `least` to `sequence`."""
    if how.least and (sequence & (sequence - 1) or how.least > sequence):
        raise UserError(f"decompose.least={how.least} with sequence={sequence}: both powers of two, least no larger")


def decomposed(index: TokenIndex, documents: np.ndarray, least: int, sequence: int) -> Mapping[int, Slices]:
    """By the slots of a row, ascending: the slices that fill one, and with the least length also the rests.

    Every pair of these documents (int64) is in one slice.
    """
    pairs = index.tokens[documents] - 1
    begin = np.zeros(len(documents), np.int64)
    found = {}
    size = sequence
    while size >= least:
        # Of the longest length any number, of each shorter one at most one.
        count = (pairs - begin) // size
        turn = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        found[size] = (np.repeat(documents, count), np.repeat(begin, count) + turn * size, np.full(len(turn), size))
        begin = begin + count * size
        size //= 2
    rest = pairs - begin
    left = rest > 0
    found[least] = tuple(
        np.concatenate(pair) for pair in zip(found[least], (documents[left], begin[left], rest[left]), strict=True)
    )
    return {size: Slices(*found[size]) for size in sorted(found) if len(found[size][0])}
