"""The batch of a step, read from the token store as a packing plan says.

- A batch is a pure function of (plan, seed, step): no cursor, no shuffle buffer, nothing to save.
- A reader names the rows and columns that its devices hold, and only the tokens of that part are read. All parts
  together are the batch, so any number of processes on any mesh trains on the same tokens in the same order.
- On a ring, each row is laid out so that the ranks have equal attention to compute (`ringworld.data.balance`): columns
  are then places of the laid-out row. Every array is permuted alike, so what is learned is the same.
- Loss weights need the sizes of the whole batch; they come from the plan, without reading a token. Where the store
  marks answers, its marks say which targets get the weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ringworld.data.balance import Documents, Layout, balance
from ringworld.data.order import rows_at_step
from ringworld.data.packing import PackingPlan, loss_weights
from ringworld.data.token_store import TokenStore
from ringworld.data.tokenizers import check_same
from ringworld.errors import UserError

ALL = slice(None)

# Slots that stay together in a layout: a kernel's block on TPU and CPU. With shorter pieces a block would hold pieces
# of several documents, which the bounds of its mask could no longer tell apart from those between them.
_PIECE = 512


@dataclass(frozen=True, eq=False)
class Batch:
    """Five arrays [rows, columns] of a part of a batch.

    tokens int32, targets int32: the token that follows in the document, so that slots may be permuted freely; segments
    int32: 0 is padding, equal numbers in a row are one example; positions int32: the index within the example;
    loss_weight float32: 0 on padding and on targets that do not count, and over the whole batch as
    `packing.loss_weights` says.
    """

    tokens: np.ndarray
    targets: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    loss_weight: np.ndarray


class Loader:
    """Batches of `rows_per_batch` rows of a plan. Steps count from 0. Safe to share between threads."""

    def __init__(
        self,
        store: TokenStore,
        plan: PackingPlan,
        seed: int,
        rows_per_batch: int,
        shuffle: bool = True,
        ring: int = 1,
    ) -> None:
        """shuffle=False: rows in the plan's order, for evaluation. ring: ranks to lay each row out for; 1: as planned.

        Raises UserError when store and plan were made with different tokenizers, when only one of them knows of
        answers, for no rows, or where the ring does not divide a row.
        """
        check_same(store.info.tokenizer_hash, plan.tokenizer_hash, f"the packing plan and the token store {store.url}")
        if store.info.answers != plan.marked:
            kinds = ("plain text", "conversations")
            raise UserError(
                f"the packing plan is of {kinds[plan.marked]} and the token store {store.url} of "
                f"{kinds[store.info.answers]}; pack that store"
            )
        if rows_per_batch < 1 or plan.num_rows < 1:
            raise UserError(
                f"rows_per_batch={rows_per_batch}, {plan.num_rows} rows in the plan: both must be at least 1"
            )
        if ring < 1 or plan.sequence % ring:
            raise UserError(f"ring={ring} does not divide the plan's rows of {plan.sequence} tokens")
        self.store = store
        self.plan = plan
        self.seed = seed
        self.rows_per_batch = rows_per_batch
        self.shuffle = shuffle
        self.ring = ring

    def rows_at(self, step: int) -> np.ndarray:
        """int64 [rows_per_batch]: the plan's rows in the batch at a step."""
        if step < 0:
            raise IndexError(f"step {step}: steps count from 0")
        if self.shuffle:
            return rows_at_step(step, self.rows_per_batch, self.plan.corpora, self.seed)
        return np.arange(step * self.rows_per_batch, (step + 1) * self.rows_per_batch) % self.plan.num_rows

    def layout(self, row: int) -> Layout:
        """How a row of the plan lies on the ring: a function of the plan and the ring alone."""
        slices = slice(self.plan.row_start[row], self.plan.row_start[row + 1])
        documents = Documents(self.plan.slot[slices], self.plan.length[slices], self.plan.sequence)
        return balance(documents, self.ring, max(1, min(_PIECE, self.plan.sequence // (2 * self.ring))))

    def batch(self, step: int, rows: slice = ALL, columns: slice = ALL) -> Batch:
        """The part of the batch at a step in `rows` and `columns`, contiguous slices of its [rows, sequence]."""
        plan = self.plan
        first_row, end_row = _bounds(rows, self.rows_per_batch)
        first, end = _bounds(columns, plan.sequence)
        place, slices = self._slices(step)
        weight = loss_weights(plan.answers[slices], plan.weight[slices], plan.weigh_by).astype(np.float32)
        # An example's number counts the slices of its row from 1: its distance from the first slice of the row.
        segment = 1 + slices - plan.row_start[plan.row[slices]]

        parts = self._parts(place, slices, self._runs(step, range(first_row, end_row), first, end))
        of, skipped, lengths = parts.of, parts.skipped, parts.length
        starts = plan.start[slices[of]] + skipped
        # One token more than inputs: the last target.
        documents = plan.document[slices[of]].tolist()
        read = self.store.read_many(documents, starts.tolist(), (lengths + 1).tolist())
        marks = self._marks(documents, (starts + 1).tolist(), lengths.tolist())

        shape = (end_row - first_row, end - first)
        batch = Batch(
            tokens=np.full(shape, self.store.info.pad_id, np.int32),
            targets=np.full(shape, self.store.info.pad_id, np.int32),
            segments=np.zeros(shape, np.int32),
            positions=np.zeros(shape, np.int32),
            loss_weight=np.zeros(shape, np.float32),
        )
        for which, column, before, length, ids, counts in zip(
            of.tolist(), parts.column.tolist(), skipped.tolist(), lengths.tolist(), read, marks, strict=True
        ):
            at = (int(place[which]) - first_row, slice(column - first, column - first + length))
            batch.tokens[at] = ids[:-1]
            batch.targets[at] = ids[1:]
            batch.segments[at] = segment[which]
            batch.positions[at] = np.arange(before, before + length)
            batch.loss_weight[at] = weight[which] * counts
        return batch

    def prefetch(
        self, start_step: int, stop_step: int, rows: slice = ALL, columns: slice = ALL, depth: int = 2
    ) -> Iterator[Batch]:
        """`batch` of start_step .. stop_step - 1, in order, read by threads up to `depth` steps ahead.

        The threads end with the iterator: at its end, at an error (raised at its step), or when it is closed.
        """
        import grain  # takes a second, which only trainers should pay

        def read(step: Any) -> Batch:
            return self.batch(int(step), rows, columns)

        options = grain.ReadOptions(num_threads=min(depth, 4), prefetch_buffer_size=depth)
        steps = grain.MapDataset.range(start_step, stop_step).map(read)
        iterator = iter(steps.to_iter_dataset(options))
        try:
            yield from iterator
        finally:
            iterator.close()

    def tokens(self, step: int) -> int:
        """The (input, target) pairs of the whole batch at a step; padding does not count."""
        return int(self.plan.length[self._slices(step)[1]].sum(dtype=np.int64))

    def examples(self, step: int) -> int:
        """The examples of the whole batch at a step."""
        return len(self._slices(step)[1])

    def attention_pairs(self, step: int) -> int:
        """The (query, key) pairs that the whole batch's mask lets through: n(n + 1) / 2 for an example of n tokens."""
        length = self.plan.length[self._slices(step)[1]].astype(np.int64)
        return int((length * (length + 1) // 2).sum())

    def _marks(self, documents: list[int], starts: list[int], lengths: list[int]) -> Sequence[np.ndarray | bool]:
        """Whether targets count: bool [length] for each range of a document's tokens, or one True for all of them."""
        if not self.store.info.answers:
            return [True] * len(documents)
        return self.store.read_answers(documents, starts, lengths)

    def _parts(self, place: np.ndarray, slices: np.ndarray, runs: _Runs) -> _Parts:
        """What these runs hold of the slices of a batch, as `_slices` gives them.

        Slices and runs both are whole stretches of a row: what two of them share is read and written as one.
        """
        sequence = self.plan.sequence
        begins = place * sequence + self.plan.slot[slices]  # as if the batch were one row: ascending
        ends = begins + self.plan.length[slices]
        run = runs.row * sequence + runs.slot
        low = np.searchsorted(ends, run, side="right")
        count = np.maximum(0, np.searchsorted(begins, run + runs.length, side="left") - low)
        holder = np.repeat(np.arange(len(run)), count)
        of = _ranges(low, count)
        start = np.maximum(begins[of], run[holder])
        stop = np.minimum(ends[of], (run + runs.length)[holder])
        return _Parts(of, (runs.column - run)[holder] + start, start - begins[of], stop - start)

    def _runs(self, step: int, rows: range, first: int, end: int) -> _Runs:
        """How these rows of a batch lie in columns first .. end - 1."""
        if self.ring == 1:
            number = len(rows) if first < end else 0
            row = np.arange(rows.start, rows.start + number)
            column = np.full(number, first)
            return _Runs(row, column, column, np.full(number, end - first))
        found = [np.zeros((4, 0), np.int64)]
        for row, planned in zip(rows, self.rows_at(step)[rows.start : rows.stop].tolist(), strict=True):
            column, slot, length = self.layout(planned).runs(first, end)
            found.append(np.stack([np.full(len(column), row), column, slot, length]))
        return _Runs(*np.concatenate(found, axis=1))

    def _slices(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(row of the batch, slice of the plan), int64 [slices], for every slice of the whole batch at a step."""
        rows = self.rows_at(step)
        first, end = self.plan.row_start[rows], self.plan.row_start[rows + 1]
        count = end - first
        place = np.repeat(np.arange(len(rows)), count)
        return place, _ranges(first, count)


class _Runs(NamedTuple):
    """Stretches of rows, int64 [runs]: the row of the batch, the column and the slot they begin at, their slots."""

    row: np.ndarray
    column: np.ndarray
    slot: np.ndarray
    length: np.ndarray


class _Parts(NamedTuple):
    """Parts of slices, int64 [parts]: of which slice, the column it lies in, tokens of the slice before it, tokens."""

    of: np.ndarray
    column: np.ndarray
    skipped: np.ndarray
    length: np.ndarray


def _ranges(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """int64: first[i], first[i] + 1, ... of each i, count[i] numbers, one after another."""
    return np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)


def _bounds(part: slice, size: int) -> tuple[int, int]:
    first, end, stride = part.indices(size)
    if stride != 1:
        raise IndexError(f"{part}: give a contiguous part, of stride 1")
    return first, max(first, end)
