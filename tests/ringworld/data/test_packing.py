"""A plan loses nothing, doubles nothing, and is the same everywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringworld.data.order import Corpus, Schedule
from ringworld.data.packing import (
    cut_in_rows,
    evaluation_rows,
    join_chains,
    pack,
    select,
    select_whole,
)
from ringworld.data.plan import ASSEMBLED, COLUMNS, NATURAL, PackingPlan, loss_weights, mix
from ringworld.data.token_store import TokenIndex
from ringworld.errors import UserError


def index_of(tokens: list[int] | np.ndarray, held: tuple[int, ...] = ()) -> TokenIndex:
    sizes = np.asarray(tokens, np.int64)
    held_out = np.zeros(len(sizes), bool)
    held_out[list(held)] = True
    return TokenIndex("hash", np.zeros(len(sizes), np.int32), np.cumsum(sizes) - sizes, sizes, held_out)


def plan_of(tokens: list[int] | np.ndarray, sequence: int) -> PackingPlan:
    index = index_of(tokens)
    return pack(index, cut_in_rows(index, np.arange(len(tokens)), sequence), sequence, "example")


@given(st.lists(st.integers(2, 70), min_size=1, max_size=60), st.integers(1, 20))
def test_every_pair_is_in_exactly_one_slot(tokens: list[int], sequence: int) -> None:
    plan = plan_of(tokens, sequence)
    taken = np.zeros((plan.num_rows, sequence), int)
    pairs = [np.zeros(size - 1, int) for size in tokens]
    for row, slot, document, start, length in zip(
        plan.row, plan.slot, plan.document, plan.start, plan.length, strict=True
    ):
        assert slot + length <= sequence
        taken[row, slot : slot + length] += 1
        pairs[document][start : start + length] += 1
    assert taken.max() == 1
    assert (taken.sum(axis=1) > 0).all()
    assert all((count == 1).all() for count in pairs)
    assert plan.fill == taken.mean()


@given(st.lists(st.integers(2, 70), min_size=1, max_size=60), st.integers(1, 20))
def test_only_a_document_longer_than_a_row_is_cut(tokens: list[int], sequence: int) -> None:
    plan = plan_of(tokens, sequence)
    slices = np.bincount(plan.document, minlength=len(tokens))
    assert slices.tolist() == [-(-(size - 1) // sequence) for size in tokens]


def test_a_plan_is_kept_as_it_is(tmp_path: Path) -> None:
    plan = plan_of([5, 40, 9, 9], 16).scheduled(Schedule(window=3))
    plan.save(str(tmp_path / "plan.parquet"))
    loaded = PackingPlan.load(str(tmp_path / "plan.parquet"))
    assert (loaded.sequence, loaded.weigh_by, loaded.tokenizer_hash) == (16, "example", "hash")
    assert (loaded.marked, loaded.corpora) == (False, (Corpus("", plan.num_rows, 1.0, 16),))
    assert loaded.schedule == plan.schedule
    for name in COLUMNS:
        assert getattr(loaded, name).dtype == getattr(plan, name).dtype
        assert np.array_equal(getattr(loaded, name), getattr(plan, name))
    pq.write_table(pa.table({"row": [1]}), tmp_path / "other.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "plan.parquet").read_bytes()[:-50])
    for name in ("other", "cut", "missing"):
        with pytest.raises(UserError, match=rf"{name}\.parquet is no packing plan"):
            PackingPlan.load(str(tmp_path / f"{name}.parquet"))


@given(st.lists(st.lists(st.integers(2, 17), min_size=1, max_size=6), min_size=1, max_size=12))
def test_a_chain_is_an_example_whose_documents_see_the_ones_before(sizes: list[list[int]]) -> None:
    sequence = 16
    index = index_of([size for chain in sizes for size in chain])
    ends = np.cumsum([len(chain) for chain in sizes])
    chains = np.split(np.arange(ends[-1]), ends[:-1])
    plan = pack(index, join_chains(index, chains, sequence), sequence, "example")
    assert sorted(plan.document.tolist()) == list(range(ends[-1]))
    home = np.repeat(np.arange(len(chains)), [len(chain) for chain in chains])
    for row in range(plan.num_rows):
        here = slice(plan.row_start[row], plan.row_start[row + 1])
        slot = 0
        for segment in range(1, plan.segment[here].max() + 1):
            mine = np.flatnonzero(plan.segment[here] == segment) + plan.row_start[row]
            members = plan.document[mine]
            # Neighbours of one chain, each but the last with its end-of-text, one after another.
            assert len(set(home[members])) == 1
            assert members.tolist() == list(range(members[0], members[0] + len(members)))
            assert plan.length[mine].tolist() == [*index.tokens[members[:-1]], index.tokens[members[-1]] - 1]
            assert plan.answers[mine].tolist() == (index.tokens[members] - 1).tolist()
            assert plan.slot[mine].tolist() == (slot + plan.position[mine]).tolist()
            assert plan.position[mine].tolist() == [0, *np.cumsum(plan.length[mine])[:-1]]
            assert set(plan.made[mine]) == {ASSEMBLED if len(mine) > 1 else NATURAL}
            slot += plan.length[mine].sum()
        assert slot <= sequence
    # No document starts a new example where it would still have fitted the one before.
    segments = dict(
        zip(plan.document.tolist(), zip(plan.row.tolist(), plan.segment.tolist(), strict=True), strict=True)
    )
    for one in range(ends[-1] - 1):
        if home[one] == home[one + 1] and segments[one] != segments[one + 1]:
            used = sum(index.tokens[k] for k in range(one + 1) if segments[k] == segments[one])
            assert used + index.tokens[one + 1] - 1 > sequence


def test_the_work_of_a_row_is_its_visible_pairs() -> None:
    index = index_of([5, 4, 9])
    chain = join_chains(index, [np.array([0, 1]), np.array([2])], 32)
    plan = pack(index, chain, 32, "token")
    assert plan.work.tolist() == [8 * 9 // 2 + 8 * 9 // 2]


def conversations_of(tokens: list[int], answers: list[int], corpora: list[str]) -> TokenIndex:
    return replace(index_of(tokens), answers=np.array(answers), corpus=np.array(corpora, object))


@given(st.lists(st.tuples(st.integers(2, 30), st.integers(0, 3), st.sampled_from("ab")), min_size=1, max_size=40))
def test_a_conversation_is_packed_whole_or_dropped_and_counted(found: list[tuple[int, int, str]]) -> None:
    tokens, answers, corpora = (list(column) for column in zip(*found, strict=True))
    index, sequence = conversations_of(tokens, answers, corpora), 16
    here = [k for k, (size, marked, corpus) in enumerate(found) if corpus == "a" and size <= 17 and marked]
    if not here:
        with pytest.raises(
            UserError, match=r"here: none of \d+ train conversations of a fits a row of 16 tokens whole"
        ):
            select_whole(index, "train", "a", sequence, "here")
        return
    whole = select_whole(index, "train", "a", sequence, "here")
    assert whole.documents.tolist() == here
    assert whole.dropped.get("longer than a row", 0) == sum(c == "a" and t > 17 for t, _, c in found)
    assert whole.dropped.get("no answer", 0) == sum(c == "a" and t <= 17 and not n for t, n, c in found)
    plan = pack(index, cut_in_rows(index, whole.documents, sequence), sequence, "example")
    assert plan.marked
    assert sorted(plan.document.tolist()) == here
    assert not plan.start.any()
    assert (plan.length == index.tokens[plan.document] - 1).all()
    assert (plan.answers == np.array(answers)[plan.document]).all()


def test_what_select_whole_would_not_take_is_never_packed() -> None:
    for index in (conversations_of([18], [1], ["a"]), conversations_of([9], [0], ["a"])):
        with pytest.raises(ValueError, match="packed whole and has an answer"):
            pack(index, cut_in_rows(index, np.array([0]), 16), 16, "example")
    with pytest.raises(UserError, match="a store of plain text has no conversations"):
        select_whole(index_of([9]), "train", "a", 16, "here")
    with pytest.raises(UserError, match="cut from plain text"):
        evaluation_rows(conversations_of([40], [9], ["a"]), "train", 16, 1)


def test_a_mixture_keeps_the_rows_of_its_corpora_apart(tmp_path: Path) -> None:
    index = conversations_of([9, 9, 9, 5, 5, 17], [3] * 6, [*"aaabba"])
    chosen = {corpus: select_whole(index, "train", corpus, 16, "here").documents for corpus in "ab"}
    plans = {corpus: pack(index, cut_in_rows(index, chosen[corpus], 16), 16, "example") for corpus in "ab"}
    mix(plans, {"a": 0.7, "b": 0.3}).save(str(tmp_path / "plan.parquet"))
    plan = PackingPlan.load(str(tmp_path / "plan.parquet"))
    assert plan.corpora == (Corpus("a", 3, 0.7, 16), Corpus("b", 1, 0.3, 16))
    assert plan.num_rows == 4
    for row, corpus in enumerate("aaab"):
        inside = plan.document[plan.row_start[row] : plan.row_start[row + 1]]
        assert len(inside)
        assert set(index.corpus[inside]) == {corpus}  # type: ignore[index]
    with pytest.raises(ValueError, match="not of one kind"):
        mix({"a": plans["a"], "b": replace(plans["b"], weigh_by="token")}, {"a": 1, "b": 1})


def test_a_filter_that_nothing_passes_names_itself_and_what_exists() -> None:
    index = index_of([600, 700, 1500, 9000], held=(3,))
    assert select(index, "train", 700, None, "here").tolist() == [1, 2]
    assert select(index, "train", 0, 1500, "here").tolist() == [0, 1, 2]
    with pytest.raises(UserError) as error:
        select(index, "train", 8192, None, "stages.text-8k.lengths")
    assert "stages.text-8k.lengths=[8192,null]" in str(error.value)
    assert "2 of 512-1023, 1 of 1024-2047" in str(error.value)


def test_evaluation_takes_the_start_of_every_document_before_any_next_window() -> None:
    index = index_of([100, 33, 50, 32, 17], held=(0, 1, 2, 3))
    plan = evaluation_rows(index, "held_out", 16, 7)
    assert list(zip(plan.document.tolist(), plan.start.tolist(), strict=True)) == [
        *[(0, 0), (1, 0), (2, 0), (3, 0)],
        *[(0, 16), (1, 16), (2, 16)],
    ]
    assert plan.length.tolist() == [16] * 7
    assert evaluation_rows(index, "held_out", 16, 100).num_rows == 6 + 2 + 3 + 1
    with pytest.raises(UserError, match="longest held_out document has 100 tokens and 101 are needed"):
        evaluation_rows(index, "held_out", 100, 1)


@given(
    st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=1, max_size=20),
    st.floats(0.1, 3),
    st.randoms(use_true_random=False),
)
def test_weights_make_packing_invisible(slices: list[tuple[int, bool]], weight: float, random) -> None:
    lengths = np.array([length for length, _ in slices])
    example = np.cumsum([True, *(begins for _, begins in slices[1:])]) - 1  # several slices may be one example
    losses = [np.array([random.random() for _ in range(length)]) for length in lengths]
    weights = np.full(len(lengths), weight)
    nothing = np.zeros(len(lengths), np.int32)
    by_example = loss_weights(lengths, nothing, example, weights, "example", None)[:, 0]
    packed = sum(float((loss * each).sum()) for loss, each in zip(losses, by_example, strict=True))
    alone = [np.concatenate([losses[k] for k in np.flatnonzero(example == e)]).mean() for e in range(example[-1] + 1)]
    assert packed == pytest.approx(weight * np.mean(alone))
    by_token = loss_weights(lengths, nothing, example, weights, "token", None)[:, 0]
    packed = sum(float((loss * each).sum()) for loss, each in zip(losses, by_token, strict=True))
    assert packed == pytest.approx(weight * np.concatenate(losses).mean())
