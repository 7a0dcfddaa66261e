"""Which rows of a plan a step draws: epochs, their permutations, and corpora mixed in given proportions. Pure.

- A plan's rows are those of its corpora one after another; a plan of text has one corpus. Draws are counted from 0, and
  a step draws the next `rows_per_batch` of them: no cursor, no end.
- Each draw belongs to one corpus, so that among any first n draws every corpus has its share of n to within one row per
  corpus. Each corpus walks through its own rows, epoch after epoch, each epoch a permutation of them.
- So a small corpus repeats only after all of it was shown, and none of a large one is left out for good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ringworld.errors import UserError

_SHARE_UNIT = 1_000_000


@dataclass(frozen=True)
class Corpus:
    """A run of a plan's rows: how many, and the share of the draws, above 0 and relative to the other corpora's."""

    name: str
    rows: int
    share: float = 1.0


def rows_at_step(step: int, rows_per_batch: int, corpora: Sequence[Corpus], seed: int) -> np.ndarray:
    """int64 [rows_per_batch]: the rows of the batch at a step, counted from 0.

    Raises UserError when a corpus has no rows.
    """
    if not corpora or min(corpus.rows for corpus in corpora) < 1:
        raise UserError("the packing plan has no rows; pack at least one document")
    owner, turn = draws([corpus.share for corpus in corpora], step * rows_per_batch, (step + 1) * rows_per_batch)
    rows = np.empty(rows_per_batch, np.int64)
    first = 0
    for number, corpus in enumerate(corpora):
        epoch, place = turn // corpus.rows, turn % corpus.rows
        for e in np.unique(epoch[owner == number]).tolist():
            here = (owner == number) & (epoch == e)
            # Another seed for each corpus: equal sizes must not mean equal permutations.
            rows[here] = first + row_order(corpus.rows, seed + number, e)[place[here]]
        first += corpus.rows
    return rows


def draws(shares: Sequence[float], first: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """For the draws first .. stop - 1: whose each is, and how many earlier ones the same corpus had. Both int64.

    The first corpus of share p takes draw n when floor((n + 1) p) > floor(n p); the next takes its part of the draws
    that are left, in the same way; the last takes the rest. Shares are rounded to a millionth and no two hosts can
    differ, since the arithmetic is that of integers.
    """
    parts = [max(1, round(share / sum(shares) * _SHARE_UNIT)) for share in shares]
    owner, turn = np.empty(stop - first, np.int64), np.empty(stop - first, np.int64)
    open_places, left = np.arange(stop - first), np.arange(first, stop)
    rest = sum(parts)
    for number, part in enumerate(parts):
        before = left * part // rest
        taken = (left + 1) * part // rest > before
        owner[open_places[taken]], turn[open_places[taken]] = number, before[taken]
        open_places, left = open_places[~taken], (left - before)[~taken]
        rest -= part
    return owner, turn


@lru_cache(maxsize=4)
def row_order(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """int64 [num_rows], read-only: the permutation of the rows in an epoch.

    Rows are sorted by SplitMix64 (Steele et al. 2014) of (seed, epoch, row): numpy does not promise that its own
    permutations stay the same from version to version, and a resumed run needs that.
    """
    key = _split_mix(_split_mix(np.array([seed % (1 << 64)], np.uint64)) ^ np.uint64(epoch))
    order = np.argsort(_split_mix(np.arange(num_rows, dtype=np.uint64) ^ key), kind="stable")
    order.setflags(write=False)
    return order


def _split_mix(value: np.ndarray) -> np.ndarray:
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
