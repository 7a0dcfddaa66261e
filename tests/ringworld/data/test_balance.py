"""Layouts of a ring: equal work for every rank, little waiting at any hop, and a permutation that can be undone."""

from __future__ import annotations

import time

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringworld.attention.mask import Bounds, Tokens, bounds, is_needed
from ringworld.data.balance import TOLERANCE, Documents, Layout, balance
from ringworld.data.best_fit import best_fit

MILLION = 1 << 20


def packed(lengths: list[int], sequence: int, gaps: list[int] | None = None) -> Documents:
    """Documents one after another, each after a gap of padding; what does not fit is left out."""
    slots, kept, at = [], [], 0
    for length, gap in zip(lengths, gaps or [0] * len(lengths), strict=True):
        if at + gap + length <= sequence:
            slots.append(at + gap)
            kept.append(length)
            at += gap + length
    return Documents(np.array(slots, np.int32), np.array(kept, np.int32), sequence)


def tokens_of(documents: Documents) -> tuple[np.ndarray, np.ndarray]:
    """(positions, segments) of the row, int32 [sequence], written slot by slot."""
    positions, segments = np.zeros(documents.sequence, np.int32), np.zeros(documents.sequence, np.int32)
    for number, (slot, length) in enumerate(zip(documents.slot, documents.length, strict=True), start=1):
        positions[slot : slot + length] = np.arange(length)
        segments[slot : slot + length] = number
    return positions, segments


def work_of(documents: Documents) -> np.ndarray:
    """int64 [sequence]: the keys that the query of each slot meets."""
    positions, segments = tokens_of(documents)
    return np.where(segments > 0, positions.astype(np.int64) + 1, 0)


def excess(values: np.ndarray) -> float:
    return float(values.max() / values.mean() - 1) if values.any() else 0.0


def waiting(needed: np.ndarray, ring: int) -> float:
    """`Layout.waiting` of a laid-out row, from which of its blocks of scores hold something: bool [pieces, pieces]."""
    pairs = needed.reshape(ring, len(needed) // ring, ring, -1).sum((1, 3))
    hops = [max(pairs[rank, (rank - hop) % ring] for rank in range(ring)) for hop in range(ring)]
    return float(sum(hops) * ring / pairs.sum() - 1) if pairs.any() else 0.0


def waiting_by_bounds(documents: Documents, layout: Layout) -> float:
    """The same as attention sees it, by the bounds of the mask."""
    positions, segments = (layout.apply(x).reshape(-1, layout.size) for x in tokens_of(documents))
    blocks = bounds(Tokens(jnp.asarray(positions), jnp.asarray(segments)))
    needed = is_needed(Bounds(*(x[:, None] for x in blocks)), Bounds(*(x[None] for x in blocks)))
    return waiting(np.asarray(needed), layout.ring_size)


@st.composite
def packings(draw: st.DrawFn) -> tuple[Documents, int, int]:
    """(documents, ring size, block) of small rows: any lengths, padding anywhere, shares that two divides or not."""
    ring, block = draw(st.integers(1, 8)), draw(st.integers(1, 16))
    sequence = ring * draw(st.integers(1, 96))
    lengths = draw(st.lists(st.integers(1, max(1, sequence)), max_size=20))
    gaps = draw(st.lists(st.integers(0, 12), min_size=len(lengths), max_size=len(lengths)))
    return packed(lengths, sequence, gaps), ring, block


@settings(max_examples=300, deadline=None)
@given(packings())
def test_no_rank_has_more_work_than_the_pieces_make_it(packing: tuple[Documents, int, int]) -> None:
    documents, ring, block = packing
    layout = balance(documents, ring, block)
    work = work_of(documents)
    assert layout.imbalance == pytest.approx(excess(layout.apply(work).reshape(ring, -1).sum(1)), abs=1e-12)
    pieces = work.reshape(-1, layout.size).sum(1)
    if pieces.any():
        heaviest = float(pieces.max() - pieces.min()) * (1 - 1 / ring) / (work.sum() / ring)
        assert layout.imbalance <= max(TOLERANCE, heaviest) + 1e-12
        assert layout.imbalance <= max(TOLERANCE, excess(work.reshape(ring, -1).sum(1)))
    assert layout.size >= block or layout.size == documents.sequence // ring
    assert len(layout.pieces) % ring == 0


@settings(max_examples=100, deadline=None)
@given(packings())
def test_the_waiting_told_is_that_of_the_blocks_of_scores_that_hold_something(
    packing: tuple[Documents, int, int],
) -> None:
    documents, ring, block = packing
    layout = balance(documents, ring, block)
    positions, segments = (layout.apply(x) for x in tokens_of(documents))
    seen = (segments[:, None] == segments) & (segments > 0) & (positions[:, None] >= positions)
    needed = seen.reshape(len(layout.pieces), layout.size, -1, layout.size).any((1, 3))
    assert layout.waiting == pytest.approx(waiting(needed, ring), abs=1e-9)


@settings(max_examples=200, deadline=None)
@given(packings(), st.data())
def test_a_layout_is_undone_exactly_and_its_runs_are_its_order(
    packing: tuple[Documents, int, int], data: st.DataObject
) -> None:
    documents, ring, block = packing
    layout = balance(documents, ring, block)
    row = np.arange(3 * documents.sequence).reshape(3, -1)
    assert (layout.undo(layout.apply(row)) == row).all()
    assert (layout.apply(layout.undo(row)) == row).all()
    assert (layout.apply(row.T, axis=0) == layout.apply(row).T).all()
    first, end = sorted(data.draw(st.tuples(*[st.integers(0, documents.sequence)] * 2)))
    place, slot, length = layout.runs(first, end)
    order = [n for s, count in zip(slot.tolist(), length.tolist(), strict=True) for n in range(s, s + count)]
    assert order == layout.apply(row[0])[first:end].tolist()
    assert place.tolist() == (first + np.cumsum(length) - length).tolist()
    assert (balance(documents, ring, block).pieces == layout.pieces).all()
    share = layout.pieces.reshape(ring, -1)
    assert (np.diff(share, axis=1) > 0).all()  # in the order of the row within a rank


@pytest.mark.parametrize("ring", [2, 3, 4, 16, 64])
def test_one_document_is_a_zigzag(ring: int) -> None:
    sequence = 2048 * ring
    layout = balance(packed([sequence], sequence), ring, 128)
    halves = np.arange(sequence).reshape(2 * ring, -1)
    zigzag = np.stack([halves[:ring], halves[: ring - 1 : -1]], axis=1)
    assert (layout.apply(np.arange(sequence)) == zigzag.reshape(-1)).all()
    assert layout.imbalance == layout.waiting == 0


@pytest.mark.parametrize("ring", [1, 2, 4, 16])
def test_what_is_equal_as_it_lies_is_left_alone(ring: int) -> None:
    equal = packed([MILLION // 16] * 16, MILLION)
    for documents in (equal, packed([], MILLION)):
        layout = balance(documents, ring, 512)
        assert (layout.apply(np.arange(MILLION)) == np.arange(MILLION)).all()
        assert layout.imbalance == layout.waiting == 0


def test_documents_that_a_rank_can_hold_meet_only_themselves() -> None:
    """One document has the work of two ranks; around it those of a quarter rank stay whole, and cost one hop alone."""
    sequence, ring = 1 << 16, 8
    share = sequence // ring
    documents = packed([2 * share] + [share // 4] * 24, sequence)
    layout = balance(documents, ring, 64)
    segments = layout.apply(tokens_of(documents)[1]).reshape(ring, -1)
    holders = [(segments == number).any(1).sum() for number in range(1, 26)]
    assert holders[0] == ring
    assert holders.count(1) >= 20
    assert layout.imbalance <= TOLERANCE
    assert layout.waiting <= 0.1


def test_short_documents_that_cannot_be_folded_evenly_are_dealt() -> None:
    assert balance(packed([4, 4, 1, 1, 1, 1, 1, 4, 1], 48), 6, 1).imbalance == 0


def book_rows(seed: int, median: int, spread: float) -> list[Documents]:
    """Rows of a million tokens packed as the pack stage does, of documents whose lengths are lognormal."""
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.normal(np.log(median), spread, 8 * MILLION // median)).astype(np.int64) + 1
    lengths = -np.sort(-np.minimum(lengths, MILLION))
    row, slot = best_fit(lengths, MILLION)
    return [
        Documents(slot[row == r].astype(np.int32), lengths[row == r].astype(np.int32), MILLION)
        for r in range(row.max() + 1)
    ]


@pytest.mark.parametrize("ring", [4, 16, 64])
@pytest.mark.parametrize(("median", "spread"), [(100_000, 0.8), (20_000, 1.5), (3_000, 1.0)])
def test_rows_of_books_are_balanced_within_the_tolerance(ring: int, median: int, spread: float) -> None:
    for documents in book_rows(7, median, spread)[:3]:
        layout, work = balance(documents, ring, 512), work_of(documents)
        assert excess(layout.apply(work).reshape(ring, -1).sum(1)) <= TOLERANCE
        if excess(work.reshape(ring, -1).sum(1)) > 0.5:
            contiguous = Layout(np.arange(len(layout.pieces)), layout.size, ring, 0, 0)
            before, after = (waiting_by_bounds(documents, each) for each in (contiguous, layout))
            assert after == pytest.approx(layout.waiting)
            assert after < before / 2


def test_a_row_of_a_million_tokens_is_laid_out_in_a_few_hundredths_of_a_second() -> None:
    rows = book_rows(3, 20_000, 1.5)[:6]
    balance(rows[0], 64, 512)
    begin = time.process_time()
    for documents in rows:
        balance(documents, 64, 512)
    assert (time.process_time() - begin) / len(rows) < 0.1  # 0.02 on a quiet machine


def test_what_no_assignment_can_balance_is_told() -> None:
    """All work in the last of 8 pieces: a rank has all of it, and its imbalance is the ring less one."""
    documents = Documents(np.array([96 * 7]), np.array([96]), 96 * 8)
    assert balance(documents, 4, 96).imbalance == 3
    finer = balance(documents, 4, 12)
    assert finer.imbalance == 0


def test_a_share_that_two_does_not_divide_stays_whole() -> None:
    layout = balance(packed([45], 45), 3, 1)
    assert layout.size == 15
    assert layout.pieces.tolist() == [0, 1, 2]
    assert layout.imbalance > 0.6


def test_what_cannot_be_laid_out_is_refused() -> None:
    with pytest.raises(ValueError, match="ring_size=3 does not divide a row of 64"):
        balance(packed([64], 64), 3, 8)
    with pytest.raises(ValueError, match="block=0"):
        balance(packed([64], 64), 2, 0)
    for slot, length in (([0, 10], [11, 5]), ([0], [65]), ([-1], [5]), ([10, 0], [5, 5])):
        with pytest.raises(ValueError, match="in order and apart"):
            Documents(np.array(slot), np.array(length), 64)
