"""Documents to conversations made of their own words, and on to a store: nothing held out is trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ringworld.data.decisions import write_cuts, write_drops
from ringworld.data.files import write_table
from ringworld.data.token_store import TokenStore
from ringworld.errors import UserError
from ringworld.synthesis.exchanges import TalkRules
from stages import conversations, documents, talk, tokenizer, tokens
from stages.conversations import ConversationsRecipe
from stages.documents import DocumentsRecipe
from stages.talk import TalkRecipe
from stages.tokenizer import TokenizerRecipe
from stages.tokens import TokensRecipe

pytestmark = pytest.mark.usefixtures("cluster")


def novel(name: str, count: int) -> str:
    lines = [
        f"“Is this {name}, number {n}?” he asked.\n\n“It is {name}, and number {n}.”\n\nSo it went."
        for n in range(count)
    ]
    return "\n\n".join(lines)


def module(name: str) -> str:
    return (
        f'"""The module {name} has things in it."""\n\ndef work(a):\n    """Works at {name} as long as it takes."""\n'
    )


def test_documents_talk_about_themselves_and_keep_their_split(tmp_path: Path, run_stage: Any) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    for number in range(8):
        (folder / f"book{number}.txt").write_text(novel(f"book {number}", 5))
        (folder / f"code{number}.py").write_text(module(f"shape {number}"))
    made = run_stage(documents, DocumentsRecipe(sources=(str(folder),)))
    words = run_stage(tokenizer, TokenizerRecipe("bytes"))
    stored = run_stage(tokens, TokensRecipe(held_out=0.3), {"documents": made, "tokenizer": words})
    ports = {"documents": made, "tokens": stored}
    said = run_stage(talk, TalkRecipe(TalkRules(per_document=2)), ports)

    split = {row["source"]: row["split"] for row in TokenStore.open(stored.path("tokens")).provenance().to_pylist()}
    examples = [json.loads(line) for name in said.files for line in Path(said.path(name)).read_text().splitlines()]
    assert {name.split("/")[0] for name in said.files} == {"examples"}
    assert len(examples) == said.values["conversations"] == 8 * 2 + 8
    for example in examples:
        origin = example["origin"]
        assert example["split"] == split[origin["document"]]
        text = Path(origin["document"]).read_text()
        answers = [turn["content"] for turn in example["messages"][1::2]]
        for answer, (start, end) in zip(answers, origin["spans"], strict=True):
            assert answer.strip("`.")[:9] in text[start:end]
    assert said.values["written_by_model"] is False
    assert {kind: found["conversations"] for kind, found in said.values["kinds"].items()} == {
        "dialogue": 16, "docstrings": 8,
    }  # fmt: skip
    assert said.values["train"] + said.values["held_out"] == 24
    assert 0 < said.values["held_out"] < 24
    assert said.values["samples"][0]["text"].startswith("user: ")

    again = run_stage(talk, TalkRecipe(TalkRules(per_document=2)), ports)
    assert again.values == said.values
    assert [Path(again.path(name)).read_text() for name in again.files] == [
        Path(said.path(name)).read_text() for name in said.files
    ]

    store = run_stage(conversations, ConversationsRecipe(), {"tokenizer": words, "chat": said})
    assert store.values["held_out"]["conversations"] == said.values["held_out"]
    assert store.values["provenance"] == {"chat": {"from": "stage stage", "written_by_model": False}}


def test_what_other_stages_dropped_or_cut_is_not_talked_about(tmp_path: Path) -> None:
    text = novel("one", 4)
    rows = [("a" * 64, "kept.txt"), ("b" * 64, "dropped.txt"), ("c" * 64, "short.txt"), ("d" * 64, "cut.txt")]
    place, index = str(tmp_path / "part.parquet"), str(tmp_path / "index.parquet")
    columns = {"sha256": [r[0] for r in rows], "source": [r[1] for r in rows], "bytes": [len(text)] * 4}
    write_table(place, pa.table({**columns, "text": [text] * 4}))
    kept = [rows[0][0], rows[1][0], rows[3][0], rows[3][0]]
    write_table(index, pa.table({"sha256": kept, "split": ["train", "train", "held_out", "held_out"]}))
    begin = text.index("number 1") - 20
    end = text.index("So it went", begin)
    drops, cuts = str(tmp_path / "drops.parquet"), str(tmp_path / "cuts.parquet")
    write_drops(drops, pa.table({"file": ["documents/part"], "sha256": [rows[1][0]], "source": [rows[1][1]]}))
    write_cuts(
        cuts,
        pa.table(
            {"file": ["documents/part"], "sha256": [rows[3][0]], "source": ["cut.txt"], "start": [begin], "end": [end]}
        ),
    )
    block = pa.table({"number": [3], "file": ["documents/part"], "place": [place]})
    decided = talk.DecisionTables((drops,), cuts)
    found = talk._talk_of_file(block, str(tmp_path / "examples"), index, decided, TalkRules())
    assert {row["document"]: row["split"] for row in found.to_pylist()} == {
        "kept.txt": "train", "cut.txt": "held_out", "cut.txt#2": "held_out",
    }  # fmt: skip
    lines = (tmp_path / "examples" / "part-00003.jsonl").read_text().splitlines()
    from_cut = [json.loads(line) for line in lines if '"cut.txt' in line]
    assert from_cut
    assert not any("number 1" in json.dumps(example["messages"]) for example in from_cut)
    piece = text[end:].strip()
    [second] = [example["origin"]["spans"] for example in from_cut if example["origin"]["document"] == "cut.txt#2"][:1]
    assert piece[slice(*second[0])].startswith("“Is this one, number 2?”")


def test_documents_that_say_nothing_of_the_kind_are_an_error_that_says_what_to_give(
    tmp_path: Path, run_stage: Any
) -> None:
    for number in range(2):
        (tmp_path / f"{number}.txt").write_text(f"The sea was calm, and the wind had gone down, {number}. " * 9)
    made = run_stage(documents, DocumentsRecipe(sources=(f"{tmp_path}/*.txt",)))
    words = run_stage(tokenizer, TokenizerRecipe("bytes"))
    stored = run_stage(tokens, TokensRecipe(), {"documents": made, "tokenizer": words})
    with pytest.raises(UserError, match=r"no conversations and none to train on.*sources\.chat="):
        run_stage(talk, TalkRecipe(), {"documents": made, "tokens": stored})
