"""The packing plan: which slices of which documents make up each row of a stage. Pure; reads lengths, never tokens.

- A stored document of L tokens (its end-of-text included) gives L - 1 (input, target) pairs. A slice (document, start,
  length) has the inputs start .. start + length - 1 and the targets one further, so consecutive slices share one
  token and no pair, and every pair of every document is in exactly one slice.
- A document longer than a row fills whole rows; its rest, like a shorter document, shares a row with others: first fit,
  longest first. Each slice is an example of its own: it sees only itself, at positions 0, 1, ...
- The rows of a batch are a pure function of (plan, seed, step): an epoch is a permutation of the rows, and one epoch
  follows another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ringworld.data.files import read_table, write_table
from ringworld.data.token_store import Split, TokenIndex
from ringworld.errors import UserError

WeighBy = Literal["example", "token"]

_SCHEMA = 1
_METADATA = b"ringworld.plan"
_COLUMNS: Mapping[str, Any] = {
    "row": np.int64,
    "slot": np.int32,
    "document": np.int64,
    "start": np.int64,
    "length": np.int32,
    "weight": np.float32,
}


@dataclass(frozen=True, eq=False)
class PackingPlan:
    """Slices as columns of equal length [slices], sorted by (row, slot); every row from 0 to the last has a slice.

    row int64; slot int32: where in the row the slice begins; document int64, start int64, length int32: what it
    holds, in tokens; weight float32: the factor of its loss (modality, task).
    sequence: slots of a row. weigh_by: see `loss_weights`. tokenizer_hash: of the store that the documents are in.
    """

    sequence: int
    weigh_by: WeighBy
    tokenizer_hash: str
    row: np.ndarray
    slot: np.ndarray
    document: np.ndarray
    start: np.ndarray
    length: np.ndarray
    weight: np.ndarray

    @property
    def num_rows(self) -> int:
        return int(self.row[-1]) + 1 if len(self.row) else 0

    @property
    def fill(self) -> float:
        """The share of slots that hold a pair."""
        return float(self.length.sum(dtype=np.int64)) / max(1, self.num_rows * self.sequence)

    @cached_property
    def row_start(self) -> np.ndarray:
        """int64 [rows + 1]: the slices of row r are row_start[r] .. row_start[r + 1] - 1."""
        return np.searchsorted(self.row, np.arange(self.num_rows + 1))

    def save(self, url: str) -> None:
        about = {
            "schema": _SCHEMA,
            "sequence": self.sequence,
            "weigh_by": self.weigh_by,
            "tokenizer_hash": self.tokenizer_hash,
            "fill": self.fill,
        }
        table = pa.table({name: getattr(self, name) for name in _COLUMNS})
        write_table(url, table.replace_schema_metadata({_METADATA: json.dumps(about, sort_keys=True)}))

    @classmethod
    def load(cls, url: str) -> PackingPlan:
        """Raises UserError for a Parquet file that is no plan of this version."""
        table = read_table(url)
        about = json.loads((table.schema.metadata or {}).get(_METADATA, b"{}"))
        if about.get("schema") != _SCHEMA:
            raise UserError(f"{url} is no packing plan of schema {_SCHEMA}; make its pack stage again")
        columns = {name: table[name].to_numpy().astype(kind, copy=False) for name, kind in _COLUMNS.items()}
        return cls(about["sequence"], about["weigh_by"], about["tokenizer_hash"], **columns)


def select(index: TokenIndex, split: Split, minimum: int, maximum: int | None, where: str) -> np.ndarray:
    """int64: the documents of a split with minimum <= tokens <= maximum (None: no upper bound).

    Raises UserError, naming the override `where` and the lengths that exist, when there are none.
    """
    documents = index.documents(split)
    tokens = index.tokens[documents]
    passing = documents[(tokens >= max(2, minimum)) & (tokens <= (np.inf if maximum is None else maximum))]
    if not len(passing):
        bound = "null" if maximum is None else maximum
        raise UserError(
            f"{where}=[{minimum},{bound}]: none of {len(documents)} {split} documents has "
            f"so many tokens; they have {describe_lengths(tokens)}. Change {where}, or add sources"
        )
    return passing


def length_histogram(tokens: np.ndarray) -> dict[str, int]:
    """Documents by length: {"512": documents with 512 <= tokens < 1024, ...}, ascending, empty classes left out."""
    exponents = np.floor(np.log2(np.maximum(tokens, 1))).astype(np.int64)
    return {str(1 << int(k)): int(n) for k, n in zip(*np.unique(exponents, return_counts=True), strict=True)}


def describe_lengths(tokens: np.ndarray) -> str:
    """A histogram for an error message: `12 of 512-1023, 3 of 1024-2047`."""
    classes = [f"{count} of {low}-{2 * int(low) - 1}" for low, count in length_histogram(tokens).items()]
    return ", ".join(classes) or "no lengths: there are no documents"


def pack(index: TokenIndex, documents: np.ndarray, sequence: int, weigh_by: WeighBy) -> PackingPlan:
    """The plan that holds every pair of `documents` (int64) once, in rows of `sequence` slots.

    Deterministic. A document that fits a row is never cut.
    """
    if sequence < 1:
        raise UserError(f"sequence={sequence}: a row needs at least one slot")
    pairs = index.tokens[documents] - 1
    whole, rest = pairs // sequence, pairs % sequence
    # Slices that fill a row: the k-th of each document starts at k * sequence.
    full_document = np.repeat(documents, whole)
    full_start = (np.arange(len(full_document)) - np.repeat(np.cumsum(whole) - whole, whole)) * sequence
    # The others, longest first; among equals in document order.
    order = np.argsort(-rest, kind="stable")
    order = order[rest[order] > 0]
    shared_row, shared_slot = first_fit(rest[order], sequence)
    number_full = len(full_document)
    row = np.concatenate([np.arange(number_full), shared_row + number_full])
    slot = np.concatenate([np.zeros(number_full, np.int64), shared_slot])
    by_row = np.lexsort((slot, row))
    return _plan(
        sequence,
        weigh_by,
        index.tokenizer_hash,
        row=row[by_row],
        slot=slot[by_row],
        document=np.concatenate([full_document, documents[order]])[by_row],
        start=np.concatenate([full_start, (whole * sequence)[order]])[by_row],
        length=np.concatenate([np.full(number_full, sequence), rest[order]])[by_row],
    )


def first_fit(sizes: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Place each size, in order, into the first row that has room. Returns (row, slot), int64 [sizes].

    A tree over the rows keeps the largest room of each subtree, so a placement costs the logarithm of the rows. Plain
    lists: element access in numpy is several times slower.
    """
    leaves = 1024
    room = [capacity] * (2 * leaves)
    rows, slots = [0] * len(sizes), [0] * len(sizes)
    for index, size in enumerate(sizes.tolist()):
        if not 0 < size <= capacity:
            raise ValueError(f"size {size} does not fit a row of {capacity}")
        if room[1] < size:
            room = _doubled(room, leaves, capacity)
            leaves *= 2
        node = 1
        while node < leaves:
            node *= 2
            if room[node] < size:
                node += 1
        free = room[node]
        rows[index], slots[index] = node - leaves, capacity - free
        room[node] = free - size
        while node > 1:
            left = room[node & -2]
            right = room[node | 1]
            node >>= 1
            largest = left if left > right else right
            if room[node] == largest:
                break
            room[node] = largest
    return np.array(rows, np.int64), np.array(slots, np.int64)


def evaluation_rows(index: TokenIndex, split: Split, sequence: int, count: int) -> PackingPlan:
    """At most `count` rows, each a window of exactly `sequence` pairs of one document: fixed, for figures that compare.

    First the window at the start of every document that has one, then the next window of each, and so on, without
    overlap. The weights are per token. Raises UserError when no document of the split is long enough.
    """
    documents = index.documents(split)
    windows = (index.tokens[documents] - 1) // sequence
    if not len(windows) or windows.max() < 1:
        longest = int(index.tokens[documents].max()) if len(documents) else 0
        raise UserError(
            f"sequence={sequence}: the longest {split} document has {longest} tokens and {sequence + 1} are needed; "
            "add longer documents, hold out more of them, or evaluate at a shorter length"
        )
    document = np.repeat(documents, windows)
    turn = np.arange(len(document)) - np.repeat(np.cumsum(windows) - windows, windows)
    chosen = np.argsort(turn, kind="stable")[:count]
    number = len(chosen)
    return _plan(
        sequence,
        "token",
        index.tokenizer_hash,
        row=np.arange(number),
        slot=np.zeros(number),
        document=document[chosen],
        start=turn[chosen] * sequence,
        length=np.full(number, sequence),
    )


def rows_at_step(step: int, rows_per_batch: int, num_rows: int, seed: int) -> np.ndarray:
    """int64 [rows_per_batch]: the rows of the batch at a step, counted from 0.

    Batches walk through epoch after epoch without a gap; a batch may hold the end of one and the start of the next.
    """
    if num_rows < 1:
        raise UserError("the packing plan has no rows; pack at least one document")
    drawn = np.arange(step * rows_per_batch, (step + 1) * rows_per_batch)
    epoch, place = drawn // num_rows, drawn % num_rows
    rows = np.empty(rows_per_batch, np.int64)
    for number in np.unique(epoch).tolist():
        rows[epoch == number] = row_order(num_rows, seed, number)[place[epoch == number]]
    return rows


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


def loss_weights(lengths: np.ndarray, weights: np.ndarray, weigh_by: WeighBy) -> np.ndarray:
    """float64 [slices]: the loss weight of each token of a slice, for the slices of one whole batch.

    example: the batch's loss is the mean over examples of each example's mean loss, as if each had a row of its own
    (masked packing, LWM arXiv 2402.08268). token: it is the mean over tokens. Both times the slice's own weight.
    """
    if weigh_by == "example":
        return weights.astype(np.float64) / (len(lengths) * lengths.astype(np.float64))
    return weights.astype(np.float64) / lengths.sum(dtype=np.int64)


def _plan(sequence: int, weigh_by: WeighBy, tokenizer_hash: str, **columns: np.ndarray) -> PackingPlan:
    columns["weight"] = np.ones(len(columns["row"]))
    typed = {name: columns[name].astype(kind) for name, kind in _COLUMNS.items()}
    return PackingPlan(sequence, weigh_by, tokenizer_hash, **typed)


def _doubled(room: list[int], leaves: int, capacity: int) -> list[int]:
    """The tree over twice as many rows, the new ones empty."""
    level = room[leaves:] + [capacity] * leaves
    levels = [level]
    while len(level) > 1:
        level = [max(pair) for pair in zip(level[::2], level[1::2], strict=True)]
        levels.append(level)
    return [capacity] + [value for level in reversed(levels) for value in level]
