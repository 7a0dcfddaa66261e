"""The rows of a step are a pure function: every row once an epoch, every corpus in its proportion."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringworld.data.order import Corpus, draws, row_order, rows_at_step
from ringworld.errors import UserError


@given(st.integers(1, 40), st.integers(1, 90), st.integers(0, 2**40))
def test_an_epoch_has_every_row_once(rows_per_batch: int, num_rows: int, seed: int) -> None:
    steps = -(-3 * num_rows // rows_per_batch)
    corpora = [Corpus("", num_rows)]
    drawn = np.concatenate([rows_at_step(step, rows_per_batch, corpora, seed) for step in range(steps)])
    for epoch in range(3):
        assert sorted(drawn[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))


def test_epochs_and_seeds_differ_and_the_order_never_changes() -> None:
    orders = {tuple(row_order(50, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    # Pinned: a run resumed years later must draw the same rows.
    assert row_order(8, 0, 0).tolist() == [0, 1, 6, 3, 5, 4, 2, 7]
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


def test_seven_to_three_is_seven_to_three_in_every_ten_rows() -> None:
    corpora = [Corpus("chat", 1000, 0.7), Corpus("qa", 5, 0.3)]
    for step in range(50):
        rows = rows_at_step(step, 10, corpora, seed=4)
        assert (rows < 1000).sum() == 7
    drawn = np.concatenate([rows_at_step(step, 10, corpora, seed=4) for step in range(100)])
    # Nothing comes twice before all of its corpus came once, and every turn of a corpus is another permutation.
    assert len(set(drawn[drawn < 1000].tolist())) == 700
    turns = drawn[drawn >= 1000].reshape(-1, 5)
    assert all(sorted(turn) == list(range(1000, 1005)) for turn in turns.tolist())
    assert len({tuple(turn) for turn in turns.tolist()}) > 20


def test_a_corpus_without_rows_is_an_error() -> None:
    with pytest.raises(UserError, match="no rows"):
        rows_at_step(0, 4, [Corpus("a", 3), Corpus("b", 0)], 0)
