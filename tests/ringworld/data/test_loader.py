"""The batch of a step: the same tokens for every reader, and exactly what the documents say."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringworld.data.loader import Batch, Loader
from ringworld.data.packing import PackingPlan, WeighBy, evaluation_rows, pack
from ringworld.data.token_store import INDEX_SCHEMA, StoreInfo, TokenStore, write_index, write_shard
from ringworld.data.tokenizers import ByteTokenizer
from ringworld.errors import UserError

SEQUENCE = 32
ROWS = 5
TEXTS = [f"{number}:" + "The whale, the whale! " * number for number in range(1, 13)]
TOKENIZER = ByteTokenizer()
NAMES = [field.name for field in dataclasses.fields(Batch)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    folder = str(tmp_path_factory.mktemp("tokens"))
    info = StoreInfo(TOKENIZER.hash, TOKENIZER.vocabulary_size, TOKENIZER.eos_id, TOKENIZER.pad_id)
    documents = [np.append(ids, TOKENIZER.eos_id) for ids in TOKENIZER.encode_batch(TEXTS)]
    shards = [documents[:5], documents[5:]]
    offsets = np.concatenate([write_shard(folder, shard, part, info) for shard, part in enumerate(shards)])
    count = len(documents)
    columns = [
        np.arange(count),
        [""] * count,
        [""] * count,
        [0] * 5 + [1] * (count - 5),
        offsets,
        [len(ids) for ids in documents],
        ["train"] * 10 + ["held_out"] * 2,
    ]
    write_index(folder, info, pa.table(dict(zip(INDEX_SCHEMA.names, columns, strict=True))))
    return TokenStore.open(folder)


@pytest.fixture(scope="module")
def plan(store: TokenStore) -> PackingPlan:
    return pack(store.index, store.index.documents("train"), SEQUENCE, "example")


def examples(batch: Batch) -> list[tuple[np.ndarray, ...]]:
    """The five arrays of each example of a whole batch."""
    return [
        tuple(getattr(batch, name)[row][batch.segments[row] == segment] for name in NAMES)
        for row in range(len(batch.segments))
        for segment in range(1, batch.segments[row].max() + 1)
    ]


def test_an_epoch_shows_every_document_whole_and_once(store: TokenStore, plan: PackingPlan) -> None:
    loader = Loader(store, plan, seed=3, rows_per_batch=1)
    seen: dict[str, int] = {}
    for step in range(plan.num_rows):
        for tokens, targets, _, positions, _ in examples(loader.batch(step)):
            assert positions.tolist() == list(range(len(tokens)))
            assert tokens[1:].tolist() == targets[:-1].tolist()
            text = TOKENIZER.decode([tokens[0], *targets]) + ("$" if targets[-1] == TOKENIZER.eos_id else "")
            seen[text] = seen.get(text, 0) + 1
    expected: dict[str, int] = {}
    for text in TEXTS[:10]:
        for start in range(0, len(text), SEQUENCE):
            part = text[start : start + SEQUENCE + 1] + ("$" if start + SEQUENCE >= len(text) else "")
            expected[part] = expected.get(part, 0) + 1
    assert seen == expected


def test_padding_is_empty(store: TokenStore, plan: PackingPlan) -> None:
    loader = Loader(store, plan, seed=0, rows_per_batch=plan.num_rows)
    batch = loader.batch(0)
    padding = batch.segments == 0
    assert padding.any()
    assert (batch.tokens[padding] == TOKENIZER.pad_id).all()
    assert not batch.positions[padding].any()
    assert not batch.loss_weight[padding].any()
    assert (batch.loss_weight[~padding] > 0).all()
    assert loader.tokens(0) == (~padding).sum() == sum(len(text) for text in TEXTS[:10])


@settings(max_examples=60, deadline=None)
@given(step=st.integers(0, 30), corners=st.tuples(*[st.integers(0, SEQUENCE)] * 2, *[st.integers(0, ROWS)] * 2))
def test_any_part_is_that_part_of_the_whole(
    store: TokenStore, plan: PackingPlan, step: int, corners: tuple[int, int, int, int]
) -> None:
    loader = Loader(store, plan, seed=1, rows_per_batch=ROWS)
    columns, rows = slice(*sorted(corners[:2])), slice(*sorted(corners[2:]))
    whole, part = loader.batch(step), loader.batch(step, rows, columns)
    for name in NAMES:
        array = getattr(part, name)
        assert array.dtype == (np.float32 if name == "loss_weight" else np.int32)
        assert np.array_equal(array, getattr(whole, name)[rows, columns]), name


def test_a_part_reads_only_its_own_tokens(
    store: TokenStore, plan: PackingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = store.read_many

    def counted(documents, starts, lengths):
        read.extend(lengths)
        return original(documents, starts, lengths)

    monkeypatch.setattr(store, "read_many", counted)
    loader = Loader(store, plan, seed=1, rows_per_batch=ROWS)
    loader.batch(0, slice(1, 2), slice(8, 16))
    for count in (loader.examples, loader.tokens, loader.attention_pairs):
        count(0)
    assert sum(read) <= 8 + len(read)


@settings(max_examples=60, deadline=None)
@given(
    ring=st.sampled_from([1, 2, 4, 8, 16]),
    step=st.integers(0, 30),
    corners=st.tuples(*[st.integers(0, SEQUENCE)] * 2, *[st.integers(0, ROWS)] * 2),
)
def test_a_row_on_a_ring_is_the_same_row_permuted(
    store: TokenStore, plan: PackingPlan, ring: int, step: int, corners: tuple[int, int, int, int]
) -> None:
    planned = Loader(store, plan, seed=1, rows_per_batch=ROWS)
    on_ring = Loader(store, plan, seed=1, rows_per_batch=ROWS, ring=ring)
    columns, rows = slice(*sorted(corners[:2])), slice(*sorted(corners[2:]))
    whole, laid_out, part = planned.batch(step), on_ring.batch(step), on_ring.batch(step, rows, columns)
    for name in NAMES:
        array = getattr(laid_out, name)
        for place, row in enumerate(on_ring.rows_at(step).tolist()):
            layout = on_ring.layout(row)
            assert np.array_equal(array[place], layout.apply(getattr(whole, name)[place])), name
            assert np.array_equal(layout.undo(array[place]), getattr(whole, name)[place]), name
        assert array.dtype == getattr(whole, name).dtype
        assert np.array_equal(getattr(part, name), array[rows, columns]), name


def test_the_ranks_of_a_ring_have_equal_attention_to_compute(store: TokenStore, plan: PackingPlan) -> None:
    """A document that fills a row is a zigzag."""
    loader = Loader(store, plan, seed=1, rows_per_batch=ROWS, ring=4)
    full = np.flatnonzero(plan.length == SEQUENCE)
    assert len(full)
    pieces = np.arange(SEQUENCE).reshape(8, -1)
    assert loader.layout(int(plan.row[full[0]])).apply(np.arange(SEQUENCE)).tolist() == (
        pieces[[0, 7, 1, 6, 2, 5, 3, 4]].reshape(-1).tolist()
    )


@pytest.mark.parametrize("ring", [1, 2, 4])
def test_all_ranks_together_read_every_token_once(
    store: TokenStore, plan: PackingPlan, monkeypatch: pytest.MonkeyPatch, ring: int
) -> None:
    read: list[tuple[int, int]] = []
    original = store.read_many

    def recorded(documents, starts, lengths):
        for document, start, length in zip(documents, starts, lengths, strict=True):
            assert length > 1
            # The last token of a range is only a target, and an input of the next range.
            read.extend((document, token) for token in range(start, start + length - 1))
        return original(documents, starts, lengths)

    monkeypatch.setattr(store, "read_many", recorded)
    loader = Loader(store, plan, seed=1, rows_per_batch=ROWS, ring=ring)
    share = SEQUENCE // ring
    for rank in range(ring):
        before = len(read)
        part = loader.batch(0, slice(1, 4), slice(rank * share, (rank + 1) * share))
        assert len(read) - before == (part.segments > 0).sum() <= 3 * share
    assert len(set(read)) == len(read)


@pytest.mark.parametrize("weigh_by", ["example", "token"])
def test_the_batch_loss_is_the_mean_that_the_plan_names(
    store: TokenStore, plan: PackingPlan, weigh_by: WeighBy
) -> None:
    plan = dataclasses.replace(plan, weigh_by=weigh_by)
    loader = Loader(store, plan, seed=1, rows_per_batch=ROWS)
    for step in range(4):
        batch = loader.batch(step)
        loss = np.random.default_rng(step).random(batch.tokens.shape)
        means = [
            loss[row][batch.segments[row] == segment].mean()
            for row in range(ROWS)
            for segment in range(1, batch.segments[row].max() + 1)
        ]
        expected = np.mean(means) if weigh_by == "example" else loss[batch.segments > 0].mean()
        assert (loss * batch.loss_weight).sum() == pytest.approx(expected, rel=1e-6)
        assert loader.examples(step) == len(means)


def test_a_slice_of_another_task_weighs_as_told(store: TokenStore, plan: PackingPlan) -> None:
    doubled = dataclasses.replace(plan, weight=np.where(plan.document == 9, 2, 1).astype(np.float32))
    one, two = (Loader(store, p, 0, plan.num_rows, shuffle=False).batch(0) for p in (plan, doubled))
    factor = two.loss_weight[two.segments > 0] / one.loss_weight[one.segments > 0]
    assert set(np.round(factor, 5)) == {1, 2}


def test_attention_pairs_are_those_of_the_mask(store: TokenStore, plan: PackingPlan) -> None:
    loader = Loader(store, plan, seed=1, rows_per_batch=ROWS)
    batch = loader.batch(2)
    same = (batch.segments[:, :, None] == batch.segments[:, None, :]) & (batch.segments[:, :, None] > 0)
    mask = same & (batch.positions[:, :, None] >= batch.positions[:, None, :])
    assert loader.attention_pairs(2) == mask.sum()


def test_prefetch_gives_the_batches_of_its_steps_in_order(store: TokenStore, plan: PackingPlan) -> None:
    loader = Loader(store, plan, seed=1, rows_per_batch=ROWS)
    part = (slice(0, 2), slice(0, 16))
    found = list(loader.prefetch(7, 19, *part, depth=3))
    assert len(found) == 12
    for step, batch in enumerate(found, start=7):
        assert np.array_equal(batch.tokens, loader.batch(step, *part).tokens)


def test_prefetch_leaves_no_threads_and_shows_errors(
    store: TokenStore, plan: PackingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = Loader(store, plan, seed=1, rows_per_batch=ROWS)
    before = set(threading.enumerate())
    batches = loader.prefetch(0, 1000)
    next(batches)
    assert set(threading.enumerate()) - before  # one of an earlier test may have ended meanwhile
    batches.close()  # type: ignore[attr-defined]
    _wait_for_threads(before)

    original = store.read_many

    def broken(documents, starts, lengths):
        if len(seen) >= 3:
            raise OSError("the disk is gone")
        return original(documents, starts, lengths)

    seen: list[Batch] = []
    monkeypatch.setattr(store, "read_many", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        deque(map(seen.append, loader.prefetch(0, 1000, depth=1)), maxlen=0)
    assert len(seen) >= 3
    _wait_for_threads(before)


def _wait_for_threads(before: set[threading.Thread]) -> None:
    for _ in range(50):
        if set(threading.enumerate()) <= before:
            return
        time.sleep(0.1)
    pytest.fail(f"threads are left: {set(threading.enumerate()) - before}")


def test_an_evaluation_batch_is_the_held_out_text(store: TokenStore) -> None:
    plan = evaluation_rows(store.index, "held_out", SEQUENCE, 4)
    batch = Loader(store, plan, seed=0, rows_per_batch=plan.num_rows, shuffle=False).batch(0)
    assert [TOKENIZER.decode(row) for row in batch.tokens] == [
        text[start : start + SEQUENCE] for start in (0, SEQUENCE) for text in TEXTS[10:]
    ]
    assert batch.loss_weight == pytest.approx(1 / (4 * SEQUENCE))


def test_a_plan_of_another_tokenizer_is_refused(store: TokenStore, plan: PackingPlan) -> None:
    with pytest.raises(UserError, match="cannot be mixed"):
        Loader(store, dataclasses.replace(plan, tokenizer_hash="other"), 0, 1)


def test_a_ring_that_does_not_divide_a_row_is_refused(store: TokenStore, plan: PackingPlan) -> None:
    with pytest.raises(UserError, match="ring=3 does not divide the plan's rows of 32 tokens"):
        Loader(store, plan, 0, 1, ring=3)
