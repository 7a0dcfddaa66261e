"""Dataset Decomposition: every pair once, rows of one document, lengths that are powers of two."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringworld.data.decompose import Decompose, check_decompose, decomposed
from ringworld.errors import UserError
from tests.ringworld.data.test_packing import index_of


@given(st.lists(st.integers(2, 300), min_size=1, max_size=40), st.sampled_from([4, 8, 32]))
def test_documents_become_parts_of_powers_of_two(tokens: list[int], least: int) -> None:
    index = index_of(tokens)
    parts = decomposed(index, np.arange(len(tokens)), least, 32)
    pairs = [np.zeros(size - 1, int) for size in tokens]
    for size, slices in parts.items():
        for document, start, length in zip(slices.document, slices.start, slices.length, strict=True):
            pairs[document][start : start + length] += 1
            assert length == size or (size == least and length < least)
    assert all((count == 1).all() for count in pairs)
    # The binary digits of a length: each shorter part at most once, as in the paper.
    for size, slices in parts.items():
        whole = slices.document[slices.length == size]
        assert size == 32 or len(set(whole.tolist())) == len(whole)
    assert list(parts) == sorted(parts)


@pytest.mark.parametrize(
    ("how", "sequence", "said"),
    [
        ({"least": 100}, 512, "decompose.least=100: a power of two"),
        ({"least": 64}, 1000, "decompose.least=64 with sequence=1000"),
        ({"least": 1024}, 512, "decompose.least=1024 with sequence=512"),
        ({"least": 64, "cycles": 0}, 512, "cycles=0"),
    ],
)
def test_lengths_that_are_no_powers_of_two_are_refused(how: dict, sequence: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_decompose(Decompose(**how), sequence)
