"""Which rows of a plan a step draws: epochs, shares, steps of one row length, and rows of equal work. Pure.

- A plan's rows are those of its corpora one after another. Every step draws rows of one length, as many as fit its
  tokens; corpora of one length share its steps. Draws are counted from 0: no cursor, no end.
- Among any first n steps every length has its share of n, and among any first draws of a length every corpus its share,
  to within one. Each corpus walks through its own rows, epoch after epoch, each epoch another order of them: so a small
  corpus repeats only after all of it was shown, and none of a large one is left out for good.
- The rows that one step draws of a corpus have nearly the same attention to compute: an epoch's shuffled rows are
  sorted by work inside windows of some steps, cut into the runs that steps draw, and the runs shuffled. However many
  ranks share the step's rows, none then waits long for another. (ProLong, arXiv:2410.02660, sorts by length.)
- Where rows differ in length, steps of short rows may come early and long ones late, several times over: the curriculum
  of Dataset Decomposition (arXiv:2405.13226).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ringworld.errors import UserError

_SHARE_UNIT = 1_000_000


@dataclass(frozen=True)
class Corpus:
    """A run of a plan's rows: how many, the share of the slots that are drawn, above 0 and relative to the other
    corpora's, and the slots of each row."""

    name: str
    rows: int
    share: float
    sequence: int


@dataclass(frozen=True)
class Schedule:
    """In which order steps draw rows.

    window: steps whose rows of a corpus are sorted by work; 1: as they were shuffled.
    cycle: steps of a round of the curriculum over row lengths. odds: in it, how much likelier a step of rows half as
    long comes before one of longer rows; 1: any order, below 1: the longer ones first.
    """

    window: int = 1
    cycle: int = 1
    odds: float = 1.0

    def __post_init__(self) -> None:
        if self.window < 1 or self.cycle < 1:
            raise UserError(f"window={self.window}, cycle={self.cycle}: both are counted in steps, 1 or more")
        if not (math.isfinite(self.odds) and self.odds > 0):
            raise UserError(f"odds={self.odds}: a number above 0, such as 2")


class Order:
    """The rows of every step of a plan. A value: nothing in it changes but what it keeps from computing again."""

    def __init__(
        self, corpora: Sequence[Corpus], work: np.ndarray, batch_tokens: int, seed: int, schedule: Schedule
    ) -> None:
        """work: int64 [rows], the attention of each row. batch_tokens: of a step.

        Raises UserError when a corpus has no rows, or a step no whole number of some rows.
        """
        if not corpora or min(corpus.rows for corpus in corpora) < 1:
            raise UserError("the packing plan has no rows; pack at least one document")
        self.schedule, self.seed = schedule, seed
        firsts = np.cumsum([0, *(corpus.rows for corpus in corpora)])
        lengths = sorted({corpus.sequence for corpus in corpora})
        for sequence in lengths:
            if batch_tokens % sequence:
                raise UserError(
                    f"batch_tokens={batch_tokens} is not a multiple of the plan's rows of {sequence} tokens; "
                    f"the nearest is {max(1, round(batch_tokens / sequence)) * sequence}"
                )
        self._groups = [
            _Group(
                [
                    (number, corpus, int(firsts[number]))
                    for number, corpus in enumerate(corpora)
                    if corpus.sequence == s
                ],
                work,
                batch_tokens // s,
                seed,
                schedule.window,
            )
            for s in lengths
        ]
        self._shares = tuple(sum(share for *_, share in group.shares) for group in self._groups)
        self._cycle = lru_cache(maxsize=4)(self._cycle_steps)

    def sequence_at(self, step: int) -> int:
        """Slots of the rows of a step."""
        return self._groups[self._at(step)[0]].sequence

    def rows_at(self, step: int) -> np.ndarray:
        """int64 [rows of the step]: the plan's rows that a step draws, those of a corpus side by side."""
        group, turn = self._at(step)
        return self._groups[group].rows_at(turn)

    def drawn(self, steps: int) -> list[int]:
        """How many rows of each corpus the first `steps` steps draw."""
        last, rest = divmod(steps, self.schedule.cycle)
        turns = counts(self._shares, np.array([last * self.schedule.cycle]))[:, 0]
        turns += np.bincount(self._cycle(last)[0][:rest], minlength=len(turns))
        found: dict[int, int] = {}
        for group, count in zip(self._groups, turns.tolist(), strict=True):
            found |= group.drawn(count)
        return [found[number] for number in sorted(found)]

    def _at(self, step: int) -> tuple[int, int]:
        """The group of a step and how many earlier steps it had."""
        if step < 0:
            raise IndexError(f"step {step}: steps count from 0")
        if len(self._groups) == 1:
            return 0, step
        owner, turn = self._cycle(step // self.schedule.cycle)
        place = step % self.schedule.cycle
        return int(owner[place]), int(turn[place])

    def _cycle_steps(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The group and the turn of every step of a cycle.

        Each group has its share of the steps. Their order is drawn without replacement, each next one by the odds of
        its length (Efraimidis and Spirakis 2006: the smallest of exponential draws, each over its odds).
        """
        size = self.schedule.cycle
        owner, turn = draws(self._shares, number * size, (number + 1) * size)
        if size > 1:
            longest = self._groups[-1].sequence
            odds = np.array([self.schedule.odds ** math.log2(longest / group.sequence) for group in self._groups])
            even = _uniform(_key(self.seed, -1 - number), size)
            owner = owner[np.argsort(-np.log(even) / odds[owner], kind="stable")]
            turn = turn.copy()
            for group in range(len(self._groups)):
                mine = owner == group
                # Turns of a group are counted without a gap, so only their first is to be known.
                turn[mine] = self._turns_before(number * size, group) + np.arange(mine.sum())
        return owner, turn

    def _turns_before(self, step: int, group: int) -> int:
        return int(counts(self._shares, np.array([step]))[group, 0])


class _Group:
    """The corpora whose rows have one length: they share the steps of that length."""

    def __init__(
        self,
        members: Sequence[tuple[int, Corpus, int]],
        work: np.ndarray,
        rows_per_step: int,
        seed: int,
        window: int,
    ) -> None:
        self.sequence = members[0][1].sequence
        self.shares = [(number, corpus.share) for number, corpus, _ in members]
        self._members, self._rows_per_step, self._seed, self._window = members, rows_per_step, seed, window
        self._parts = tuple(corpus.share for _, corpus, _ in members)
        self._work = [work[first : first + corpus.rows] for _, corpus, first in members]
        self._epoch = lru_cache(maxsize=2 * len(members))(self._epoch_order)

    def rows_at(self, turn: int) -> np.ndarray:
        steps = np.array([turn, turn + 1]) * self._rows_per_step
        found = []
        for place, (first, end) in enumerate(counts(self._parts, steps).tolist()):
            _, corpus, offset = self._members[place]
            for epoch in range(first // corpus.rows, -(-end // corpus.rows)):
                low, high = max(first, epoch * corpus.rows), min(end, (epoch + 1) * corpus.rows)
                found.append(offset + self._epoch(place, epoch)[low - epoch * corpus.rows : high - epoch * corpus.rows])
        return np.concatenate(found)

    def drawn(self, turns: int) -> dict[int, int]:
        amounts = counts(self._parts, np.array([turns * self._rows_per_step]))[:, 0].tolist()
        return {number: amount for (number, _, _), amount in zip(self._members, amounts, strict=True)}

    def _epoch_order(self, place: int, epoch: int) -> np.ndarray:
        """int64 [rows of the corpus], read-only: its rows in the order in which an epoch draws them."""
        number, corpus, _ = self._members[place]
        # Another seed for each corpus: equal sizes must not mean equal permutations.
        shuffled = row_order(corpus.rows, self._seed + number, epoch)
        if self._window == 1:
            return shuffled
        order = _by_work(
            shuffled, self._work[place], self._cuts(place, epoch), self._window, self._seed + number, epoch
        )
        order.setflags(write=False)
        return order

    def _cuts(self, place: int, epoch: int) -> np.ndarray:
        """int64: where steps begin and end inside an epoch of a corpus, from 0 to its rows."""
        rows = self._members[place][1].rows
        share = max(1, round(self._parts[place] / sum(self._parts) * _SHARE_UNIT)) / _SHARE_UNIT
        each = self._rows_per_step * share  # rows of the corpus in a step, about
        first = max(0, math.floor(epoch * rows / each * (1 - 1e-5)) - 2)
        last = math.ceil((epoch + 1) * rows / each * (1 + 1e-5)) + 2
        ends = counts(self._parts, np.arange(first, last + 1) * self._rows_per_step)[place] - epoch * rows
        return np.unique(np.concatenate([[0, rows], ends[(ends > 0) & (ends < rows)]]))


def _by_work(
    shuffled: np.ndarray, work: np.ndarray, cuts: np.ndarray, window: int, seed: int, epoch: int
) -> np.ndarray:
    """The rows of an epoch, sorted by work inside windows of `window` runs and dealt to these runs in random order.

    Each run lies between two cuts. The first and the last run may be parts of a step that two epochs share: they get
    the rows of middling work of their window, as in every epoch, so that the two parts match.
    """
    sizes = np.diff(cuts)
    runs = np.arange(len(sizes))
    of_row = np.repeat(runs // window, sizes)
    # Rows of equal work stay as shuffled: neighbours in a plan are often of one document.
    by_work = shuffled[np.lexsort((work[shuffled], of_row))]
    key = _uniform(_key(seed, epoch) ^ np.uint64(0xA5A5A5A5), len(sizes))
    key[0] = key[-1] = 0.5
    dealt = np.lexsort((runs, key, runs // window))
    begin = np.empty(len(sizes), np.int64)
    begin[dealt] = np.cumsum(sizes[dealt]) - sizes[dealt]
    return by_work[np.repeat(begin - cuts[:-1], sizes) + np.arange(len(shuffled))]


def draws(shares: Sequence[float], first: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """For the draws first .. stop - 1: whose each is, and how many earlier ones the same corpus had. Both int64.

    The first corpus of share p takes draw n when floor((n + 1) p) > floor(n p); the next takes its part of the draws
    that are left, in the same way; the last takes the rest. Shares are rounded to a millionth and no two hosts can
    differ, since the arithmetic is that of integers.
    """
    owner, turn = np.empty(stop - first, np.int64), np.empty(stop - first, np.int64)
    open_places, left = np.arange(stop - first), np.arange(first, stop)
    parts = _parts(shares)
    rest = sum(parts)
    for number, part in enumerate(parts):
        before = left * part // rest
        taken = (left + 1) * part // rest > before
        owner[open_places[taken]], turn[open_places[taken]] = number, before[taken]
        open_places, left = open_places[~taken], (left - before)[~taken]
        rest -= part
    return owner, turn


def counts(shares: Sequence[float], stops: np.ndarray) -> np.ndarray:
    """int64 [corpora, stops]: how many of the first `stop` draws each corpus has, by the rule of `draws`."""
    found, left = np.empty((len(shares), len(stops)), np.int64), stops.astype(np.int64)
    parts = _parts(shares)
    rest = sum(parts)
    for number, part in enumerate(parts):
        found[number] = left * part // rest
        left = left - found[number]
        rest -= part
    return found


def _parts(shares: Sequence[float]) -> list[int]:
    return [max(1, round(share / sum(shares) * _SHARE_UNIT)) for share in shares]


@lru_cache(maxsize=4)
def row_order(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """int64 [num_rows], read-only: the permutation of the rows in an epoch.

    Rows are sorted by SplitMix64 (Steele et al. 2014) of (seed, epoch, row): numpy does not promise that its own
    permutations stay the same from version to version, and a resumed run needs that.
    """
    order = np.argsort(split_mix(np.arange(num_rows, dtype=np.uint64) ^ _key(seed, epoch)), kind="stable")
    order.setflags(write=False)
    return order


def _key(seed: int, epoch: int) -> np.uint64:
    mixed = split_mix(np.array([seed % (1 << 64)], np.uint64)) ^ np.uint64(epoch % (1 << 64))
    return np.uint64(split_mix(mixed)[0])


def _uniform(key: np.uint64, count: int) -> np.ndarray:
    """float64 [count] in (0, 1): random numbers of a key, the same on every machine."""
    return ((split_mix(np.arange(count, dtype=np.uint64) ^ key) >> np.uint64(11)).astype(np.float64) + 0.5) / (1 << 53)


def split_mix(value: np.ndarray) -> np.ndarray:
    """uint64 like `value`: SplitMix64, a hash of 64 bits."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
