"""What is written is what is read, and damage is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ringworld.data.split import held_out
from ringworld.data.token_store import INDEX_SCHEMA, StoreInfo, TokenStore, write_index, write_shard
from ringworld.errors import UserError


def make(folder: Path, shards: list[list[np.ndarray]], vocabulary: int = 2048) -> StoreInfo:
    info = StoreInfo("hash", vocabulary, 1, 1)
    rows = []
    for shard, documents in enumerate(shards):
        for ids, offset in zip(documents, write_shard(str(folder), shard, documents, info), strict=True):
            number = len(rows)
            rows.append((number, f"{number:064x}", f"source {number}", shard, offset, len(ids), "train"))
    columns = [list(column) for column in zip(*rows, strict=True)]
    write_index(str(folder), info, pa.table(dict(zip(INDEX_SCHEMA.names, columns, strict=True))))
    return info


@pytest.mark.parametrize(("vocabulary", "dtype"), [(65536, "uint16"), (65537, "uint32")])
def test_documents_are_read_back_from_anywhere(tmp_path: Path, vocabulary: int, dtype: str) -> None:
    random = np.random.default_rng(0)
    shards = [[random.integers(0, vocabulary, n) for n in sizes] for sizes in ([600_000, 2, 5], [3], [70_000, 9])]
    shards[0][0][0] = vocabulary - 1
    assert make(tmp_path, shards, vocabulary).dtype == dtype
    store = TokenStore.open(str(tmp_path))
    documents = [ids for shard in shards for ids in shard]
    assert store.index.tokens.tolist() == [len(ids) for ids in documents]
    for number, ids in enumerate(documents):
        assert np.array_equal(store.read(number), ids)
    parts = store.read_many([0, 4, 0], [262_140, 65_000, 599_999], [10, 500, 1])
    assert [part.tolist() for part in parts] == [
        documents[0][262_140:262_150].tolist(),
        documents[4][65_000:65_500].tolist(),
        documents[0][-1:].tolist(),
    ]
    assert all(part.dtype == np.int32 for part in parts)
    assert store.provenance()["source"][4].as_py() == "source 4"


@pytest.mark.parametrize(("start", "length"), [(0, 6), (5, 1), (-1, 2), (3, -1)])
def test_a_read_never_leaves_its_document(tmp_path: Path, start: int, length: int) -> None:
    make(tmp_path, [[np.arange(5), np.arange(5)]])
    with pytest.raises(IndexError, match="document 0"):
        TokenStore.open(str(tmp_path)).read(0, start, length)


def damage(store: TokenStore, document: int) -> str:
    """What reading a document complains of; empty for nothing."""
    try:
        store.read(document)
    except OSError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("place", [3, 50_000, 150_000, -2000, -5])
def test_a_flipped_bit_is_an_error_that_names_shard_and_document(tmp_path: Path, place: int) -> None:
    """In any chunk of a shard, and in the index of its chunks, which all need."""
    random = np.random.default_rng(0)
    make(tmp_path, [[np.arange(1000)], [random.integers(0, 2048, n) for n in (70_000, 70_000, 9)]])
    file = tmp_path / "shard-00001" / "c" / "0"
    damaged = bytearray(file.read_bytes())
    damaged[place] ^= 1
    file.write_bytes(damaged)
    store = TokenStore.open(str(tmp_path))
    assert not damage(store, 0)
    said = {document: found for document in (1, 2, 3) if (found := damage(store, document))}
    assert all(f"shard-00001 is damaged where document {document} lies" in found for document, found in said.items())
    # A chunk of 16K tokens lies in one or two neighbours.
    assert list(said) in ([[1, 2, 3]] if place < 0 else [[1], [2], [1, 2], [2, 3]])


def test_a_repeated_task_replaces_its_shard(tmp_path: Path) -> None:
    make(tmp_path, [[np.arange(1000), np.arange(7)]])
    make(tmp_path, [[np.arange(5)]])
    assert TokenStore.open(str(tmp_path)).read(0).tolist() == [0, 1, 2, 3, 4]


def test_an_unfinished_store_cannot_be_opened(tmp_path: Path) -> None:
    write_shard(str(tmp_path), 0, [np.arange(5)], StoreInfo("hash", 300, 1, 1))
    with pytest.raises(UserError, match=r"store\.json does not exist"):
        TokenStore.open(str(tmp_path))


DIGESTS = [f"{number:064x}" for number in range(400)]
SHORT = np.full(400, 10)


def test_the_split_is_decided_by_content_and_seed() -> None:
    chosen = held_out(DIGESTS, SHORT, 0.1, 0, 512)
    assert 20 < chosen.sum() < 60
    order = np.random.default_rng(0).permutation(400)
    assert np.array_equal(held_out([DIGESTS[k] for k in order], SHORT, 0.1, 0, 512), chosen[order])
    assert np.array_equal(held_out(DIGESTS[:300], SHORT[:300], 0.1, 0, 512), chosen[:300])
    assert not np.array_equal(held_out(DIGESTS, SHORT, 0.1, 1, 512), chosen)


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("long", [(3, 7), (0, 1), (5,), tuple(range(8))])
def test_both_sides_have_documents_and_long_ones_where_two_exist(fraction: float, long: tuple[int, ...]) -> None:
    tokens = np.full(8, 100)
    tokens[list(long)] = 8193
    for seed in range(20):
        chosen = held_out(DIGESTS[:8], tokens, fraction, seed, 8192)
        assert 0 < chosen.sum() < 8
        if len(long) > 1:
            assert 0 < chosen[list(long)].sum() < len(long)


def test_a_split_needs_two_documents() -> None:
    with pytest.raises(UserError, match="need two documents"):
        held_out(DIGESTS[:1], SHORT[:1], 0.1, 0, 512)
    with pytest.raises(UserError, match=r"held_out=1\.5"):
        held_out(DIGESTS, SHORT, 1.5, 0, 512)


def test_answers_lie_beside_their_tokens(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    info = StoreInfo("hash", 300, 1, 1, answers=True)
    documents = [random.integers(0, 300, n) for n in (300_000, 7, 50)]
    answers = [random.random(len(ids)) < 0.3 for ids in documents]
    offsets = write_shard(str(tmp_path), 4, documents, info, answers)
    columns = {
        "document": [0, 1, 2],
        "sha256": [""] * 3,
        "source": [""] * 3,
        "shard": [4] * 3,
        "offset": offsets,
        "tokens": [len(ids) for ids in documents],
        "split": ["train"] * 3,
        "corpus": ["chat", "qa", "chat"],
        "answers": [int(marks[1:].sum()) for marks in answers],
    }
    write_index(str(tmp_path), info, pa.table(columns))
    store = TokenStore.open(str(tmp_path))
    assert store.info == info
    assert list(store.index.corpus) == columns["corpus"]  # type: ignore[call-overload]
    assert store.index.answers.tolist() == columns["answers"]  # type: ignore[union-attr]
    places = [0, 2, 0, 1], [262_000, 3, 5, 0], [500, 47, 1, 7]
    found = zip(store.read_many(*places), store.read_answers(*places), *places, strict=True)
    for ids, marks, document, start, length in found:
        assert np.array_equal(ids, documents[document][start : start + length])
        assert np.array_equal(marks, answers[document][start : start + length])
    with pytest.raises(IndexError, match="document 1"):
        store.read_answers([1], [3], [5])


def test_a_store_of_text_has_no_answers_and_looks_as_it_always_did(tmp_path: Path) -> None:
    make(tmp_path, [[np.arange(5)]])
    described = json.loads((tmp_path / "store.json").read_text())
    assert described == {
        "schema": 1,
        "tokenizer_hash": "hash",
        "vocabulary_size": 2048,
        "eos_id": 1,
        "pad_id": 1,
        "dtype": "uint16",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.parquet", "shard-00000", "store.json"]
    store = TokenStore.open(str(tmp_path))
    assert (store.index.answers, store.index.corpus) == (None, None)
    with pytest.raises(UserError, match="marks no answers"):
        store.read_answers([0], [0], [1])
    (tmp_path / "store.json").write_text(json.dumps(described | {"schema": 3}))
    with pytest.raises(UserError, match=r"schema 3, this version reads 1 \(text\) and 2 \(conversations\)"):
        TokenStore.open(str(tmp_path))


def test_a_store_of_text_may_name_domains(tmp_path: Path) -> None:
    make(tmp_path, [[np.arange(5), np.arange(3), np.arange(4)]])
    index = TokenStore.open(str(tmp_path)).provenance().append_column("corpus", pa.array(["books", "code", "books"]))
    write_index(str(tmp_path), StoreInfo("hash", 2048, 1, 1), index)
    store = TokenStore.open(str(tmp_path))
    assert store.index.corpus.tolist() == ["books", "code", "books"]  # type: ignore[union-attr]
    assert store.index.answers is None
    assert store.read(1).tolist() == [0, 1, 2]


def test_answers_are_given_where_the_store_marks_them_and_only_there(tmp_path: Path) -> None:
    ids = [np.arange(5)]
    for marks, answers in ((True, None), (True, [np.ones(4)]), (False, [np.ones(5)])):
        with pytest.raises(ValueError, match="answers must be given for each token"):
            write_shard(str(tmp_path), 0, ids, StoreInfo("hash", 300, 1, 1, answers=marks), answers)
