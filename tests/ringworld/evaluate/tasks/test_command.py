"""The command on a stage's folder: its tokenizer, context and held-out documents are found, training ones refused."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import pytest

import ringworld.mesh
from ringworld.data.tokenizers import ByteTokenizer
from ringworld.evaluate.tasks.__main__ import main
from ringworld.exits import USER_ERROR
from ringworld.mesh import make_mesh
from ringworld.model.config import ModelConfig, RopeConfig
from ringworld.model.llama import init_params
from ringworld.strict import to_mapping
from ringworld.train.checkpoint import save_params
from tests.ringworld.corpus import prose, write_corpus

MODEL = ModelConfig(264, 1, 16, 2, 1, 8, 16, tied_embeddings=True, rope=RopeConfig(1e4))


def write_stage(folder: Path, kind: str, recipe: dict, **inputs: str) -> Path:
    """A finished stage's manifest; the folder of its outputs."""
    (folder / "attempt-1").mkdir(parents=True)
    refs = {port: {"stage": stage, "fingerprint": "f"} for port, stage in inputs.items()}
    manifest = {"schema": 1, "kind": kind, "recipe": recipe, "inputs": refs, "attempt": 1, "values": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder / "attempt-1"


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> str:
    """text-600 of a run that trained on prose(0) and holds out prose(1)."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    ByteTokenizer().save(str(write_stage(run / "tokenizer", "tokenizer", {}) / "tokenizer"))
    write_corpus(write_stage(run / "tokens", "tokens", {}, tokenizer="tokenizer"), [prose(0, 40), prose(1, 40)])
    recipe = {"model": to_mapping(MODEL), "sequence": 600, "dtype": "float32"}
    made = write_stage(run / "text-600", "train", recipe, tokens="tokens")
    save_params(str(made / "params"), jax.tree.map(lambda leaf: leaf * 4, init_params(MODEL, jax.random.key(0))))
    return str(run / "text-600")


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
