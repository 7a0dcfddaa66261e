"""A finished stage's folder is enough: the command finds sizes, rotary positions, weights and tokenizer by itself."""

import dataclasses
import io
import json
import sys

import numpy as np
import pytest

from ringworld.data.conversations import Turn
from ringworld.data.templates import PlainTemplate
from ringworld.data.tokenizers import ByteTokenizer
from ringworld.errors import UserError
from ringworld.generate.__main__ import main
from ringworld.generate.checkpoint import open_checkpoint
from ringworld.generate.meter import Meter
from ringworld.strict import to_mapping
from ringworld.train.checkpoint import save_params

BYTES = ByteTokenizer()


def write_manifest(folder, kind, recipe, inputs, attempt=1, values=None):
    folder.mkdir(parents=True, exist_ok=True)
    refs = {port: {"stage": stage, "fingerprint": "f"} for port, stage in inputs.items()}
    manifest = {"schema": 1, "kind": kind, "recipe": recipe, "inputs": refs, "attempt": attempt}
    manifest["values"] = values or {}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def run(tmp_path_factory, model):
    """A run's folder: tokenizer -> tokens -> pack -> text-300, as the flow leaves them."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    write_manifest(run / "tokenizer", "tokenizer", {}, {}, attempt=2)
    BYTES.save(str(run / "tokenizer" / "attempt-2" / "tokenizer"))
    write_manifest(run / "tokens", "tokens", {}, {"tokenizer": "tokenizer"})
    write_manifest(run / "pack", "pack", {}, {"tokens": "tokens"})
    recipe = {"model": to_mapping(model.config), "sequence": 300, "dtype": "float32"}
    write_manifest(run / "text-300", "train", recipe, {"plan": "pack"}, attempt=3)
    save_params(str(run / "text-300" / "attempt-3" / "params"), model.params)
    return run


def answer(model, ids, count: int) -> str:
    tokens = model.greedy(ids, count)
    return BYTES.decode(tokens[: tokens.index(BYTES.eos_id)] if BYTES.eos_id in tokens else tokens)


def test_a_question_about_a_file_is_answered_as_the_model_says(run, model, tmp_path, capsys):
    book = tmp_path / "book.txt"
    book.write_text("It was a dark and stormy night. " * 5, encoding="utf-8")
    flags = ["--checkpoint", str(run / "text-300"), "--prompt-file", str(book), "--question", "How was it?"]
    assert main([*flags, "--max-tokens", "9", "--chunk", "64"]) == 0
    turns = [Turn("user", f"{book.read_text().strip()}\n\nHow was it?")]
    ids = PlainTemplate(BYTES).prompt(turns)
    assert capsys.readouterr().out == answer(model, ids, 9) + "\n"


def test_a_chat_remembers_what_was_said(run, model, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\nAnd?\n/new\nHi\n"))
    assert main(["--checkpoint", str(run / "text-300"), "--chat", "--max-tokens", "6", "--chunk", "64"]) == 0
    first = answer(model, PlainTemplate(BYTES).prompt([Turn("user", "Hi")]), 6)
    turns = [Turn("user", "Hi"), Turn("assistant", first.strip()), Turn("user", "And?")]
    second = answer(model, PlainTemplate(BYTES).prompt(turns), 6)
    assert capsys.readouterr().out == f"{first}\n{second}\n{first}\n"


def test_the_folder_says_what_the_model_is(run, model):
    found = open_checkpoint(str(run / "text-300") + "/")
    assert (found.name, found.config, found.context) == ("text-300", model.config, 300)
    assert found.tokenizer.hash == BYTES.hash
    assert found.stop_ids == {BYTES.eos_id}
    np.testing.assert_array_equal(found.rope.frequencies, model.rope.frequencies)


def test_what_is_no_checkpoint_is_refused_in_words(run, model, tmp_path, capsys):
    def refused(place) -> str:
        with pytest.raises(UserError) as error:
            open_checkpoint(str(place))
        return str(error.value)

    assert "neither manifest.json" in refused(tmp_path)
    assert "neither manifest.json" in refused(tmp_path / "missing")
    assert "kind tokenizer" in refused(run / "tokenizer")
    recipe = {"model": to_mapping(model.config), "sequence": 300, "dtype": "float32"}
    write_manifest(run / "lost", "train", recipe, {})
    assert "give --tokenizer" in refused(run / "lost")
    small = to_mapping(dataclasses.replace(model.config, vocabulary=100))
    write_manifest(run / "small", "train", recipe | {"model": small}, {"plan": "pack"})
    assert "tokenizer has 258 ids and the model 100" in refused(run / "small")
    (tmp_path / "manifest.json").write_text("{")
    assert "no JSON" in refused(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "manifest.json").unlink()
    assert "gpt2" in refused(tmp_path)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "nothing to answer"),
        (["--prompt", "x" * 300], "context of 300"),
        (["--prompt", ""], "empty"),
        (["--prompt", "a", "--top-p", "2"], "top_p"),
        (["--prompt-file", "/no/such/file"], "prompt-file"),
        (["--prompt", "a", "--mesh", "ring=3"], "does not fit"),
        (["--prompt", "a", "--max-tokens", "0"], "max_tokens"),
    ],
)
def test_wrong_words_end_with_64_and_a_line(run, capsys, flags, words):
    assert main(["--checkpoint", str(run / "text-300"), "--max-tokens", "5", *flags]) == 64
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert words in said


def test_the_time_left_is_that_of_the_chunks_after_the_first(capsys):
    times = iter([100.0, 110.0, 130.0])
    reading = Meter("reading", "tokens", terminal=True, clock=lambda: next(times))
    for read in (1000, 2000, 4000):
        reading.advance(read, 10_000)
    lines = capsys.readouterr().err.split("\r")
    assert "reading 2,000 of 10,000 tokens, 100/s, 1 min 20 s left" in lines[0]
    assert "1 min 0 s left" in lines[1]
