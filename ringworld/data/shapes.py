"""How the rows of a step are split over devices: which rows a rank gets, over how long a ring a row is spread. Pure.

- Ranks that share a step's rows wait for the busiest one. `deal` orders the rows so that all have nearly the same
  attention to compute, in every microbatch.
- A long row needs a long ring; short rows are better off with many ranks and a short one, which exchanges less. The
  chips of `fsdp` and `ring` may be split either way between the two, step by step: `choose` takes for each length of
  rows the split that costs least, and a second one where that saves enough, so that few programs are compiled. (What
  FlexSP, arXiv:2412.01523, and ByteScale, arXiv:2502.21231, are after; theirs mix splits inside a step.)
- The cost is counted, in operations: the attention of the busiest rank, or what goes round the ring at the rate of a
  link, whichever takes longer, and a tenth of the latter. All else in a step is the same for every split of the same
  chips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ringworld.errors import UserError

# Operations that a chip does while its link sends a byte, of what attention reaches (half the peak): TPU v4 and v5p by
# their data sheets. Links between GPUs of one machine are faster, networks slower by an order of magnitude.
OPERATIONS_PER_BYTE = 3000.0
_EXPOSED = 0.1  # of what goes round, never hidden behind attention
_WORTH_ANOTHER = 0.02  # of the cost of all steps of a length: what a second split must save


@dataclass(frozen=True)
class Split:
    """ranks: that share the rows of a step, data x fsdp of the mesh. ring: ranks over which a row is spread.

    rows_at_once: rows of a microbatch; 0: all.
    """

    ranks: int = 1
    ring: int = 1
    rows_at_once: int = 0


ALONE = Split()


@dataclass(frozen=True)
class Cost:
    """pair: operations of one (query, key) pair. token: bytes of one token's keys, values and gradients on a hop."""

    pair: float
    token: float


@dataclass(frozen=True, eq=False)
class StepShapes:
    """The shape of every step. shapes: (slots of a row, rows, split), few of them, the longest rows first.

    of_step: int64 [steps], which shape a step has.

    imbalance: float64 [steps], the attention of the busiest rank over the mean of all, less 1.
    """

    shapes: tuple[tuple[int, int, Split], ...]
    of_step: np.ndarray
    imbalance: np.ndarray


def deal(work: np.ndarray, split: Split) -> np.ndarray:
    """int64 [rows]: rows of this work, in the order in which ranks hold them, microbatch after microbatch.

    Sorted rows go to ranks from first to last and back again. Rows of equal work keep their order. ValueError where
    the split does not divide the rows.
    """
    rows_at_once = split.rows_at_once or len(work)
    if len(work) % rows_at_once or rows_at_once % split.ranks:
        raise ValueError(f"{split.ranks} ranks and {rows_at_once} rows at once do not divide {len(work)} rows")
    if split.ranks == 1:
        return np.arange(len(work))
    turns = np.argsort(-work, kind="stable").reshape(-1, split.ranks)
    turns[1::2] = turns[1::2, ::-1]
    return turns.reshape(-1, rows_at_once // split.ranks, split.ranks).swapaxes(1, 2).reshape(-1)


def busiest(work: np.ndarray, split: Split) -> float:
    """The attention of the busiest rank, summed over microbatches, of rows in the order of `deal`."""
    rows_at_once = split.rows_at_once or len(work)
    return float(work.reshape(-1, split.ranks, rows_at_once // split.ranks).sum(2).max(1).sum())


def splits(rows: int, rows_at_once: int, sequence: int, data: int, chips: int, others: int) -> list[Split]:
    """Every way to split `chips` (fsdp x ring of a mesh) that divides the rows and the sequence, shortest ring first.

    data: further ranks for rows. others: further ranks for the sequence (ulysses x tensor).
    """
    found = []
    for ring in range(1, chips + 1):
        if chips % ring == 0 and sequence % (ring * others) == 0:
            ranks = data * chips // ring
            if (rows_at_once or rows) % ranks == 0:
                found.append(Split(ranks, ring, rows_at_once))
    return found


def choose(
    rows: Sequence[np.ndarray],
    work: np.ndarray,
    sequence: np.ndarray,
    options: Mapping[int, Sequence[Split]],
    cost: Cost,
) -> StepShapes:
    """The shape of each step.

    rows: of each step. work: int64, of each row of the plan. sequence: int [plan's rows], its slots. options: the
    splits to choose from, by the slots of a row; with one for each length nothing is left to choose.
    """
    lengths = np.array([sequence[of_step[0]] for of_step in rows])
    shapes: list[tuple[int, int, Split]] = []
    of_step, imbalance = np.zeros(len(rows), np.int64), np.zeros(len(rows))
    for length in np.unique(lengths)[::-1].tolist():
        steps = np.flatnonzero(lengths == length)
        number = len(rows[steps[0]])
        total = np.array([max(1, work[rows[step]].sum()) for step in steps])
        loads = np.array([[_load(work[rows[step]], split) for split in options[length]] for step in steps])
        costs = [
            _operations(load, split, number * length, cost)
            for load, split in zip(loads.T, options[length], strict=True)
        ]
        costs = np.stack(costs, axis=1)  # [steps, splits]
        kept = _few(costs)
        best = kept[np.argmin(costs[:, kept], axis=1)]
        for place in np.unique(best).tolist():
            split = options[length][place]
            mine = steps[best == place]
            of_step[mine] = len(shapes)
            imbalance[mine] = loads[best == place, place] * split.ranks / total[best == place] - 1
            shapes.append((length, number, split))
    return StepShapes(tuple(shapes), of_step, imbalance)


def refuse(rows: int, sequence: int, mesh: str) -> UserError:
    """The error for rows that no split of a mesh's chips divides."""
    return UserError(
        f"options.shapes=auto: no split of the chips on fsdp and ring of mesh {mesh} divides a step of {rows} rows of "
        f"{sequence} tokens; use a power of two of chips, or another batch_tokens"
    )


def _load(work: np.ndarray, split: Split) -> float:
    return busiest(work[deal(work, split)], split)


def _operations(load: np.ndarray, split: Split, tokens: int, cost: Cost) -> np.ndarray:
    """Each step's cost in operations of one chip."""
    traffic = (split.ring - 1) * tokens / (split.ranks * split.ring) * cost.token
    exchange = traffic * OPERATIONS_PER_BYTE
    return np.maximum(load / split.ring * cost.pair, exchange) + _EXPOSED * exchange


def _few(costs: np.ndarray) -> np.ndarray:
    """The split of least cost over all steps, and the one that saves most beside it, if that is worth a program."""
    first = int(costs.sum(0).argmin())
    with_both = np.minimum(costs, costs[:, [first]]).sum(0)
    second = int(with_both.argmin())
    worth = with_both[second] < (1 - _WORTH_ANOTHER) * costs[:, first].sum()
    return np.array(sorted([first, second]) if worth else [first])  # of equal ones the shorter ring
