"""Best-fit decreasing: sizes into rows of one capacity, each into the fullest row that still has room for it.

Equal sizes are placed together. While they are, a row that has taken one is the fullest that has room until it has none
left, so rows of equal room take equally many: whole runs of rows are described by six numbers, and nothing is done for
a single item. A run's room at least halves each time that it is touched, so the work grows with the number of different
sizes times the logarithm of the capacity, whatever the number of items: ten million take seconds.

Packing documents so, instead of cutting a stream of them, is Ding et al., "Fewer Truncations Improve Language Modeling"
(arXiv:2404.10830).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort

import numpy as np


def best_fit(sizes: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, slot), int32 [sizes]: where each size lies, rows numbered from 0 as they were opened.

    Larger sizes go first, equal ones in their order. Among rows of equal room the choice is fixed but not specified.
    Raises ValueError for a size outside 1 .. capacity.
    """
    sizes = np.asarray(sizes)
    if len(sizes) and not (sizes.min() > 0 and sizes.max() <= capacity):
        wrong = sizes[(sizes < 1) | (sizes > capacity)][0]
        raise ValueError(f"size {wrong} does not fit a row of {capacity}")
    distinct, count = np.unique(sizes, return_counts=True)
    first_row, rows, each, room, size = _runs(distinct[::-1].tolist(), count[::-1].tolist(), capacity)

    # A run holds rows * each items, the `each` of a row one after another. Four bytes a number: there may be many.
    items = rows * each
    turn = np.repeat(each.astype(np.int32), items)
    inside = np.arange(len(sizes), dtype=np.int32)
    inside -= np.repeat((np.cumsum(items) - items).astype(np.int32), items)
    order = np.argsort(-sizes, kind="stable")
    row, slot = np.empty(len(sizes), np.int32), np.empty(len(sizes), np.int32)
    row[order] = np.repeat(first_row.astype(np.int32), items) + inside // turn
    inside %= turn
    inside *= np.repeat(size.astype(np.int32), items)
    inside += np.repeat((capacity - room).astype(np.int32), items)
    slot[order] = inside
    return row, slot


def _runs(distinct: list[int], count: list[int], capacity: int) -> tuple[np.ndarray, ...]:
    """Runs of neighbouring rows that took equally many of one size, in the order of the items: int64 [runs] each of the
    first row, the number of rows, items a row, the room a row had before, the size."""
    found = tuple(array("q") for _ in range(5))
    open_rows: dict[int, list[tuple[int, int]]] = {}  # room of a row -> runs (first row, rows) that have it
    rooms: list[int] = []  # its keys, ascending
    opened = 0

    def leave(room: int, first: int, rows: int) -> None:
        if room and rows:
            if room not in open_rows:
                open_rows[room] = []
                insort(rooms, room)
            open_rows[room].append((first, rows))

    for size, left in zip(distinct, count, strict=True):
        while left:
            at = bisect_left(rooms, size)
            if at < len(rooms):
                room = rooms[at]
                first, rows = open_rows[room].pop()
                if not open_rows[room]:
                    del open_rows[room], rooms[at]
            else:
                each = capacity // size
                first, rows, room = opened, -(-left // each), capacity
                opened += rows
            each = room // size
            full, rest = min(rows, left // each), 0
            if full:
                _append(found, first, full, each, room, size)
                leave(room - each * size, first, full)
            if full < rows:
                rest = left - full * each
                if rest:
                    _append(found, first + full, 1, rest, room, size)
                    leave(room - rest * size, first + full, 1)
                leave(room, first + full + (rest > 0), rows - full - (rest > 0))
            left -= full * each + rest
    return tuple(np.frombuffer(column, np.int64) if len(column) else np.zeros(0, np.int64) for column in found)


def _append(columns: tuple[array[int], ...], *values: int) -> None:
    for column, value in zip(columns, values, strict=True):
        column.append(value)
