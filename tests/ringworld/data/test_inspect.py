"""The inspector prints what is in a row, found by a run's manifests or named, and says what is wrong with its words."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from ringworld.data import inspect
from ringworld.data.packing import cut_in_rows, pack
from ringworld.data.stores import open_stores
from tests.ringworld.corpus import write_corpus
from tests.ringworld.pictured import example, write_pictured

TEXTS = ["The whale is white. " * 3, "Call me Ishmael. " * 2, "It was a sea of glass. " * 20, "held out"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four finished stages, as storage holds it."""
    root = tmp_path_factory.mktemp("runs") / "tiny"
    store = write_corpus(root / "corpus", TEXTS)
    plan = pack(store.index, cut_in_rows(store.index, store.index.documents("train"), 128), 128, "example")
    stages = {
        "tokenizer": ("tokenizer", {}, {}),
        "tokens": ("tokens", {"tokenizer": "tokenizer"}, {}),
        "pack-text-128": ("pack", {"tokens": "tokens"}, {}),
        "text-128": ("train", {"plan": "pack-text-128", "tokens": "tokens"}, {"seed": 3, "batch_tokens": 256}),
    }
    for name, (kind, inputs, recipe) in stages.items():
        attempt = root / name / "attempt-2"
        attempt.mkdir(parents=True)
        files = []
        if name == "pack-text-128":
            plan.save(str(attempt / "plan.parquet"))
            files = [{"path": "plan.parquet", "bytes": 1}]
        elif kind in ("tokens", "tokenizer"):
            (attempt / kind).symlink_to(root / "corpus" / kind)
        (root / name / "manifest.json").write_text(
            json.dumps({
                "kind": kind, "attempt": 2, "recipe": recipe, "files": files,
                "inputs": {port: {"stage": stage, "fingerprint": ""} for port, stage in inputs.items()},
            })
        )  # fmt: skip
    return root


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert inspect.main(list(words)) == 0
    return capsys.readouterr().out


def test_a_row_is_printed_with_its_segments_sources_and_text(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "".join(shown(capsys, str(run), "--row", str(row), "--full") for row in range(5))
    for number, document in enumerate(TEXTS[:3]):
        assert f"from text-{number}" in text
        assert repr(document) in text if len(document) < 128 else "sea of glass" in text
    both = next(part for row in range(5) if "text-1" in (part := shown(capsys, str(run), "--row", str(row))))
    assert "128 slots" in both
    # Two examples: each starts at position 0 and weighs the half.
    assert " 1                0-75        76   natural         2" in both
    assert " 2                0-33        34   natural         1" in both
    assert "110 targets, 0.00658 to 0.0147, 1 in all" in both


def test_a_step_is_that_of_the_training_stage(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, str(run), "--stage", "text-128", "--step", "0")
    assert text.startswith("step 0: 2 rows of 128 slots")
    assert text.count("loss weights in this batch") == 2
    other = shown(capsys, str(run), "--step", "0", "--seed", "4", "--batch-tokens", "128")
    assert other.startswith("step 0: 1 rows of 128 slots")


def test_a_plan_alone_is_told_where_its_tokens_are(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, corpus = str(run / "pack-text-128" / "attempt-2" / "plan.parquet"), run / "corpus"
    words = [plan, "--row", "0", "--tokens", str(corpus / "tokens"), "--tokenizer", str(corpus / "tokenizer")]
    assert "row 0 of" in shown(capsys, *words)
    assert inspect.main([*words[:1], "--step", "0", *words[3:]]) == 64
    assert "--step: which rows a step draws depends on the training; give --seed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--row", "5"], r"--row 5: the plan has rows 0 to 4"),
        (["--row", "-1"], r"--row -1: the plan has rows 0 to 4"),
        (["--step", "-1"], "--step -1: steps count from 0"),
        (["--step", "0", "--batch-tokens", "100"], "--batch-tokens 100: a multiple of the plan's rows of 128"),
        (["--row", "0", "--stage", "text-512"], "--stage=text-512: .* has plans of text-128; give one of these"),
    ],
)
def test_a_word_that_cannot_be_is_answered_with_what_there_is(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert inspect.main([str(run), *words]) == 64
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nowhere", "no such folder"),
        ("plan.parquet", "--tokens DIR --tokenizer DIR"),
        ("", "no pack stage is finished"),
    ],
)
def test_a_place_without_a_plan_is_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, said: str
) -> None:
    assert inspect.main([str(tmp_path / place) if place else str(tmp_path), "--row", "0"]) == 64
    assert said in capsys.readouterr().err


def test_codes_of_pictures_are_counted_between_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = write_corpus(tmp_path, TEXTS)
    seen = write_pictured(tmp_path / "seen", [example(n, 20, "a cat", n == 1) for n in range(3)], ["image"] * 3)
    both = open_stores([text.url, seen.url])
    plan = pack(both.index, cut_in_rows(both.index, np.array([0, 4, 5]), 128), 128, "token", 0.5)
    plan.save(str(tmp_path / "plan.parquet"))
    words = [str(tmp_path / "plan.parquet"), "--tokenizer", str(tmp_path / "tokenizer"), "--row", "0"]
    printed = shown(capsys, *words, "--tokens", text.url, "--tokens", seen.url)
    assert "'a cat[20 vision ids]'" in printed
    assert "'[20 vision ids]a cat'" in printed
    assert "from clip-1" in printed
    assert "from text-0" in printed
