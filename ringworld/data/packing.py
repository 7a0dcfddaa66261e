"""The packing plan: which slices of which documents make up each row of a stage. Pure; reads lengths, never tokens.

- A stored document of L tokens (its end-of-text included) gives L - 1 (input, target) pairs. A slice (document, start,
  length) has the inputs start .. start + length - 1 and the targets one further, so consecutive slices share one
  token and no pair, and every pair of every document is in exactly one slice.
- A document longer than a row fills whole rows; its rest, like a shorter document, shares a row with others: first fit,
  longest first. Each slice is an example of its own: it sees only itself, at positions 0, 1, ...
- Where a store marks answers, only those targets count. Such a document, a conversation, is taken whole or not at all,
  and a row holds conversations of one corpus: `mix` puts plans side by side, it never joins rows.
- Which rows a step draws is `ringworld.data.order`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ringworld.data.files import read_table, write_table
from ringworld.data.order import Corpus
from ringworld.data.token_store import Split, TokenIndex
from ringworld.errors import UserError

WeighBy = Literal["example", "token"]

_SCHEMA = 2
_METADATA = b"ringworld.plan"
_COLUMNS: Mapping[str, Any] = {
    "row": np.int64,
    "slot": np.int32,
    "document": np.int64,
    "start": np.int64,
    "length": np.int32,
    "answers": np.int32,
    "weight": np.float32,
}


@dataclass(frozen=True, eq=False)
class PackingPlan:
    """Slices as columns of equal length [slices], sorted by (row, slot); every row from 0 to the last has a slice.

    row int64; slot int32: where in the row the slice begins; document int64, start int64, length int32: what it
    holds, in tokens; answers int32: how many of its targets the loss counts, at least 1 (all of them, for text);
    weight float32: the factor of its loss (modality, task).
    sequence: slots of a row. weigh_by: see `loss_weights`. tokenizer_hash: of the store that the documents are in.
    marked: whether that store marks answers. corpora: whose the rows are, in order, and in which proportions to draw.
    """

    sequence: int
    weigh_by: WeighBy
    tokenizer_hash: str
    marked: bool
    corpora: tuple[Corpus, ...]
    row: np.ndarray
    slot: np.ndarray
    document: np.ndarray
    start: np.ndarray
    length: np.ndarray
    answers: np.ndarray
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
            "marked": self.marked,
            "corpora": [asdict(corpus) for corpus in self.corpora],
            "fill": self.fill,
        }
        table = pa.table({name: getattr(self, name) for name in _COLUMNS})
        write_table(url, table.replace_schema_metadata({_METADATA: json.dumps(about, sort_keys=True)}))

    @classmethod
    def load(cls, url: str) -> PackingPlan:
        """Raises UserError for a Parquet file that is no plan of this version."""
        table = read_table(url)
        about = json.loads((table.schema.metadata or {}).get(_METADATA, b"{}"))
        if about.get("schema") == 1:  # before answers and corpora: every target counts, one corpus
            table = table.append_column("answers", table["length"])
            rows = int(table["row"][-1].as_py()) + 1 if table.num_rows else 0
            about |= {"marked": False, "corpora": [asdict(Corpus("", rows))]}
        elif about.get("schema") != _SCHEMA:
            raise UserError(f"{url} is no packing plan of schema {_SCHEMA}; make its pack stage again")
        columns = {name: table[name].to_numpy().astype(kind, copy=False) for name, kind in _COLUMNS.items()}
        corpora = tuple(Corpus(**corpus) for corpus in about["corpora"])
        ids = about["sequence"], about["weigh_by"], about["tokenizer_hash"]
        return cls(*ids, about["marked"], corpora, **columns)


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


@dataclass(frozen=True, eq=False)
class Whole:
    """documents int64: those to pack. dropped: how many were not taken, by reason."""

    documents: np.ndarray
    dropped: Mapping[str, int]


def select_whole(index: TokenIndex, split: Split, corpus: str, sequence: int, where: str) -> Whole:
    """The conversations of a corpus that fit a row of `sequence` slots and have an answer.

    Raises UserError, naming the override `where` and the lengths that exist, when there are none.
    """
    if index.corpus is None or index.answers is None:
        raise UserError(f"{where}: a store of plain text has no conversations; pack the store of a conversations stage")
    documents = index.documents(split)
    documents = documents[index.corpus[documents] == corpus]
    tokens = index.tokens[documents]
    fits, answered = tokens - 1 <= sequence, index.answers[documents] > 0
    if not (fits & answered).any():
        raise UserError(
            f"{where}: none of {len(documents)} {split} conversations of {corpus} fits a row of {sequence} tokens "
            f"whole; they have {describe_lengths(tokens)}. Add sources.{corpus}, or take {corpus} out of the mixture"
        )
    dropped = {"longer than a row": int((~fits).sum()), "no answer": int((fits & ~answered).sum())}
    return Whole(documents[fits & answered], {reason: count for reason, count in dropped.items() if count})


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

    Deterministic. A document that fits a row is never cut. Where the store marks answers every document must fit and
    have an answer, as `select_whole` sees to; otherwise ValueError.
    """
    if sequence < 1:
        raise UserError(f"sequence={sequence}: a row needs at least one slot")
    pairs = index.tokens[documents] - 1
    answers = None if index.answers is None else index.answers[documents]
    if answers is not None and len(documents) and (pairs.max() > sequence or answers.min() < 1):
        raise ValueError(f"a conversation without an answer, or of more than {sequence} pairs, cannot be packed")
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
    document = np.concatenate([full_document, documents[order]])[by_row]
    length = np.concatenate([np.full(number_full, sequence), rest[order]])[by_row]
    return _plan(
        index,
        sequence,
        weigh_by,
        row=row[by_row],
        slot=slot[by_row],
        document=document,
        start=np.concatenate([full_start, (whole * sequence)[order]])[by_row],
        length=length,
        answers=length if index.answers is None else index.answers[document],
    )


def mix(plans: Mapping[str, PackingPlan], shares: Mapping[str, float]) -> PackingPlan:
    """Plans of several corpora of one store as one: its rows are theirs, to be drawn in the proportions of `shares`.

    Every name has a share above 0. ValueError for plans that differ in sequence, weighing or tokens.
    """
    first, *others = plans.values()
    kept = (first.sequence, first.weigh_by, first.tokenizer_hash, first.marked)
    if any((plan.sequence, plan.weigh_by, plan.tokenizer_hash, plan.marked) != kept for plan in others):
        raise ValueError(f"plans of {', '.join(plans)} are not of one kind")
    before = np.cumsum([0, *(plan.num_rows for plan in plans.values())])
    columns = {name: np.concatenate([getattr(plan, name) for plan in plans.values()]) for name in _COLUMNS}
    columns["row"] = np.concatenate([plan.row + n for plan, n in zip(plans.values(), before, strict=False)])
    corpora = tuple(Corpus(name, plan.num_rows, shares[name]) for name, plan in plans.items())
    return replace(first, corpora=corpora, **columns)


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
    overlap. The weights are per token. Raises UserError when no document of the split is long enough, and for a store
    that marks answers, whose conversations are not to be cut.
    """
    if index.answers is not None:
        raise UserError("held-out windows are cut from plain text; evaluate on the store of a tokens stage")
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
        index,
        sequence,
        "token",
        row=np.arange(number),
        slot=np.zeros(number),
        document=document[chosen],
        start=turn[chosen] * sequence,
        length=np.full(number, sequence),
        answers=np.full(number, sequence),
    )


def loss_weights(answers: np.ndarray, weights: np.ndarray, weigh_by: WeighBy) -> np.ndarray:
    """float64 [slices]: the loss weight of each counted target of a slice, for the slices of one whole batch.

    answers: how many targets of each slice count, at least 1. example: the batch's loss is the mean over examples of
    each example's mean loss over its counted targets, as if each had a row of its own (masked packing, LWM arXiv
    2402.08268). token: it is the mean over the counted targets. Both times the slice's own weight.
    """
    if weigh_by == "example":
        return weights.astype(np.float64) / (len(answers) * answers.astype(np.float64))
    return weights.astype(np.float64) / answers.sum(dtype=np.int64)


def _plan(index: TokenIndex, sequence: int, weigh_by: WeighBy, **columns: np.ndarray) -> PackingPlan:
    columns["weight"] = np.ones(len(columns["row"]))
    typed = {name: columns[name].astype(kind) for name, kind in _COLUMNS.items()}
    rows = int(typed["row"][-1]) + 1 if len(typed["row"]) else 0
    marked = index.answers is not None
    return PackingPlan(sequence, weigh_by, index.tokenizer_hash, marked, (Corpus("", rows),), **typed)


def _doubled(room: list[int], leaves: int, capacity: int) -> list[int]:
    """The tree over twice as many rows, the new ones empty."""
    level = room[leaves:] + [capacity] * leaves
    levels = [level]
    while len(level) > 1:
        level = [max(pair) for pair in zip(level[::2], level[1::2], strict=True)]
        levels.append(level)
    return [capacity] + [value for level in reversed(levels) for value in level]
