"""Untie the Knots: documents of a row cut in chunks and shuffled among each other, so that a text goes on far away.

After Tian et al., "Untie the Knots" (arXiv:2409.04774). Of a share of the rows, each document is cut in a few chunks at
random places; the chunks of all documents are shuffled, those of a document keep their order, and the chunk that ends
the row stays there. The whole row is one example: a chunk sees all before it, and to predict it well a model has to
find where its document was left.

Simplified: the paper marks the two ends of each cut with tokens of its own, added to the vocabulary, and for some rows
asks for the order of the chunks. Here a chunk's last target is the true next token of its document, wherever that lies:
nothing is added, and every (input, target) pair of a plan is there once, as before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ringworld.data.order import split_mix
from ringworld.data.plan import COLUMNS, NATURAL, UNTIED, PackingPlan
from ringworld.errors import UserError


@dataclass(frozen=True)
class Untie:
    """share: of the rows of two or more examples, how many are shuffled, 0 to 1; the paper's is 0.3. chunks: in how
    many each of their documents is cut; the paper's is 3. least: tokens of the shortest chunk."""

    share: float = 0.0
    chunks: int = 3
    least: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UserError(f"untie.share={self.share}: a share of the rows, from 0 to 1")
        if self.chunks < 2 or self.least < 1:
            raise UserError(f"untie.chunks={self.chunks}, least={self.least}: 2 chunks or more, of 1 token or more")


def untied(plan: PackingPlan, how: Untie, seed: int) -> PackingPlan:
    """The plan with a share of its rows shuffled; the same rows for the same seed.

    Rows of one example stay, and so do those with assembled ones, which are context for each other already. ValueError
    for conversations and for examples with pictures.
    """
    if not how.share:
        return plan
    if plan.marked or plan.seen.any():
        raise ValueError("conversations and examples with pictures are not cut")
    able = (plan.segment[plan.row_start[1:] - 1] > 1) & (np.maximum.reduceat(plan.made, plan.row_start[:-1]) == NATURAL)
    chosen = able & (_random(seed, 1, np.arange(plan.num_rows)) < how.share)
    here = chosen[plan.row]
    knots = _shuffled(plan.row[here], plan.document[here], plan.start[here], plan.length[here], how, seed)
    row, slot, document, start, length = knots
    first_slot = np.zeros(len(row), np.int64)
    columns = {
        "row": row,
        "slot": slot,
        "segment": first_slot + 1,
        "position": slot,
        "document": document,
        "start": start,
        "length": length,
        "answers": length,
        "seen": first_slot,
        "weight": np.ones(len(row)),
        "made": np.full(len(row), UNTIED),
    }
    joined = {
        name: np.concatenate([getattr(plan, name)[~here], columns[name].astype(kind)]) for name, kind in COLUMNS.items()
    }
    order = np.lexsort((joined["slot"], joined["row"]))
    return replace(plan, **{name: column[order] for name, column in joined.items()})


def _shuffled(
    row: np.ndarray, document: np.ndarray, start: np.ndarray, length: np.ndarray, how: Untie, seed: int
) -> tuple[np.ndarray, ...]:
    """Slices cut in chunks and dealt anew within their rows: (row, slot, document, start, length) of the chunks."""
    slices = np.arange(len(row))
    chunks = np.clip(length.astype(np.int64) // how.least, 1, how.chunks)
    of = np.repeat(slices, chunks)  # the slice of each chunk
    turn = np.arange(len(of)) - np.repeat(np.cumsum(chunks) - chunks, chunks)
    begin = _cuts(of, turn, chunks[of], length[of].astype(np.int64), how.least, seed)
    end = np.append(begin[1:], 0)
    last = turn == chunks[of] - 1
    end[last] = length[of][last]

    # Places of a row in random order, each owned by the chunk that drew it; a slice's chunks take its places in order.
    draw = _random(seed, 3, np.arange(len(of)))
    draw[np.searchsorted(row[of], row[of], side="right") - 1 == np.arange(len(of))] = 1.0  # the row's last chunk stays
    places = np.lexsort((draw, row[of]))
    owner = of[places]
    within = np.argsort(owner, kind="stable")  # places by slice, each slice's in order
    chunk = np.empty(len(of), np.int64)
    chunk[within] = np.arange(len(of))  # chunks are numbered by slice and turn
    size = (end - begin)[chunk]
    in_row = row[owner]
    slot = np.cumsum(size) - size
    slot -= slot[np.searchsorted(in_row, in_row)]
    return in_row, slot, document[owner], start[owner] + begin[chunk], size


def _cuts(
    of: np.ndarray, turn: np.ndarray, chunks: np.ndarray, length: np.ndarray, least: int, seed: int
) -> np.ndarray:
    """int64 [chunks]: where in its slice each chunk begins: at random places, no chunk shorter than `least`.

    What a slice has beyond `least` tokens a chunk is divided at sorted random points.
    """
    spare = length - chunks * least
    point = _random(seed, 2, np.arange(len(of)))
    point[turn == 0] = 0.0
    point = point[np.lexsort((point, of))]
    begin = turn * least + (point * (np.maximum(spare, 0) + 1)).astype(np.int64)
    return np.where(turn == 0, 0, begin)


def _random(seed: int, stream: int, items: np.ndarray) -> np.ndarray:
    """float64 in [0, 1) of each item, the same on every machine."""
    key = split_mix(split_mix(np.array([seed % (1 << 64)], np.uint64)) ^ np.uint64(stream << 32))
    return (split_mix(items.astype(np.uint64) ^ key) >> np.uint64(11)).astype(np.float64) / (1 << 53)
