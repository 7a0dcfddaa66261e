"""Held-out documents as rows to score: windows of texts, and examples whole.

Both are selected, packed and read by what training uses, so that a loss of them is what training makes smaller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ringworld.data.loader import Loader
from ringworld.data.packing import cut_in_rows, evaluation_rows, pack, select_whole
from ringworld.data.token_store import TokenStore
from ringworld.errors import UserError
from ringworld.evaluate.scorer import Rows


@dataclass(frozen=True, eq=False)
class Example:
    """A document whole, in a row of its `Examples` from `slot` on.

    ids: int32 [tokens]. counts: bool [tokens], whether the loss counts a token as a target; the first is never one.
    """

    document: int
    row: int
    slot: int
    ids: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True, eq=False)
class Examples:
    """Held-out examples of a corpus as rows.

    weight: float32 [rows, sequence], of each target's loss, as in a training batch that holds all of them. left_out:
    how many held-out examples cannot be scored, by reason.
    """

    rows: Rows
    weight: np.ndarray
    examples: tuple[Example, ...]
    left_out: Mapping[str, int]


def windows(store: TokenStore, sequence: int, count: int) -> Rows:
    """Up to `count` windows of held-out documents, as rows."""
    plan = evaluation_rows(store.index, "held_out", sequence, count)
    batch = Loader(store, plan, seed=0, rows_per_batch=plan.num_rows).batch(0)
    return Rows(batch.tokens, batch.targets, batch.segments, batch.positions)


def windows_of(texts: Sequence[np.ndarray], sequence: int, count: int) -> Rows:
    """The same of texts that are in no store, each int32 [tokens]: first the window at the beginning of each that has
    one, then the next of each, and so on. UserError where none is long enough."""
    turns = max((len(text) - 1 for text in texts), default=0) // sequence
    found = [
        text[turn * sequence : (turn + 1) * sequence + 1]
        for turn in range(turns)
        for text in texts
        if len(text) > (turn + 1) * sequence
    ][:count]
    if not found:
        longest = max((len(text) for text in texts), default=0)
        raise UserError(f"the longest text has {longest} tokens and {sequence + 1} are needed; give longer ones")
    whole = np.stack(found).astype(np.int32)
    ones = np.ones((len(found), sequence), np.int32)
    return Rows(whole[:, :-1], whole[:, 1:], ones, ones * np.arange(sequence, dtype=np.int32))


def read_examples(store: TokenStore, corpus: str, sequence: int, most: int, where: str) -> Examples:
    """At most `most` held-out examples of a corpus, spread evenly over those that fit a row of `sequence` slots.

    UserError, naming the setting `where` and the lengths that exist, where none fits.
    """
    whole = select_whole(store.index, "held_out", corpus, sequence, where)
    spread = np.linspace(0, len(whole.documents) - 1, min(most, len(whole.documents))).round().astype(np.int64)
    plan = pack(store.index, cut_in_rows(store.index, whole.documents[spread], sequence), sequence, "example")
    loader = Loader(store, plan, seed=0, rows_per_batch=plan.num_rows, shuffle=False)
    batch = loader.batch(0)
    place = np.argsort(loader.rows_at(0))  # in the batch, of each row of the plan
    examples = []
    for document, row, slot, length in zip(
        plan.document.tolist(), place[plan.row].tolist(), plan.slot.tolist(), plan.length.tolist(), strict=True
    ):
        at = (row, slice(slot, slot + length))
        ids = np.append(batch.tokens[at], batch.targets[row, slot + length - 1])
        counts = np.append(False, batch.loss_weight[at] > 0)
        examples.append(Example(document, row, slot, ids, counts))
    rows = Rows(batch.tokens, batch.targets, batch.segments, batch.positions)
    return Examples(rows, batch.loss_weight, tuple(examples), whole.dropped)
