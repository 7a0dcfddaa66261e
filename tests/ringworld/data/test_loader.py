"""The batch of a step: the same tokens for every reader, and exactly what the documents say."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque

import numpy as np
import pyarrow as pa
import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st

from ringworld.data.assemble import Chains, chained
from ringworld.data.balance import Documents, balance
from ringworld.data.decompose import decomposed
from ringworld.data.loader import Batch, Loader, Part, prefetch
from ringworld.data.packing import cut_in_rows, evaluation_rows, join_chains, pack
from ringworld.data.plan import PackingPlan, WeighBy, mix
from ringworld.data.shapes import Split
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
    slices = cut_in_rows(store.index, store.index.documents("train"), SEQUENCE)
    return pack(store.index, slices, SEQUENCE, "example")


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
    whole, part = loader.batch(step), loader.batch(step, Part(rows, columns))
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
    loader.batch(0, Part(slice(1, 2), slice(8, 16)))
    for count in (loader.examples, loader.tokens, loader.attention_pairs):
        count(0)
    assert sum(read) <= 8 + len(read)


@settings(max_examples=60, deadline=None)
@given(
    split=st.builds(Split, st.sampled_from([1, 2]), st.sampled_from([1, 2, 4, 8, 16]), st.sampled_from([0, 2])),
    step=st.integers(0, 30),
    corners=st.tuples(*[st.integers(0, SEQUENCE)] * 2, *[st.integers(0, 4)] * 2),
)
def test_a_split_batch_is_the_same_batch_permuted(
    store: TokenStore, plan: PackingPlan, split: Split, step: int, corners: tuple[int, int, int, int]
) -> None:
    """Rows dealt to the ranks that share them, and each laid out for its ring."""
    loader = Loader(store, plan, seed=1, rows_per_batch=4)
    columns, rows = slice(*sorted(corners[:2])), slice(*sorted(corners[2:]))
    whole, split_up = loader.batch(step), loader.batch(step, Part(split=split))
    part = loader.batch(step, Part(rows, columns, split))
    planned, dealt = loader.rows_at(step).tolist(), loader.rows_at(step, split).tolist()
    assert sorted(planned) == sorted(dealt)
    for name in NAMES:
        array = getattr(split_up, name)
        for place, row in enumerate(dealt):
            layout, as_planned = loader.layout(row, split.ring), getattr(whole, name)[planned.index(row)]
            assert np.array_equal(array[place], layout.apply(as_planned)), name
            assert np.array_equal(layout.undo(array[place]), as_planned), name
        assert array.dtype == getattr(whole, name).dtype
        assert np.array_equal(getattr(part, name), array[rows, columns]), name


def test_the_ranks_of_a_ring_have_equal_attention_to_compute(store: TokenStore, plan: PackingPlan) -> None:
    """A document that fills a row is a zigzag."""
    loader = Loader(store, plan, seed=1, rows_per_batch=ROWS)
    full = np.flatnonzero(plan.length == SEQUENCE)
    assert len(full)
    pieces = np.arange(SEQUENCE).reshape(8, -1)
    assert loader.layout(int(plan.row[full[0]]), 4).apply(np.arange(SEQUENCE)).tolist() == (
        pieces[[0, 7, 1, 6, 2, 5, 3, 4]].reshape(-1).tolist()
    )


def test_an_example_of_several_slices_is_laid_out_as_one_document(store: TokenStore) -> None:
    chain = join_chains(store.index, [store.index.documents("train")[5:7]], 512)
    loader = Loader(store, pack(store.index, chain, 512, "token"), 0, 1)
    one = Documents(np.zeros(1, np.int64), chain.length.sum(keepdims=True), 512)
    assert loader.layout(0, 4).pieces.tolist() == balance(one, 4, 64).pieces.tolist()
    two = Documents(np.cumsum(chain.length) - chain.length, chain.length, 512)
    assert loader.layout(0, 4).pieces.tolist() != balance(two, 4, 64).pieces.tolist()


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
    loader = Loader(store, plan, seed=1, rows_per_batch=ROWS)
    share = SEQUENCE // ring
    for rank in range(ring):
        before = len(read)
        columns = slice(rank * share, (rank + 1) * share)
        part = loader.batch(0, Part(slice(1, 4), columns, Split(ring=ring)))
        assert len(read) - before == (part.segments > 0).sum() <= 3 * share
    assert len(set(read)) == len(read)


def test_a_row_of_a_million_tokens_is_read_once_by_many_hosts(tmp_path) -> None:
    """Counted at the storage: each of eight hosts reads about its eighth of the row, on a ring that deals it out."""
    hosts, tokens = 8, (1 << 20) + 1
    info = StoreInfo("hash", 60_000, 1, 1)
    ids = np.random.default_rng(0).integers(2, 60_000, tokens)
    write_shard(str(tmp_path), 0, [ids], info)
    write_index(str(tmp_path), info, pa.table({
        "document": [0], "sha256": [""], "source": [""], "shard": [0], "offset": [0], "tokens": [tokens],
        "split": ["train"],
    }))  # fmt: skip
    stored = (tmp_path / "shard-00000" / "c" / "0").stat().st_size

    def bytes_read() -> int:
        metrics = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
        return sum(value["value"] for metric in metrics for value in metric["values"])

    found = []
    for host in range(hosts):
        store = TokenStore.open(str(tmp_path))  # a process of its own has a cache of its own
        loader = Loader(
            store, pack(store.index, cut_in_rows(store.index, np.array([0]), tokens - 1), tokens - 1, "token"), 0, 1
        )
        share = (tokens - 1) // hosts
        part = Part(slice(0, 1), slice(host * share, (host + 1) * share), Split(ring=hosts))
        before = bytes_read()
        batch = loader.batch(0, part)
        read = bytes_read() - before
        assert (batch.tokens == ids[loader.layout(0, hosts).apply(np.arange(tokens - 1))][part.columns]).all()
        assert read < 1.4 * stored / hosts + 70_000  # a zigzag's two runs, the target after each, the file's index
        found.append(read)
    assert sum(found) < 1.6 * stored


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
    part = Part(slice(0, 2), slice(0, 16))
    found = list(prefetch(lambda step: loader.batch(step, part), 7, 19, depth=3))
    assert len(found) == 12
    for step, batch in enumerate(found, start=7):
        assert np.array_equal(batch.tokens, loader.batch(step, part).tokens)


def test_prefetch_leaves_no_threads_and_shows_errors(
    store: TokenStore, plan: PackingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = Loader(store, plan, seed=1, rows_per_batch=ROWS)
    before = set(threading.enumerate())
    batches = prefetch(loader.batch, 0, 1000)
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
        deque(map(seen.append, prefetch(loader.batch, 0, 1000, depth=1)), maxlen=0)
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
        Loader(store, plan, 0, 1).batch(0, Part(split=Split(ring=3)))


def test_a_chain_is_one_text_with_its_ends_as_context(store: TokenStore) -> None:
    members = store.index.documents("train")[[1, 4, 0]]
    chains = Chains(np.zeros(2, np.int64), members[:2])
    plan = pack(store.index, join_chains(store.index, chained(store.index, members, chains), 512), 512, "example")
    batch = Loader(store, plan, 0, 1).batch(0)
    [(tokens, targets, _, positions, weight), (alone, *_)] = examples(batch)
    text = np.concatenate([store.read(int(member)) for member in members[:2]])
    assert tokens.tolist() == text[:-1].tolist()
    assert positions.tolist() == list(range(len(tokens)))
    ends = tokens == TOKENIZER.eos_id
    assert ends.sum() == 1
    assert (weight > 0).tolist() == (~ends).tolist()
    assert targets[~ends].tolist() == text[1:][~ends].tolist()
    assert alone.tolist() == store.read(int(members[2]))[:-1].tolist()
    # Two examples weigh the same, whatever the documents in them.
    assert weight.sum() == pytest.approx(0.5)


def test_rows_of_different_lengths_make_steps_of_equal_tokens(store: TokenStore) -> None:
    parts = decomposed(store.index, store.index.documents("train"), 16, 64)
    plans = {str(size): pack(store.index, slices, size, "token") for size, slices in parts.items()}
    plan = mix(plans, {"16": 1.0, "32": 1.0, "64": 1.0})
    loader = Loader(store, plan, seed=0, rows_per_batch=2)
    seen = set()
    for step in range(12):
        rows, sequence = loader.shape_at(step)
        batch = loader.batch(step, Part(split=Split(ranks=2, ring=4)))
        assert batch.tokens.shape == (rows, sequence)
        assert rows * sequence == 128
        assert batch.loss_weight.sum() == pytest.approx(1)
        assert sequence == 16 or (batch.segments == 1).all()
        seen.add(sequence)
    assert seen == {16, 32, 64}
