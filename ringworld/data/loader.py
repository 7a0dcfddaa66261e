"""The batch of a step, read from the token store as a packing plan says.

- A batch is a pure function of (plan, seed, step): no cursor, no shuffle buffer, nothing to save.
- A reader names the rows and columns that its devices hold, and only the tokens of that part are read. All parts
  together are the batch, so any number of processes on any mesh trains on the same tokens in the same order.
- Loss weights need the sizes of the whole batch; they come from the plan, without reading a token. Where the store
  marks answers, its marks say which targets get the weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ringworld.data.order import rows_at_step
from ringworld.data.packing import PackingPlan, loss_weights
from ringworld.data.token_store import TokenStore
from ringworld.data.tokenizers import check_same
from ringworld.errors import UserError

ALL = slice(None)


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
        self, store: TokenStore, plan: PackingPlan, seed: int, rows_per_batch: int, shuffle: bool = True
    ) -> None:
        """shuffle=False: rows in the plan's order, for evaluation.

        Raises UserError when store and plan were made with different tokenizers, when only one of them knows of
        answers, or for no rows.
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
        self.store = store
        self.plan = plan
        self.seed = seed
        self.rows_per_batch = rows_per_batch
        self.shuffle = shuffle

    def rows_at(self, step: int) -> np.ndarray:
        """int64 [rows_per_batch]: the plan's rows in the batch at a step."""
        if step < 0:
            raise IndexError(f"step {step}: steps count from 0")
        if self.shuffle:
            return rows_at_step(step, self.rows_per_batch, self.plan.corpora, self.seed)
        return np.arange(step * self.rows_per_batch, (step + 1) * self.rows_per_batch) % self.plan.num_rows

    def batch(self, step: int, rows: slice = ALL, columns: slice = ALL) -> Batch:
        """The part of the batch at a step in `rows` and `columns`, contiguous slices of its [rows, sequence]."""
        plan = self.plan
        first_row, end_row = _bounds(rows, self.rows_per_batch)
        first, end = _bounds(columns, plan.sequence)
        place, slices = self._slices(step)
        weight = loss_weights(plan.answers[slices], plan.weight[slices], plan.weigh_by).astype(np.float32)
        # An example's number counts the slices of its row from 1: its distance from the first slice of the row.
        segment = 1 + slices - plan.row_start[plan.row[slices]]

        begin = np.maximum(plan.slot[slices], first)
        stop = np.minimum(plan.slot[slices] + plan.length[slices], end)
        here = np.flatnonzero((place >= first_row) & (place < end_row) & (begin < stop))
        skipped = (begin - plan.slot[slices])[here]  # tokens of the slice that lie before these columns
        lengths = (stop - begin)[here]
        starts = plan.start[slices[here]] + skipped
        # One token more than inputs: the last target.
        documents = plan.document[slices[here]].tolist()
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
        for which, before, length, ids, counts in zip(
            here.tolist(), skipped.tolist(), lengths.tolist(), read, marks, strict=True
        ):
            at = (int(place[which]) - first_row, slice(int(begin[which]) - first, int(stop[which]) - first))
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

    def _slices(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(row of the batch, slice of the plan), int64 [slices], for every slice of the whole batch at a step."""
        rows = self.rows_at(step)
        first, end = self.plan.row_start[rows], self.plan.row_start[rows + 1]
        count = end - first
        place = np.repeat(np.arange(len(rows)), count)
        return place, np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)


def _bounds(part: slice, size: int) -> tuple[int, int]:
    first, end, stride = part.indices(size)
    if stride != 1:
        raise IndexError(f"{part}: give a contiguous part, of stride 1")
    return first, max(first, end)
