"""From documents and questions to files of long conversations on a local Ray: counted, and twice the same bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from infra.manifest import FileEntry, Manifest, Provenance
from infra.stage import Artifact
from ringworld.data.conversations import Refused, parse
from ringworld.data.decisions import write_cuts, write_drops
from ringworld.data.files import read_bytes, write_table
from ringworld.data.templates import PlainTemplate
from ringworld.data.tokenizers import ByteTokenizer
from ringworld.errors import UserError
from ringworld.synthesis.chunks import chunks_of
from ringworld.synthesis.compose import NOT_DRAWN, TOO_FEW, TOO_LONG
from stages import compose_qa
from stages.compose_qa import ComposeRecipe
from tests.ringworld.corpus import prose

pytestmark = pytest.mark.usefixtures("cluster")

BYTES = ByteTokenizer()
TOKENS = 300


def artifact(folder: Path, stage: str, values: dict[str, Any]) -> Artifact:
    """What lies in a folder, as a finished stage's."""
    files = tuple(
        FileEntry(str(path.relative_to(folder)), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )
    origin = Provenance(None, {}, "host", "", "", 0.0, 1)
    return Artifact(Manifest(stage, stage, 1, "0" * 64, {}, {}, files, values, 1, 1, origin), str(folder))


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Artifact]:
    """Five documents in two files: one is dropped, one cut in two; two chunks of three are asked about."""
    texts = {f"book-{number}": prose(number, 120) for number in range(5)}
    names = list(texts)
    for file, some in enumerate((names[:3], names[3:])):
        columns = {
            "sha256": [f"{names.index(name):064x}" for name in some],
            "source": some,
            "bytes": [len(texts[name]) for name in some],
            "text": [texts[name] for name in some],
        }
        write_table(str(tmp_path / f"documents/documents/part-{file}.parquet"), pa.table(columns))
    drops = pa.table(
        {"file": ["documents/part-0.parquet"], "sha256": [f"{1:064x}"], "source": ["book-1"], "reason": ["x"]}
    )
    write_drops(str(tmp_path / "decontaminate/drops.parquet"), drops)
    cut = {"file": ["documents/part-1.parquet"], "sha256": [f"{3:064x}"], "source": ["book-3"]}
    write_cuts(str(tmp_path / "decontaminate/cuts.parquet"), pa.table(cut | {"start": [2000], "end": [2400]}))
    pieces = {"book-0": texts["book-0"], "book-2": texts["book-2"], "book-4": texts["book-4"]}
    pieces |= {"book-3": texts["book-3"][:2000].strip(), "book-3#2": texts["book-3"][2400:].strip()}
    rows = []
    for name, text in sorted(pieces.items()):
        sha256 = f"{int(name[5]):064x}"
        split = "held_out" if name == "book-4" else "train"
        for chunk in chunks_of(name, sha256, split, text, BYTES, TOKENS):
            if chunk.number % 3:
                at = chunk.text.index(" ") + 1
                found = {"answer": chunk.text[at : at + 12].strip(), "answer_start": at, "kept": chunk.number % 3 == 1}
                asked = {"question": f"What is in part {chunk.number}?", "prompt_sha256": f"{len(rows):064x}"}
                columns = ("document", "sha256", "number", "start", "end", "tokens", "split")
                rows.append({column: getattr(chunk, column) for column in columns} | asked | found)
    write_table(str(tmp_path / "questions/pairs/000000.parquet"), pa.Table.from_pylist(rows[::2]))
    write_table(str(tmp_path / "questions/pairs/000001.parquet"), pa.Table.from_pylist(rows[1::2]))
    BYTES.save(str(tmp_path / "tokenizer/tokenizer"))
    return {
        "documents": artifact(tmp_path / "documents", "documents", {}),
        "decontaminate": artifact(tmp_path / "decontaminate", "decontaminate", {}),
        "questions": artifact(
            tmp_path / "questions", "synthesize-qa", {"chunk_tokens": TOKENS, "written_by_model": False}
        ),
        "tokenizer": artifact(tmp_path / "tokenizer", "tokenizer", {}),
    }


def records(made: Artifact) -> list[dict[str, Any]]:
    return [json.loads(line) for name in made.files for line in read_bytes(made.path(name)).decode().splitlines()]


def test_every_kept_pair_is_in_an_example_or_counted(inputs: dict[str, Artifact], run_stage: Any) -> None:
    recipe = ComposeRecipe(sequence=2000, pairs_per_example=2, distractors=1)
    made = run_stage(compose_qa, recipe, inputs)
    found, values = records(made), made.values
    assert made.files == ("examples/000000.jsonl", "examples/000001.jsonl")
    assert {record["origin"]["document"] for record in found} == {"book-0", "book-2", "book-3", "book-3#2", "book-4"}
    assert {record["origin"]["document"] for record in found if record["split"] == "held_out"} == {"book-4"}
    pairs = [pair for record in found for pair in record["origin"]["pairs"]]
    assert len({pair["prompt_sha256"] for pair in pairs}) == len(pairs) == values["pairs"]
    assert all(pair["number"] % 3 == 1 for pair in pairs)  # the kept ones
    assert values["pairs"] + sum(values["unused"].values()) == values["kept_pairs"]
    assert set(values["unused"]) <= {NOT_DRAWN, TOO_FEW, TOO_LONG}
    assert values["examples"] == len(found) == sum(values["lengths"].values())
    assert values["train"]["examples"] + values["held_out"]["examples"] == len(found)
    assert (sum(values["depths"]), len(values["depths"])) == (len(pairs), 10)
    assert values["distractors"] == sum(len(record["origin"]["distractors"]) for record in found) > 0
    assert len(values["shown"]) == 3
    assert all(len(turn["text"]) <= 500 for shown in values["shown"] for turn in shown["turns"])

    tokens = 0
    for record in found:
        turns = parse(record)
        assert not isinstance(turns, Refused)
        [encoded] = PlainTemplate(BYTES).encode([turns])
        assert not isinstance(encoded, Refused)
        assert len(encoded.ids) <= recipe.sequence
        tokens += len(encoded.ids)
    assert tokens == values["tokens"]

    again = run_stage(compose_qa, recipe, inputs)
    assert again.values == values
    assert [read_bytes(again.path(name)) for name in again.files] == [read_bytes(made.path(n)) for n in made.files]


def test_questions_of_other_chunks_or_documents_and_no_examples_at_all_are_errors(
    inputs: dict[str, Artifact], run_stage: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"sequence=200, least_pairs=1: no example.*longer than the sequence.*; raise"):
        run_stage(compose_qa, ComposeRecipe(sequence=200), inputs)
    questions = inputs["questions"]
    otherwise = Artifact(replace(questions.manifest, values={**questions.values, "chunk_tokens": 200}), questions.url)
    with pytest.raises(UserError, match=r"by the questions chunk \d+ is characters.*make the questions again"):
        run_stage(compose_qa, ComposeRecipe(sequence=2000), inputs | {"questions": otherwise})
    drops = pa.table(
        {"file": ["documents/part-1.parquet"], "sha256": [f"{4:064x}"], "source": ["book-4"], "reason": ["x"]}
    )
    write_drops(str(tmp_path / "deduplicate/drops.parquet"), drops)
    fewer = artifact(tmp_path / "deduplicate", "deduplicate", {})
    with pytest.raises(UserError, match=r"\d+ of \d+ kept pairs are about documents that are not there"):
        run_stage(compose_qa, ComposeRecipe(sequence=2000), inputs | {"deduplicate": fewer})
