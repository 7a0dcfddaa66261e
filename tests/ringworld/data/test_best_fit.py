"""Best-fit decreasing, against the textbook's loop over rows."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringworld.data.best_fit import best_fit


def rooms_of_the_textbook(sizes: list[int], capacity: int) -> list[int]:
    rooms: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [(room, row) for row, room in enumerate(rooms) if room >= size]
        if fitting:
            rooms[min(fitting)[1]] -= size
        else:
            rooms.append(capacity - size)
    return sorted(rooms)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(1, n), max_size=120))))
def test_it_is_best_fit_decreasing(given: tuple[int, list[int]]) -> None:
    capacity, sizes = given
    row, slot = best_fit(np.array(sizes, np.int64), capacity)
    taken = np.zeros((row.max(initial=-1) + 1, capacity), int)
    for size, at, begin in zip(sizes, row, slot, strict=True):
        assert begin + size <= capacity
        taken[at, begin : begin + size] += 1
    assert taken.max(initial=0) <= 1
    assert sorted((taken == 0).sum(axis=1).tolist()) == rooms_of_the_textbook(sizes, capacity)
    # Rows are filled from their first slot, without a gap.
    assert (np.sort(taken, axis=1)[:, ::-1] == taken).all()


def test_larger_sizes_come_first_and_equal_ones_in_order() -> None:
    row, slot = best_fit(np.array([3, 5, 3, 3, 5]), 10)
    assert list(zip(row.tolist(), slot.tolist(), strict=True)) == [(1, 0), (0, 0), (1, 3), (1, 6), (0, 5)]


@pytest.mark.parametrize("wrong", [0, 11, -1])
def test_a_size_that_no_row_holds_is_an_error(wrong: int) -> None:
    with pytest.raises(ValueError, match=f"size {wrong} does not fit a row of 10"):
        best_fit(np.array([3, wrong]), 10)


@pytest.mark.parametrize(("mean", "spread", "capacity"), [(6.7, 1.1, 8192), (11.6, 0.8, 131_072)])
def test_a_million_sizes_take_a_second_and_fill_the_rows(mean: float, spread: float, capacity: int) -> None:
    """Lengths like the web's and like books', of which what is beyond a row is a rest."""
    sizes = np.exp(np.random.default_rng(0).normal(mean, spread, 1_000_000)).astype(np.int64) % capacity + 1
    began = time.process_time()
    row, _ = best_fit(sizes, capacity)
    assert time.process_time() - began < 10
    assert sizes.sum() / ((int(row.max()) + 1) * capacity) > 0.99
