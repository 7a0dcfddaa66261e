"""From chat files to a plan of whole conversations on a local Ray: broken records named, twice the same."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from infra.manifest import FileEntry, Manifest, Provenance
from infra.stage import Artifact
from ringworld.data.conversations import Turn
from ringworld.data.files import read_table
from ringworld.data.loader import Loader
from ringworld.data.plan import PackingPlan
from ringworld.data.token_store import TokenStore
from ringworld.data.tokenizers import ByteTokenizer
from ringworld.errors import UserError
from stages import conversations, pack_whole, tokenizer
from stages.conversations import ConversationsRecipe
from stages.pack_whole import PackWholeRecipe
from stages.tokenizer import TokenizerRecipe

pytestmark = pytest.mark.usefixtures("cluster")

BYTES = ByteTokenizer()


def talk(name: str, turns: int = 1) -> list[str]:
    return [f"{who} {name} {turn}" for turn in range(turns) for who in ("Q", "A")]


def roles(texts: list[str], names: tuple[str, str], keys: tuple[str, str]) -> list[dict[str, str]]:
    return [{keys[0]: names[number % 2], keys[1]: text} for number, text in enumerate(texts)]


@pytest.fixture
def chats(tmp_path: Path) -> dict[str, tuple[str, ...]]:
    """Good files of every kind, copies, and broken records among them."""
    chat, qa = tmp_path / "chat", tmp_path / "qa"
    chat.mkdir()
    qa.mkdir()
    lines = [json.dumps({"data": talk(f"ultra{number}", number + 1)}) for number in range(6)]
    lines[2:2] = ['{"data": ["cut', json.dumps({"data": ["Only a question"]}), "", json.dumps({"text": "no chat"})]
    (chat / "a.jsonl").write_text("\n".join(lines))
    shared = [
        {"conversations": roles(talk(f"share{number}"), ("human", "gpt"), ("from", "value"))} for number in range(4)
    ]
    shared.append({"data": talk("ultra1", 2)})  # type: ignore[dict-item]
    (chat / "b.jsonl.zst").write_bytes(zstandard.compress("\n".join(map(json.dumps, shared)).encode()))
    (chat / "note.txt").write_text("A file of no rows.")
    (chat / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"data": ["Q", "A"]}\n' * 9)[:-9])
    spoken = [roles(talk(f"book{number}"), ("user", "assistant"), ("role", "content")) for number in range(5)]
    spoken[3][1]["role"] = "narrator"
    pq.write_table(pa.table({"id": range(5), "messages": spoken}), qa / "c.parquet")
    return {"chat": (str(chat),), "qa": (str(qa / "*.parquet"),)}


@pytest.fixture
def words(run_stage: Any) -> Any:
    return run_stage(tokenizer, TokenizerRecipe("bytes"))


def test_chat_files_become_a_plan_with_every_record_accounted_for(chats: Any, words: Any, run_stage: Any) -> None:
    recipe = ConversationsRecipe(chats, held_out=0.2)
    made = run_stage(conversations, recipe, {"tokenizer": words})
    refused = {Path(row["source"]).name: row["reason"] for row in read_table(made.path("refused.parquet")).to_pylist()}
    assert refused == {
        "a.jsonl#3": "broken row",
        "a.jsonl#4": "no answer",
        "a.jsonl#6": "no such field",
        "b.jsonl.zst#5": "duplicate",
        "c.parquet#4": "unknown role",
        "note.txt": "unreadable",
        "cut.jsonl.gz": "broken file",
    }
    assert made.values["reasons"]["duplicate"] == 1
    assert "duplicate" not in {row["reason"] for row in made.values["refused"]}
    assert made.values["conversations"] == 14
    assert {corpus: found["conversations"] for corpus, found in made.values["corpora"].items()} == {"chat": 10, "qa": 4}

    store = TokenStore.open(made.path("tokens"))
    said = sorted(BYTES.decode(store.read(number)) for number in range(14))
    expected = [talk(f"ultra{n}", n + 1) for n in range(6)] + [talk(f"share{n}") for n in range(4)]
    expected += [talk(f"book{n}") for n in (0, 1, 2, 4)]
    rendered = []
    for turns in expected:
        pairs = zip(turns[::2], turns[1::2], strict=True)
        rendered.append("You are a helpful assistant. " + "".join(f"USER: {q} ASSISTANT: {a}" for q, a in pairs))
    assert said == sorted(rendered)
    assert store.index.answers is not None
    assert store.index.corpus is not None
    for number in range(14):
        [marks] = store.read_answers([number], [0], [int(store.index.tokens[number])])
        assert marks[1:].sum() == store.index.answers[number]
        assert "Q" not in BYTES.decode(store.read(number)[marks])
    assert made.values["answer_tokens"] == store.index.answers.sum()
    assert made.values["tokens"] == store.index.tokens.sum()
    for corpus in chats:
        held = store.index.held_out[store.index.corpus == corpus]
        assert 0 < held.sum() < len(held)

    ports = {"tokens": made}
    sequence = 200
    share = {"chat": 0.7, "qa": 0.3}
    planned = run_stage(pack_whole, PackWholeRecipe(sequence, share), ports, name="pack-text-chat-200")
    plan = PackingPlan.load(planned.path("plan.parquet"))
    train = ~store.index.held_out
    fits = store.index.tokens - 1 <= sequence
    assert sorted(plan.document.tolist()) == np.flatnonzero(train & fits).tolist()
    dropped = planned.values["corpora"]["chat"]["dropped"]
    assert dropped == {"longer than a row": int((train & ~fits).sum())}
    assert dropped["longer than a row"] > 0
    batch = Loader(store, plan, 0, 10).batch(0)
    assert float(batch.loss_weight.sum()) == pytest.approx(1, rel=1e-5)
    with pytest.raises(
        UserError, match=r"stages\.text-chat-20\.mixture\.qa: none of \d train conversations of qa fits"
    ):
        run_stage(pack_whole, PackWholeRecipe(20, {"qa": 1.0}), ports, name="pack-text-chat-20")

    again = run_stage(conversations, recipe, {"tokenizer": words})
    assert (again.files, again.values) == (made.files, made.values)
    assert TokenStore.open(again.path("tokens")).provenance().equals(store.provenance())


def stage_of(corpus: str, folder: Path, texts: Mapping[str, str], values: Mapping[str, Any]) -> Artifact:
    """What a stage that makes conversations leaves."""
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    files = tuple(FileEntry(name, len(text.encode())) for name, text in texts.items())
    origin = Provenance(None, {}, "host", "", "", 0.0, 1)
    made = Manifest(f"make-{corpus}", "document-talk", 1, corpus, {}, {}, files, values, 1, 1, origin)
    return Artifact(made, str(folder))


def test_corpora_of_stages_keep_their_splits_and_join_those_of_files(
    chats: Any, run_stage: Any, tmp_path: Path
) -> None:
    """Also with a template that has no place for the system's turn: it refuses such conversations, and no others."""
    (tmp_path / "chat.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m.role[0] + m.content + eos_token }}{% endfor %}{% if add_generation_prompt %}{{ 'a' }}{% endif %}"
    )
    words = run_stage(tokenizer, TokenizerRecipe("bytes", template=str(tmp_path / "chat.jinja")))
    spoken = roles(talk("made0"), ("user", "assistant"), ("role", "content"))
    lines: list[dict[str, Any]] = [
        {"messages": [{**turn, "content": turn["content"] + str(n)} for turn in spoken], "split": split}
        for n, split in enumerate(["train", "held_out", "train", "held_out", "test", "held_out"])
    ]
    lines[2]["messages"].append({"role": "user", "content": "And then?"})
    lines[5]["messages"].insert(0, {"role": "system", "content": "Be brief."})
    texts = {
        "examples/part-0.jsonl": "\n".join([*map(json.dumps, lines), '{"messages": [', ""]),
        "pairs/x.parquet": "-",
    }
    made = stage_of("qa-1k", tmp_path / "qa-1k", texts, {"written_by_model": False})
    ports = {"tokenizer": words, "qa-1k": made}
    both = run_stage(conversations, ConversationsRecipe({"chat": chats["chat"]}, held_out=0.2), ports)
    store = TokenStore.open(both.path("tokens"))
    rows = {row["source"]: row for row in store.provenance().to_pylist() if row["corpus"] == "qa-1k"}
    name = "make-qa-1k/examples/part-0.jsonl"
    assert {source: row["split"] for source, row in rows.items()} == {
        f"{name}#1": "train", f"{name}#2": "held_out", f"{name}#3": "train", f"{name}#4": "held_out",
    }  # fmt: skip
    refused = read_table(both.path("refused.parquet")).to_pylist()
    assert {row["source"]: row["reason"] for row in refused if row["corpus"] == "qa-1k"} == {
        f"{name}#5": "unknown split", f"{name}#6": "template refuses", f"{name}#7": "broken row",
    }  # fmt: skip
    assert both.values["reasons"]["template refuses"] == 1
    # The question that nobody answers is dropped, and an answer ends as the template ends it.
    third = next(row["document"] for row in rows.values() if row["source"].endswith("#3"))
    ids = store.read(third)
    [marks] = store.read_answers([third], [0], [len(ids)])
    asked = [*b"uQ made0 02", BYTES.eos_id, ord("a")]
    assert ids.tolist() == [*asked, *b"A made0 02", BYTES.eos_id]
    assert marks.tolist() == [number >= len(asked) for number in range(len(ids))]

    template = both.values["template"]
    assert (template, template["name"]) == (words.values["template"], "jinja")
    assert both.values["provenance"] == {
        "chat": {"from": f"sources.chat={list(chats['chat'])}", "written_by_model": None},
        "qa-1k": {"from": "stage make-qa-1k", "written_by_model": False},
    }
    samples = both.values["samples"]
    assert sorted(sample["corpus"] for sample in samples) == ["chat", "chat", "qa-1k"]
    assert all(sample["text"].startswith("user: ") and len(sample["text"]) <= 600 for sample in samples)

    bare = stage_of("talk", tmp_path / "talk", {"drops.parquet": "-"}, {})
    with pytest.raises(UserError, match=r"stage make-talk, .* has no examples/\*.jsonl but drops.parquet"):
        run_stage(conversations, ConversationsRecipe(), {"tokenizer": words, "talk": bare})
    with pytest.raises(UserError, match=r"sources.qa-1k=.*stage make-qa-1k makes qa-1k too"):
        run_stage(conversations, ConversationsRecipe({"qa-1k": chats["qa"]}), ports)
    with pytest.raises(UserError, match="nothing to talk about"):
        run_stage(conversations, ConversationsRecipe(), {"tokenizer": words})


def test_a_sample_shows_both_ends_of_a_long_turn() -> None:
    book = " ".join(["page"] * 10_000)
    shown = conversations._sample((Turn("user", f"First {book}\n\nWho?"), *[Turn("assistant", "Ahab. " * 99)] * 9))
    assert shown.startswith("user: First page")
    assert "page Who?\nassistant: Ahab." in shown
    assert len(shown) <= 600


def test_a_corpus_without_conversations_is_an_error_that_says_what_to_give(
    chats: Any, words: Any, run_stage: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"sources\.qa=\[\]: a mixture names qa.*sources\.qa=qa/\*\.jsonl"):
        run_stage(conversations, ConversationsRecipe({**chats, "qa": ()}), {"tokenizer": words})
    (tmp_path / "bad.jsonl").write_text('{"data": ["Q"]}\n{"data": ["Q", "A"]}\n[]\n')
    with pytest.raises(
        UserError, match=r"sources\.qa=.*: 1 usable conversation among 3 records, two are needed .1 no ans"
    ):
        run_stage(conversations, ConversationsRecipe({"qa": (str(tmp_path / "bad.jsonl"),)}), {"tokenizer": words})


@pytest.mark.parametrize("mixture", [{"chat": 0.0, "qa": 0.0}, {"chat": -1.0, "qa": 2.0}, {}, {"chat": float("nan")}])
def test_shares_that_are_no_proportions_are_refused(mixture: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"mixture=.*give each its share"):
        PackWholeRecipe(16, mixture)


def test_shards_of_a_large_file_are_bounded(chats: Any, words: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """In this process: a Ray task would not see the smaller bound."""
    from ringworld.data.token_store import StoreInfo, write_index

    monkeypatch.setattr(conversations, "_SHARD_TOKENS", 100)
    monkeypatch.setattr(conversations, "_BATCH_CHARACTERS", 50)
    info = StoreInfo(BYTES.hash, BYTES.vocabulary_size, BYTES.eos_id, BYTES.pad_id, answers=True)
    file = Path(chats["chat"][0]) / "a.jsonl"
    where = {"name": [str(file)], "shown": ["a.jsonl"], "bytes": [file.stat().st_size]}
    block = pa.table({"block": [2], "corpus": ["chat"], "splits": [False], **where})
    rows = conversations._tokenize_block(block, str(tmp_path / "t"), info, words.path("tokenizer"), 1 << 20)
    kept = rows.filter(pa.compute.field("tokens") > 0)  # type: ignore[attr-defined]
    assert len(set(kept["shard"].to_pylist())) > 2
    assert kept["shard"][0].as_py() == 2000
    kept = kept.append_column("document", pa.array(range(6))).append_column("split", pa.array(["train"] * 6))
    write_index(str(tmp_path / "t"), info, kept)
    store = TokenStore.open(str(tmp_path / "t"))
    assert all(f"ultra{number} 0" in BYTES.decode(store.read(number)) for number in range(6))
