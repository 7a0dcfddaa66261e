"""Untie the Knots: chunks far apart, and still every pair once, every document in its order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringworld.data.packing import cut_in_rows, join_chains, pack
from ringworld.data.plan import ASSEMBLED, UNTIED
from ringworld.data.untie import Untie, untied
from ringworld.errors import UserError
from tests.ringworld.data.test_packing import index_of, plan_of


@given(
    st.lists(st.integers(2, 70), min_size=2, max_size=40),
    st.integers(8, 40),
    st.floats(0, 1),
    st.integers(2, 5),
    st.integers(1, 9),
    st.integers(0, 9),
)
def test_every_pair_stays_in_its_row_and_each_document_in_its_order(
    tokens: list[int], sequence: int, share: float, chunks: int, least: int, seed: int
) -> None:
    plan = plan_of(tokens, sequence)
    knotted = untied(plan, Untie(share, chunks, least), seed)
    assert knotted.corpora == plan.corpora
    for row in range(plan.num_rows):
        before = slice(plan.row_start[row], plan.row_start[row + 1])
        after = slice(knotted.row_start[row], knotted.row_start[row + 1])

        def pairs(columns, rows: slice) -> list[tuple[int, int]]:
            found = zip(columns.document[rows], columns.start[rows], columns.length[rows], strict=True)
            return [(int(d), int(s) + k) for d, s, n in found for k in range(n)]

        assert sorted(pairs(plan, before)) == sorted(pairs(knotted, after))
        for document in set(plan.document[before].tolist()):
            own = [place for d, place in pairs(knotted, after) if d == document]
            assert own == sorted(own)
        # Slots are taken one after another.
        ends = np.cumsum(knotted.length[after])
        assert knotted.slot[after].tolist() == [0, *ends[:-1]]
        if (knotted.made[after] == UNTIED).all():
            assert plan.segment[before].max() > 1
            assert set(knotted.segment[after]) == {1}
            assert knotted.position[after].tolist() == knotted.slot[after].tolist()
            assert knotted.length[after].min() >= min(least, plan.length[before].min())
            pieces = np.unique(knotted.document[after], return_counts=True)[1]
            assert pieces.max() <= chunks
            assert knotted.document[after][-1] == plan.document[before][-1]
        else:
            assert knotted.segment[after].tolist() == plan.segment[before].tolist()


def test_the_share_is_of_the_rows_that_can_be_shuffled_and_the_seed_chooses() -> None:
    tokens = np.random.default_rng(0).integers(20, 60, 4000)
    plan = plan_of(tokens, 128)
    knotted = [untied(plan, Untie(0.3), seed) for seed in (0, 0, 1)]
    rows = [np.unique(each.row[each.made == UNTIED]) for each in knotted]
    assert len(rows[0]) / plan.num_rows == pytest.approx(0.3, abs=0.04)
    assert np.array_equal(knotted[0].start, knotted[1].start)
    assert len(np.intersect1d(rows[0], rows[2])) < 0.5 * len(rows[0])
    # Chunks of a document really come apart.
    inside = knotted[0].made == UNTIED
    neighbours = (knotted[0].document[inside][1:] == knotted[0].document[inside][:-1]).mean()
    assert neighbours < 0.45


def test_assembled_rows_and_rows_of_one_document_stay() -> None:
    index = index_of([9, 9, 40, 17])
    plan = pack(
        index, [join_chains(index, [np.array([0, 1])], 32), cut_in_rows(index, np.array([2, 3]), 32)], 32, "token"
    )
    knotted = untied(plan, Untie(1.0, least=1), 0)
    row = int(plan.row[plan.made == ASSEMBLED][0])
    assert (knotted.made[knotted.row == row] != UNTIED).all()
    assert not (knotted.made == UNTIED).any()


@pytest.mark.parametrize(("change", "said"), [({"share": 1.5}, "untie.share=1.5"), ({"chunks": 1}, "untie.chunks=1")])
def test_what_cannot_be_is_refused(change: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Untie(**change)
