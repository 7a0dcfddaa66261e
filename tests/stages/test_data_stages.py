"""From files to a plan on a local Ray: every document accounted for, bad input named, twice the same."""

from __future__ import annotations

import gzip
import json
import random
import threading
from pathlib import Path
from typing import Any

import mistral_common
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.stage import StageFailure
from ringworld.data.files import read_table
from ringworld.data.loader import Loader
from ringworld.data.plan import PackingPlan
from ringworld.data.token_store import TokenStore
from ringworld.data.tokenizers import load_tokenizer
from ringworld.errors import UserError
from stages import documents, pack, tokenizer, tokens
from stages.documents import DocumentsRecipe, blocks_of, mark_duplicates
from stages.pack import PackRecipe
from stages.tokenizer import TokenizerRecipe
from stages.tokens import TokensRecipe, bucket_counts

pytestmark = pytest.mark.usefixtures("cluster")

WORDS = ["the", "whale", "sea", "ship", "captain", "white", "harpoon", "deck", "storm", "night"]


def prose(seed: int, words: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words)) + "."


@pytest.fixture
def books(tmp_path: Path) -> Path:
    """Good files of several kinds, copies, and every kind of bad one."""
    folder = tmp_path / "books"
    (folder / "sub").mkdir(parents=True)
    for number in range(6):
        (folder / f"book{number}.txt").write_text(prose(number, 300 * (number + 1)))
    (folder / "latin.txt").write_bytes(("Le café est fermé. " * 50).encode("latin-1"))
    (folder / "sub" / "copy.txt").write_bytes(b"\xef\xbb\xbf" + prose(2, 900).encode() + b"\r\n")
    rows = [json.dumps({"text": text}) for text in (prose(2, 900), prose(50, 100), "short")]
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    (folder / "zero.txt").write_bytes(b"")
    (folder / "noise.txt").write_bytes(random.Random(0).randbytes(5000))
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(random.Random(1).randbytes(5000))[:1000])
    pq.write_table(pa.table({"n": [1]}), folder / "wrong.parquet")
    return folder


def test_files_become_a_plan_with_every_document_accounted_for(books: Path, run_stage: Any) -> None:
    made = run_stage(documents, DocumentsRecipe(sources=(str(books),)))
    ledger = {Path(row["source"]).name: row for row in read_table(made.path("ledger.parquet")).to_pylist()}
    reasons = {name: row["reason"] for name, row in ledger.items() if not row["kept"]}
    assert reasons == {
        "rows.jsonl.gz#1": "duplicate",
        "copy.txt": "duplicate",
        "rows.jsonl.gz#3": "too short",
        "zero.txt": "empty",
        "noise.txt": "binary",
        "cut.jsonl.gz": "broken file",
        "wrong.parquet": "no such field",
    }
    assert ledger["copy.txt"]["detail"] == f"of {books}/book2.txt"
    assert made.values["seen"] == len(ledger) == 15
    assert made.values["reasons"]["duplicate"] == 2
    assert [Path(row["source"]).name for row in made.values["refused"]][:2] == ["cut.jsonl.gz", "noise.txt"]
    parts = [read_table(made.path(name)) for name in made.files if name.startswith("documents/")]
    texts = {Path(row["source"]).name: row["text"] for part in parts for row in part.to_pylist()}
    assert set(texts) == {name for name, row in ledger.items() if row["kept"]}
    assert texts["book2.txt"] == prose(2, 900)
    assert texts["latin.txt"].startswith("Le café est fermé.")

    words = run_stage(tokenizer, TokenizerRecipe(vocabulary=300), {"documents": made})
    ports = {"documents": made, "tokenizer": words}
    stored = run_stage(tokens, TokensRecipe(held_out=0.2, buckets=(128, 256)), ports)
    store, model = TokenStore.open(stored.path("tokens")), load_tokenizer(words.path("tokenizer"))
    provenance = store.provenance().to_pylist()
    assert {Path(row["source"]).name: model.decode(store.read(row["document"])) for row in provenance} == texts
    assert all(store.read(number)[-1] == model.eos_id for number in range(len(provenance)))
    split = stored.values["train"]["documents"], stored.values["held_out"]["documents"]
    assert sum(split) == stored.values["documents"] == len(texts)
    assert min(split) >= 1
    assert stored.values["tokens"] == store.index.tokens.sum()
    assert stored.values["buckets"] == bucket_counts(store.index.tokens, (128, 256))

    planned = run_stage(pack, PackRecipe(64), {"tokens": stored, "tokenizer": words})
    plan = PackingPlan.load(planned.path("plan.parquet"))
    assert planned.values["tokens"] == (store.index.tokens - 1)[~store.index.held_out].sum()
    assert Loader(store, plan, 0, 4).batch(0).tokens.shape == (4, 64)
    with pytest.raises(UserError, match=r"stages\.text-9k\.lengths=\[90000,null\]"):
        run_stage(pack, PackRecipe(64, (90000, None), cut="row"), {"tokens": stored}, name="pack-text-9k")

    again = run_stage(documents, DocumentsRecipe(sources=(str(books / "**"), str(books))))
    assert (again.files, again.values) == (made.files, made.values)
    same = run_stage(tokens, TokensRecipe(held_out=0.2, buckets=(128, 256)), ports)
    assert (same.files, same.values) == (stored.files, stored.values)
    assert TokenStore.open(same.path("tokens")).provenance().equals(store.provenance())


def test_sources_without_a_usable_document_are_an_error_that_says_why(tmp_path: Path, run_stage: Any) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"the folder '{tmp_path}/empty' holds no files"):
        run_stage(documents, DocumentsRecipe(sources=(f"{tmp_path}/empty",)))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.txt").write_bytes(b"")
    (tmp_path / "bad" / "b.txt").write_bytes(bytes(5000))
    with pytest.raises(UserError, match=r"no usable document among 2 \(1 binary, 1 empty; .*a\.txt: empty"):
        run_stage(documents, DocumentsRecipe(sources=(f"{tmp_path}/bad",)))


def test_a_document_of_fewer_than_two_tokens_is_dropped_and_counted(tmp_path: Path, run_stage: Any) -> None:
    texts = {"a": "x", "b": "two tokens", "c": "more tokens"}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    made = run_stage(documents, DocumentsRecipe(sources=(f"{tmp_path}/*.txt",), minimum_bytes=1))
    words = run_stage(tokenizer, TokenizerRecipe("bytes"), {"documents": made})
    stored = run_stage(tokens, TokensRecipe(), {"documents": made, "tokenizer": words})
    assert stored.values["dropped"] == {"fewer than 2 tokens": 1}
    assert [Path(source).name for source in stored.values["dropped_sources"]] == ["a.txt"]
    assert stored.values["documents"] == 2
    (tmp_path / "c.txt").unlink()
    made = run_stage(documents, DocumentsRecipe(sources=(f"{tmp_path}/*.txt",), minimum_bytes=1))
    with pytest.raises(UserError, match="need two documents"):
        run_stage(tokens, TokensRecipe(), {"documents": made, "tokenizer": words})


def test_documents_are_numbered_by_shard_whichever_task_ends_first(tmp_path: Path, run_stage: Any) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"{number} " + "the whale " * 150_000)
    made = run_stage(documents, DocumentsRecipe(sources=(f"{tmp_path}/*.txt",)))
    words = run_stage(tokenizer, TokenizerRecipe("bytes"), {"documents": made})
    stored = run_stage(tokens, TokensRecipe(), {"documents": made, "tokenizer": words})
    index = TokenStore.open(stored.path("tokens")).provenance()
    assert index["shard"].to_pylist() == [0, 1, 2]
    assert [Path(source).name for source in index["source"].to_pylist()] == ["0.txt", "1.txt", "2.txt"]


def test_a_stage_that_is_asked_to_stop_stops(books: Path, run_stage: Any) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(StageFailure) as failure:
        run_stage(documents, DocumentsRecipe(sources=(str(books),)), stop=stop)
    assert failure.value.kind == "preempted"


def test_a_sentencepiece_file_becomes_an_artifact_and_is_no_longer_needed(tmp_path: Path, run_stage: Any) -> None:
    source = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
    copy = tmp_path / "tokenizer.model"
    copy.write_bytes(source.read_bytes())
    made = run_stage(tokenizer, TokenizerRecipe("sentencepiece", path=str(copy)))
    copy.unlink()
    assert made.values["vocabulary_size"] == load_tokenizer(made.path("tokenizer")).vocabulary_size == 32000


def test_recipes_refuse_what_cannot_be() -> None:
    with pytest.raises(UserError, match="tokenizer 'wordpiece' is unknown; allowed: bytes, bpe, huggingface"):
        TokenizerRecipe("wordpiece")
    with pytest.raises(UserError, match="sentencepiece needs a path"):
        TokenizerRecipe("sentencepiece")
    with pytest.raises(UserError, match=r"takes no path=x\.model"):
        TokenizerRecipe("bpe", path="x.model")
    with pytest.raises(UserError, match=r"lengths=\[9,3\]"):
        PackRecipe(64, (9, 3))
    with pytest.raises(UserError, match=r"buckets=\[512, 256\]"):
        TokensRecipe(buckets=(512, 256))


def test_the_duplicate_with_the_smallest_name_stays() -> None:
    rows = [("c", "1", None), ("a", "1", None), ("b", None, "empty"), ("d", "2", None), ("e", None, "empty")]
    names, digests, reasons = (pa.array(column, pa.string()) for column in zip(*rows, strict=True))
    seen = pa.table({"source": names, "sha256": digests, "reason": reasons, "detail": pa.array([""] * 5)})
    marked = mark_duplicates(seen).to_pydict()
    assert marked["source"] == ["a", "b", "c", "d", "e"]
    assert marked["reason"] == [None, "empty", "duplicate", None, "empty"]
    assert marked["detail"][2] == "of a"


def test_blocks_hold_every_item_in_order() -> None:
    from ringworld.data.sources import SourceFile

    sizes = np.random.default_rng(0).integers(0, 1 << 22, 3000).tolist()
    items = [SourceFile(f"{number:05d}", size) for number, size in enumerate(sizes)]
    blocks = blocks_of([*items, SourceFile("large", 1 << 33)])
    assert [item for block in blocks for item in block][:-1] == items
    assert all(sum(item.bytes for item in block) <= 1 << 26 for block in blocks[:-1])


def test_buckets_count_documents_by_the_longest_stage_that_they_fill() -> None:
    counted = bucket_counts(np.array([3, 511, 512, 700, 1024]), (512, 1024))
    assert [entry["documents"] for entry in counted.values()] == [2, 2, 1]
    assert [entry["tokens"] for entry in counted.values()] == [514, 1212, 1024]
