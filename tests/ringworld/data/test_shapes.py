"""Rows dealt evenly to ranks, and the split of chips that costs least."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringworld.data.order import Order, Schedule
from ringworld.data.packing import cut_in_rows, pack
from ringworld.data.shapes import Cost, Split, busiest, choose, deal, splits
from tests.ringworld.data.test_packing import index_of


@given(st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(1, 3), st.randoms(use_true_random=False))
def test_dealing_is_a_permutation_and_no_worse_than_as_drawn(ranks: int, each: int, micro: int, random) -> None:
    rows = ranks * each * micro
    work = np.array([random.randrange(1, 1000) for _ in range(rows)])
    split = Split(ranks, 1, ranks * each)
    dealt = deal(work, split)
    assert sorted(dealt.tolist()) == list(range(rows))
    # Of a microbatch no rank has more than the heaviest row above any other.
    loads = work[dealt].reshape(micro, ranks, each).sum(2)
    spread = work[dealt].reshape(micro, -1)
    assert (loads.max(1) - loads.min(1) <= spread.max(1) - spread.min(1)).all()
    assert busiest(work[dealt], split) == loads.max(1).sum()


def test_heavy_rows_go_to_ranks_there_and_back_again() -> None:
    work = np.array([1, 8, 6, 3, 5, 4, 2, 7])
    assert work[deal(work, Split(2))].reshape(2, 4).tolist() == [[8, 5, 4, 1], [7, 6, 3, 2]]
    assert work[deal(work, Split(2, 1, 4))].reshape(2, 2, 2).tolist() == [[[8, 5], [7, 6]], [[4, 1], [3, 2]]]


@pytest.mark.parametrize(("mean", "spread", "sequence"), [(11.6, 0.8, 131_072), (6.7, 1.1, 8192), (8.5, 1.5, 32_768)])
@pytest.mark.parametrize("ranks", [2, 8, 16])
def test_ranks_have_equal_work_within_a_tenth(mean: float, spread: float, sequence: int, ranks: int) -> None:
    """Rows of books, of the web and of both, with one row a rank: steps of the rows as drawn are far from it."""
    tokens = np.exp(np.random.default_rng(0).normal(mean, spread, 60_000)).astype(np.int64) + 2
    tokens = tokens[: np.searchsorted(np.cumsum(tokens), 4000 * sequence)]
    index = index_of(tokens)
    plan = pack(index, cut_in_rows(index, np.arange(len(tokens)), sequence), sequence, "token")
    steps = plan.num_rows // ranks

    def imbalance(window: int) -> np.ndarray:
        order = Order(plan.corpora, plan.work, ranks * sequence, 0, Schedule(window))
        work = [plan.work[order.rows_at(step)] for step in range(steps)]
        split = Split(ranks)
        return np.array([busiest(w[deal(w, split)], split) * ranks / w.sum() - 1 for w in work])

    assert np.quantile(imbalance(256), 0.98) < 0.1
    assert imbalance(256).mean() < 0.01
    assert imbalance(1).mean() > 0.1


def test_every_split_that_divides_rows_and_sequence_is_found() -> None:
    assert splits(16, 0, 512, 1, 8, 1) == [Split(8, 1), Split(4, 2), Split(2, 4), Split(1, 8)]
    assert splits(1, 0, 8192, 1, 8, 1) == [Split(1, 8)]
    assert splits(16, 4, 512, 2, 4, 4) == [Split(4, 2, 4), Split(2, 4, 4)]
    assert splits(3, 0, 512, 1, 8, 1) == [Split(1, 8)]
    assert splits(3, 0, 512, 2, 4, 1) == []


COST = Cost(pair=1000.0, token=300.0)


def chosen(works: list[list[int]], lengths: list[int], cost: Cost = COST) -> list[Split]:
    flat = np.concatenate([np.array(work, np.int64) for work in works])
    ends = np.cumsum([len(work) for work in works])
    rows = np.split(np.arange(len(flat)), ends[:-1])
    sequence = np.repeat(lengths, [len(work) for work in works])
    options = {length: splits(len(work), 0, length, 1, 8, 1) for work, length in zip(works, lengths, strict=True)}
    plan = choose(rows, flat, sequence, options, cost)
    assert len(plan.shapes) <= 2 * len(set(lengths))
    return [plan.shapes[shape][2] for shape in plan.of_step]


def test_short_rows_go_side_by_side_and_long_ones_on_a_ring() -> None:
    short, long = [512 * 513 // 2] * 16, [8192 * 8193 // 2]
    assert chosen([short, long, short], [512, 8192, 512]) == [Split(8, 1), Split(1, 8), Split(8, 1)]


def test_uneven_rows_take_a_ring_where_even_ones_do_not() -> None:
    """One heavy row among light ones: its rank would be waited for, so it is spread."""
    even, uneven = [10**8] * 8, [8 * 10**8] + [0] * 7
    found = chosen([even, uneven] * 5, [32_768] * 10)
    assert found[::2] == [Split(8, 1)] * 5
    assert found[1::2] == [Split(2, 4)] * 5
    # With a link too slow for it, the ring is not worth its traffic.
    assert chosen([uneven], [32_768], Cost(1000.0, 1e8)) == [Split(8, 1)]


def test_a_second_program_must_save_enough() -> None:
    even, odd = [1000] * 8, [1010] + [1000] * 7
    assert len(set(chosen([even] * 50 + [odd], [32_768] * 51))) == 1
