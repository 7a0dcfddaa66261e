"""The command on a stage's folder: its tokenizer, context and held-out documents are found, training ones refused."""

from __future__ import annotations

import json

import jax
import pytest

import ringworld.mesh
from ringworld.evaluate.tasks.__main__ import main
from ringworld.exits import USER_ERROR
from ringworld.mesh import make_mesh
from tests.ringworld.evaluate.stage import write_run


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> str:
    return write_run(tmp_path_factory.mktemp("runs") / "tiny", 600)


def test_a_stage_is_evaluated_on_what_its_run_holds_out(stage, tmp_path, monkeypatch, capsys):
    opened = []

    def two_devices(spec):
        opened.append(spec)
        return make_mesh(spec, jax.devices()[:2])

    monkeypatch.setattr(ringworld.mesh, "make_mesh", two_devices)
    words = ["--checkpoint", stage, "--out", str(tmp_path), "--tasks", "passkey,cities_1_1", "--lengths", "600"]
    words += ["--depths", "0.5", "--examples", "1", "--mesh", "ring=2", "--chunk", "512"]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert "| cities_1_1 |" in first
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["lengths"] == [600]
    for task in ("passkey", "cities_1_1"):
        cell = json.loads((tmp_path / "cells" / f"{task}-600-0.5000.json").read_text())
        [example] = cell["examples"]
        assert 560 < example["prompt_tokens"] + (16 if task == "passkey" else 128) <= 600
        assert example["finish"] in ("stop", "length")
    assert (tmp_path / "needles.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert main(words) == 0
    assert capsys.readouterr().out == first
    assert len(opened) == 1
    assert main([*words, "--seed", "1"]) == USER_ERROR
    assert "holds another grid" in capsys.readouterr().err


def test_a_length_over_the_context_must_be_asked_for(stage, tmp_path, capsys):
    words = ["--checkpoint", stage, "--out", str(tmp_path), "--tasks", "passkey", "--lengths", "512,1k"]
    assert main(words) == USER_ERROR
    assert "--lengths 1024: longer than the model's context of 600" in capsys.readouterr().err
    assert not (tmp_path / "grid.json").exists()
