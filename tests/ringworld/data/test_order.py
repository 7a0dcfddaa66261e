"""The rows of a step are a pure function: every row once an epoch, every corpus in its proportion, of equal work."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringworld.data.order import Corpus, Order, Schedule, counts, draws, row_order
from ringworld.errors import UserError


def order_of(
    corpora: list[Corpus],
    rows_per_step: int,
    seed: int = 0,
    schedule: Schedule | None = None,
    work: np.ndarray | None = None,
) -> Order:
    rows = sum(corpus.rows for corpus in corpora)
    longest = max(corpus.sequence for corpus in corpora)
    work = np.random.default_rng(1).integers(1, 10**6, rows) if work is None else work
    return Order(corpora, work, rows_per_step * longest, seed, schedule or Schedule())


@given(st.integers(1, 40), st.integers(1, 90), st.integers(0, 2**40), st.integers(1, 6))
def test_an_epoch_has_every_row_once(rows_per_step: int, num_rows: int, seed: int, window: int) -> None:
    order = order_of([Corpus("", num_rows, 1.0, 8)], rows_per_step, seed, Schedule(window))
    steps = -(-3 * num_rows // rows_per_step)
    drawn = np.concatenate([order.rows_at(step) for step in range(steps)])
    for epoch in range(3):
        assert sorted(drawn[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))


def test_epochs_and_seeds_differ_and_the_order_never_changes() -> None:
    orders = {tuple(row_order(50, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    # Pinned: a run resumed years later must draw the same rows.
    assert row_order(8, 0, 0).tolist() == [0, 1, 6, 3, 5, 4, 2, 7]
    by_work = order_of([Corpus("", 8, 1.0, 8)], 2, schedule=Schedule(3), work=np.arange(8) ** 2)
    assert [by_work.rows_at(step).tolist() for step in range(5)] == [[5, 6], [0, 1], [3, 4], [2, 7], [2, 3]]
    first = np.stack([row_order(4, seed, 0) for seed in range(4000)])[:, 0]
    assert np.bincount(first).min() > 900


SHARES = st.lists(st.floats(0.01, 5), min_size=1, max_size=4)


@given(SHARES, st.integers(0, 10**9))
def test_every_corpus_has_its_share_of_any_first_draws(shares: list[float], first: int) -> None:
    owner, turn = draws(shares, first, first + 300)
    for number, share in enumerate(shares):
        turns = turn[owner == number]
        # The turns of a corpus are counted without a gap, from the start of the run and not of the step.
        assert turns.tolist() == list(range(*turns[[0, -1]] + [0, 1])) if len(turns) else True
        expected = share / sum(shares) * (first + 300)
        if len(turns):
            assert abs(turns[-1] + 1 - expected) <= len(shares) + 2e-6 * len(shares) * (first + 300) + 300 * 1e-9
    for cut in (1, 150):
        parts = draws(shares, first, first + cut), draws(shares, first + cut, first + 300)
        assert np.array_equal(np.concatenate([part[0] for part in parts]), owner)
        assert np.array_equal(np.concatenate([part[1] for part in parts]), turn)
        had = np.bincount(owner[:cut], minlength=len(shares))
        assert np.array_equal(np.diff(counts(shares, np.array([first, first + cut])), axis=1)[:, 0], had)


@pytest.mark.parametrize("window", [1, 20])
def test_seven_to_three_is_seven_to_three_in_every_ten_rows(window: int) -> None:
    order = order_of([Corpus("chat", 1000, 0.7, 8), Corpus("qa", 5, 0.3, 8)], 10, 4, Schedule(window))
    drawn = np.stack([order.rows_at(step) for step in range(100)])
    assert ((drawn < 1000).sum(axis=1) == 7).all()
    assert order.drawn(100) == [700, 300]
    # Nothing comes twice before all of its corpus came once, and every turn of a corpus is another permutation.
    assert len(set(drawn[drawn < 1000].tolist())) == 700
    turns = drawn[drawn >= 1000].reshape(-1, 5)
    assert all(sorted(turn) == list(range(1000, 1005)) for turn in turns.tolist())
    if window == 1:
        assert len({tuple(turn) for turn in turns.tolist()}) > 20


@pytest.mark.parametrize("rows", [4000, 4096, 700])
def test_the_rows_of_a_step_have_equal_work_and_steps_do_not(rows: int) -> None:
    """Also where an epoch ends inside a step."""
    work = (np.random.default_rng(0).lognormal(0, 1, rows) * 1e6).astype(np.int64)
    corpora = [Corpus("", rows, 1.0, 8)]

    def spread(window: int) -> np.ndarray:
        order = order_of(corpora, 16, 5, Schedule(window), work)
        steps = np.stack([work[order.rows_at(step)] for step in range(3 * rows // 16)])
        assert steps.mean(axis=1).std() > 0.2 * steps.mean()
        return steps.std(axis=1) / steps.mean(axis=1)

    assert np.median(spread(64)) < 0.1 * np.median(spread(1))
    assert np.quantile(spread(64), 0.9) < 0.35


def test_rows_of_equal_work_stay_shuffled() -> None:
    """A book's rows have equal work and lie side by side in a plan: they must not make up a step."""
    order = order_of([Corpus("", 1024, 1.0, 8)], 8, 0, Schedule(64), np.full(1024, 7))
    gaps = [np.diff(np.sort(order.rows_at(step))).min() for step in range(128)]
    assert np.mean(np.array(gaps) > 1) > 0.6


LENGTHS = [Corpus("a", 400, 1.0, 64), Corpus("b", 100, 2.0, 128), Corpus("c", 90, 1.0, 128), Corpus("d", 50, 4.0, 512)]


@pytest.mark.parametrize("schedule", [Schedule(), Schedule(cycle=40, odds=4.0), Schedule(window=5, cycle=7, odds=0.5)])
def test_a_step_has_rows_of_one_length_and_constant_tokens(schedule: Schedule) -> None:
    order = order_of(LENGTHS, 2, 3, schedule)
    firsts = np.cumsum([0, *(corpus.rows for corpus in LENGTHS)])
    steps = [order.rows_at(step) for step in range(160)]
    owners = [np.searchsorted(firsts, rows, side="right") - 1 for rows in steps]
    for step, owner in enumerate(owners):
        assert {LENGTHS[corpus].sequence for corpus in owner} == {order.sequence_at(step)}
        assert len(owner) * order.sequence_at(step) == 1024
    slots = np.bincount(np.concatenate(owners), [LENGTHS[c].sequence for c in np.concatenate(owners)])
    assert slots / slots.sum() == pytest.approx(np.array([1, 2, 1, 4]) / 8, abs=0.02)
    assert order.drawn(160) == np.bincount(np.concatenate(owners)).tolist()
    assert order.drawn(93) == np.bincount(np.concatenate(owners[:93]), minlength=4).tolist()
    # Each corpus walks through all its rows before any comes again.
    for number, corpus in enumerate(LENGTHS):
        mine = np.concatenate([rows[owner == number] for rows, owner in zip(steps, owners, strict=True)])
        assert len(set(mine[: corpus.rows].tolist())) == min(corpus.rows, len(mine))


def test_a_curriculum_goes_from_short_to_long_in_every_cycle() -> None:
    for odds, falls in ((8.0, False), (0.125, True)):
        order = order_of(LENGTHS, 2, 0, Schedule(cycle=100, odds=odds))
        lengths = np.array([order.sequence_at(step) for step in range(400)]).reshape(4, 2, 50).mean(axis=2)
        assert ((lengths[:, 0] > 1.5 * lengths[:, 1]) if falls else (lengths[:, 1] > 1.5 * lengths[:, 0])).all()


def test_what_cannot_be_drawn_is_an_error() -> None:
    with pytest.raises(UserError, match="no rows"):
        order_of([Corpus("a", 3, 1.0, 8), Corpus("b", 0, 1.0, 8)], 4)
    with pytest.raises(UserError, match="batch_tokens=96 is not a multiple of the plan's rows of 64"):
        Order([Corpus("a", 3, 1.0, 64)], np.ones(3, np.int64), 96, 0, Schedule())
    with pytest.raises(UserError, match="window=0"):
        Schedule(window=0)
    with pytest.raises(UserError, match="odds=-1"):
        Schedule(odds=-1)
    with pytest.raises(IndexError, match="step -1"):
        order_of([Corpus("a", 3, 1.0, 8)], 1).rows_at(-1)
