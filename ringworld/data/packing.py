"""Packing: documents become slices, slices become examples, examples share rows. Pure; reads lengths, never tokens.

- A stored document of L tokens (its end-of-text included) gives L - 1 (input, target) pairs. A slice (document, start,
  length) has the inputs start .. start + length - 1 and the targets one further, so consecutive slices share one token
  and no pair, and every pair of every document is in exactly one slice.
- A document that fits a row is never cut. A longer one is cut into slices that fill rows, at places that the caller may
  move to the end of a sentence (`ringworld.data.cuts`). Each slice is an example of its own.
- A chain of related documents is one example: they see the ones before them, each after its predecessor's end-of-text,
  which is context and no pair.
- Examples share rows by best fit, longest first (`ringworld.data.best_fit`).
- Where a store marks answers, only those targets count. Such a document, a conversation, is taken whole or not at all,
  and a row holds conversations of one corpus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ringworld.data.best_fit import best_fit
from ringworld.data.order import Corpus, Schedule
from ringworld.data.plan import ASSEMBLED, COLUMNS, NATURAL, PackingPlan, WeighBy
from ringworld.data.token_store import Split, TokenIndex
from ringworld.errors import UserError


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
    """The documents of a corpus that fit a row of `sequence` slots and have a target that counts.

    Raises UserError, naming the override `where` and the lengths that exist, when there are none.
    """
    if index.corpus is None or (index.answers is None and index.seen is None):
        raise UserError(f"{where}: a store of plain text has no conversations; pack the store of a conversations stage")
    documents = index.documents(split)
    documents = documents[index.corpus[documents] == corpus]
    tokens = index.tokens[documents]
    fits, answered = tokens - 1 <= sequence, (tokens > 1 if index.answers is None else index.answers[documents] > 0)
    if not (fits & answered).any():
        what = "examples" if index.answers is None else "conversations"
        raise UserError(
            f"{where}: none of {len(documents)} {split} {what} of {corpus} fits a row of {sequence} tokens "
            f"whole; they have {describe_lengths(tokens)}. Give shorter ones, or set {where}=0"
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


@dataclass(frozen=True, eq=False)
class Slices:
    """What is to be packed, as columns [slices]: document int64, start int64, length, any integer, in tokens.

    example int64: 0, 1, ..., ascending; the slices of one follow each other in a row. None: each slice is one.
    made: how these examples came to be, an index of `plan.MADE`, of all or of each slice.
    """

    document: np.ndarray
    start: np.ndarray
    length: np.ndarray
    example: np.ndarray | None = None
    made: int | np.ndarray = NATURAL


def cut_in_rows(index: TokenIndex, documents: np.ndarray, sequence: int) -> Slices:
    """Every pair of these documents (int64) once: each document whole, or in slices of a row and a rest."""
    pairs = index.tokens[documents] - 1
    count = -(-pairs // sequence)
    start = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    start *= sequence
    length = np.minimum(sequence, np.repeat(pairs, count) - start).astype(np.int32)
    return Slices(np.repeat(documents, count), start, length)


def join_chains(index: TokenIndex, chains: Sequence[np.ndarray], sequence: int) -> Slices:
    """Chains of documents (int64 each, none empty) as examples of at most `sequence` slots, cut between documents only.

    An example takes the documents of its chain one after another as long as they fit. Each but its last keeps its
    end-of-text as an input. ValueError for a document that does not fit a row.
    """
    documents = np.concatenate([np.zeros(0, np.int64), *chains])
    tokens = index.tokens[documents]
    if len(tokens) and tokens.max() - 1 > sequence:
        raise ValueError(f"a document of {tokens.max()} tokens does not fit a row of {sequence}")
    begins = np.zeros(len(documents), bool)
    begins[np.cumsum([0, *map(len, chains)])[: len(chains)]] = True
    used = 0
    for place, (size, first) in enumerate(zip(tokens.tolist(), begins.tolist(), strict=True)):
        if first or used + size - 1 > sequence:
            begins[place], used = True, 0
        used += size
    example = np.cumsum(begins) - 1
    last = np.append(begins[1:], True)[: len(begins)]
    made = np.where(begins & last, NATURAL, ASSEMBLED)
    return Slices(documents, np.zeros(len(documents), np.int64), tokens - last, example, made)


def pack(
    index: TokenIndex,
    slices: Slices | Sequence[Slices],
    sequence: int,
    weigh_by: WeighBy,
    vision_weight: float | None = None,
) -> PackingPlan:
    """The plan that holds these slices once, in rows of `sequence` slots.

    Deterministic. Where the store marks answers or has vision ids, slices are whole documents with a target, as
    `select_whole` sees to; otherwise ValueError. vision_weight: see `ringworld.data.plan.loss_weights`.
    """
    if sequence < 1:
        raise UserError(f"sequence={sequence}: a row needs at least one slot")
    taken = slices if isinstance(slices, Slices) else _joined(slices)
    offset = np.zeros(len(taken.document), np.int32)
    if taken.example is None:
        row, slot = best_fit(taken.length, sequence)
    else:
        ends = np.cumsum(taken.length, dtype=np.int64)
        first = np.searchsorted(taken.example, np.arange(taken.example[-1] + 1 if len(taken.example) else 0))
        begin = (ends - taken.length)[first]
        offset = (ends - taken.length - begin[taken.example]).astype(np.int32)
        row, slot = best_fit(np.diff(begin, append=ends[-1:]), sequence)
        row, slot = row[taken.example], slot[taken.example] + offset
    by_row = np.argsort(row * np.int64(sequence) + slot)
    columns = {"row": row[by_row], "slot": slot[by_row], "position": offset[by_row]}
    del row, slot, offset
    columns |= {name: getattr(taken, name)[by_row] for name in ("document", "start", "length")}
    columns["made"] = taken.made[by_row] if isinstance(taken.made, np.ndarray) else np.full(len(by_row), taken.made)
    del slices, taken, by_row  # a plan may have as many slices as there is memory for
    return make_plan(index, sequence, weigh_by, columns, vision_weight)


def make_plan(
    index: TokenIndex,
    sequence: int,
    weigh_by: WeighBy,
    columns: Mapping[str, np.ndarray],
    vision_weight: float | None = None,
) -> PackingPlan:
    """A plan of rows of one length from row, slot, position, document, start, length and made, sorted by (row, slot).

    A slice at position 0 begins an example, one at a later position goes on with it.
    """
    typed = {name: columns[name].astype(COLUMNS[name], copy=False) for name in columns}
    row, document, start, length = (typed[name] for name in ("row", "document", "start", "length"))
    number = np.cumsum(typed["position"] == 0, dtype=np.int32)
    above = np.where(np.diff(row, prepend=-1) > 0, number - 1, 0)  # examples in the rows above
    typed["segment"] = number - np.maximum.accumulate(above)
    typed["weight"] = np.ones(len(row), np.float32)
    rest = index.tokens[document] - start - length  # 1: the end-of-text is the last target; 0: it has none
    whole = (start == 0) & (rest == 1)
    if index.answers is None:
        typed["answers"] = length - (rest == 0)
    else:
        typed["answers"] = index.answers[document].astype(np.int32)
        if not (whole & (typed["answers"] > 0)).all():
            raise ValueError("a conversation is packed whole and has an answer")
    typed["seen"] = np.zeros(len(row), np.int32) if index.seen is None else index.seen[document].astype(np.int32)
    if not (whole | (typed["seen"] == 0)).all():
        raise ValueError("a document with vision ids is packed whole")
    rows = int(row[-1]) + 1 if len(row) else 0
    corpora = (Corpus("", rows, 1.0, sequence),)
    marked = index.answers is not None
    return PackingPlan(weigh_by, vision_weight, index.tokenizer_hash, marked, corpora, Schedule(), **typed)


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
    nothing = np.zeros(len(chosen), np.int64)
    columns = {"row": np.arange(len(chosen)), "slot": nothing, "position": nothing, "made": nothing}
    columns |= {"document": document[chosen], "start": turn[chosen] * sequence}
    return make_plan(index, sequence, "token", columns | {"length": np.full(len(chosen), sequence)})


def _joined(parts: Sequence[Slices]) -> Slices:
    """Several sets of slices as one; examples stay apart."""
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in ("document", "start", "length")
    }
    made = np.concatenate([np.full(len(part.document), part.made, np.int8) for part in parts])
    example = None
    if any(part.example is not None for part in parts):
        numbers, before = [], 0
        for part in parts:
            own = np.arange(len(part.document)) if part.example is None else part.example
            numbers.append(own + before)
            before += int(own[-1]) + 1 if len(own) else 0
        example = np.concatenate(numbers)
    return Slices(**columns, example=example, made=made)
