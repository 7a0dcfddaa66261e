"""The batch of a step, read from the token store as a packing plan says.

- A batch is a pure function of (plan, seed, step): no cursor, no shuffle buffer, nothing to save.
- A reader names the rows and columns that its devices hold, and only the tokens of that part are read. All parts
  together are the batch, so any number of processes on any mesh trains on the same tokens in the same order.
- How a step is split over devices (`ringworld.data.shapes.Split`) only permutes it: rows are dealt so that the ranks
  that share them have equal attention to compute, and each row is laid out so that the ranks of a ring have
  (`ringworld.data.balance`); columns are then places of the laid-out row. What is learned is the same.
- Rows may differ in length from step to step; a batch is [rows, slots of a row].
- Loss weights need the sizes of the whole batch; they come from the plan, without reading a token. Where the store
  marks answers, its marks say which targets get the weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ringworld.data.balance import Documents, Layout, balance
from ringworld.data.order import Order
from ringworld.data.plan import PackingPlan, loss_weights
from ringworld.data.shapes import ALONE, Split, deal
from ringworld.data.stores import Store
from ringworld.data.tokenizers import check_same
from ringworld.errors import UserError

ALL = slice(None)
T = TypeVar("T")

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


class Part(NamedTuple):
    """What a reader wants of a batch: contiguous slices of its rows and columns, and how the whole is split."""

    rows: slice = ALL
    columns: slice = ALL
    split: Split = ALONE


WHOLE = Part()


class Loader:
    """Batches of a plan. Steps count from 0. Safe to share between threads."""

    def __init__(self, store: Store, plan: PackingPlan, seed: int, rows_per_batch: int, shuffle: bool = True) -> None:
        """rows_per_batch: of the longest rows; of shorter ones as many as have the same tokens. shuffle=False: rows in
        the plan's order, for evaluation.

        Raises UserError when store and plan were made with different tokenizers, when only one of them knows of
        answers, or for no rows.
        """
        check_same(store.info.tokenizer_hash, plan.tokenizer_hash, f"the packing plan and the token store {store.url}")
        if store.info.answers != plan.marked:
            kinds = ("text whose every token counts", "conversations")
            raise UserError(
                f"the packing plan is of {kinds[plan.marked]} and the token store {store.url} of "
                f"{kinds[store.info.answers]}; pack that store"
            )
        if rows_per_batch < 1 or plan.num_rows < 1:
            raise UserError(
                f"rows_per_batch={rows_per_batch}, {plan.num_rows} rows in the plan: both must be at least 1"
            )
        self.store = store
        self.plan = plan
        self.order = Order(plan.corpora, plan.work, rows_per_batch * plan.sequence, seed, plan.schedule)
        self._rows_per_batch, self._shuffle = rows_per_batch, shuffle

    def rows_at(self, step: int, split: Split = ALONE) -> np.ndarray:
        """int64 [rows of the step]: the plan's rows in the batch at a step, in the order in which ranks hold them."""
        if step < 0:
            raise IndexError(f"step {step}: steps count from 0")
        if self._shuffle:
            rows = self.order.rows_at(step)
        else:
            rows = np.arange(step * self._rows_per_batch, (step + 1) * self._rows_per_batch) % self.plan.num_rows
        return rows[deal(self.plan.work[rows], split)]

    def shape_at(self, step: int) -> tuple[int, int]:
        """(rows, slots of a row) of the batch at a step."""
        rows = self.rows_at(step)
        return len(rows), int(self.plan.row_sequence[rows[0]])

    def layout(self, row: int, ring: int) -> Layout:
        """How a row of the plan lies on a ring: a function of the plan and the ring alone.

        Raises UserError where the ring does not divide the row.
        """
        slices = slice(self.plan.row_start[row], self.plan.row_start[row + 1])
        sequence = int(self.plan.row_sequence[row])
        if ring < 1 or sequence % ring:
            raise UserError(f"ring={ring} does not divide the plan's rows of {sequence} tokens")
        # Slices of one example are one document to the mask.
        begins = np.flatnonzero(self.plan.position[slices] == 0)
        slot, length = self.plan.slot[slices][begins], np.add.reduceat(self.plan.length[slices], begins)
        return balance(Documents(slot, length, sequence), ring, max(1, min(_PIECE, sequence // (2 * ring))))

    def batch(self, step: int, part: Part = WHOLE) -> Batch:
        """A part of the batch at a step."""
        plan = self.plan
        planned = self.rows_at(step, part.split)
        sequence = int(plan.row_sequence[planned[0]])
        first_row, end_row = _bounds(part.rows, len(planned))
        first, end = _bounds(part.columns, sequence)
        place, slices = self._slices(planned)
        begins = plan.position[slices] == 0
        weight = loss_weights(
            plan.answers[slices],
            plan.seen[slices],
            np.cumsum(begins) - 1,
            plan.weight[slices],
            plan.weigh_by,
            plan.vision_weight,
        ).astype(np.float32)

        runs = _runs(planned, range(first_row, end_row), first, end, part.split.ring, self.layout)
        parts = self._parts(place, slices, runs, sequence)
        of, skipped, lengths = parts.of, parts.skipped, parts.length
        starts = plan.start[slices[of]] + skipped
        # One token more than inputs: the last target, where the document has one.
        documents = plan.document[slices[of]]
        ends = np.minimum(starts + lengths + 1, self.store.index.tokens[documents])
        read = self.store.read_many(documents.tolist(), starts.tolist(), (ends - starts).tolist())
        marks = self._marks(documents.tolist(), (starts + 1).tolist(), lengths.tolist())

        first_seen = self.store.info.vision_offset  # the first vision id; 0 where there are none
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
            row, begin = int(place[which]) - first_row, column - first
            at, targets = (row, slice(begin, begin + length)), (row, slice(begin, begin + len(ids) - 1))
            batch.tokens[at] = ids[:length]
            batch.targets[targets] = ids[1:]
            batch.segments[at] = plan.segment[slices[which]]
            position = int(plan.position[slices[which]]) + before
            batch.positions[at] = np.arange(position, position + length)
            seen = (ids[1:] >= first_seen).astype(np.int64) if first_seen else 0
            batch.loss_weight[targets] = weight[which, seen] * counts
        return batch

    def tokens(self, step: int) -> int:
        """The tokens of the whole batch at a step; padding does not count."""
        return int(self.plan.length[self._slices(self.rows_at(step))[1]].sum(dtype=np.int64))

    def examples(self, step: int) -> int:
        """The examples of the whole batch at a step."""
        return int((self.plan.position[self._slices(self.rows_at(step))[1]] == 0).sum())

    def attention_pairs(self, step: int) -> int:
        """The (query, key) pairs that the whole batch's mask lets through: n(n + 1) / 2 for an example of n tokens."""
        return int(self.plan.work[self.rows_at(step)].sum())

    def _marks(self, documents: list[int], starts: list[int], lengths: list[int]) -> Sequence[np.ndarray | bool]:
        """Whether targets count: bool [length] for each range of a document's tokens, or one True for all of them."""
        if not self.store.info.answers:
            return [True] * len(documents)
        return self.store.read_answers(documents, starts, lengths)

    def _parts(self, place: np.ndarray, slices: np.ndarray, runs: _Runs, sequence: int) -> _Parts:
        """What these runs hold of the slices of a batch, as `_slices` gives them.

        Slices and runs both are whole stretches of a row: what two of them share is read and written as one.
        """
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

    def _slices(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(place in `rows`, slice of the plan), int64 [slices], for every slice of these rows of the plan."""
        first, end = self.plan.row_start[rows], self.plan.row_start[rows + 1]
        count = end - first
        return np.repeat(np.arange(len(rows)), count), _ranges(first, count)


def prefetch(make: Callable[[int], T], start_step: int, stop_step: int, depth: int = 4) -> Iterator[T]:
    """`make` of start_step .. stop_step - 1, in order, called by threads up to `depth` steps ahead.

    The threads end with the iterator: at its end, at an error (raised at its step), or when it is closed.
    """
    import grain  # takes a second, which only trainers should pay

    options = grain.ReadOptions(num_threads=min(depth, 2), prefetch_buffer_size=depth)
    steps = grain.MapDataset.range(start_step, stop_step).map(lambda step: _Made(make(int(step))))
    iterator = iter(steps.to_iter_dataset(options))
    try:
        for made in iterator:
            yield made.value
    finally:
        iterator.close()


@dataclass(frozen=True, eq=False)
class _Made:
    """Grain looks into what passes through it where that is a tuple or a mapping."""

    value: Any


class _Runs(NamedTuple):
    """Stretches of rows, int64 [runs]: the row of the batch, the column and the slot they begin at, their slots."""

    row: np.ndarray
    column: np.ndarray
    slot: np.ndarray
    length: np.ndarray


def _runs(
    planned: np.ndarray, rows: range, first: int, end: int, ring: int, layout: Callable[[int, int], Layout]
) -> _Runs:
    """How these rows of a batch, the plan's `planned`, lie in columns first .. end - 1."""
    if ring == 1:
        number = len(rows) if first < end else 0
        row = np.arange(rows.start, rows.start + number)
        column = np.full(number, first)
        return _Runs(row, column, column, np.full(number, end - first))
    found = [np.zeros((4, 0), np.int64)]
    for row in rows:
        column, slot, length = layout(int(planned[row]), ring).runs(first, end)
        found.append(np.stack([np.full(len(column), row), column, slot, length]))
    return _Runs(*np.concatenate(found, axis=1))


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
