"""A finished training stage of a small run on disk, with its tokenizer and its documents; weights are random."""

from __future__ import annotations

import json
from pathlib import Path

import jax

from ringworld.data.tokenizers import ByteTokenizer
from ringworld.model.config import ModelConfig, RopeConfig
from ringworld.model.init import init_params
from ringworld.strict import to_mapping
from ringworld.train.checkpoint import save_params
from tests.ringworld.corpus import prose, write_corpus

MODEL = ModelConfig(264, 1, 16, 2, 1, 8, 16, tied_embeddings=True, rope=RopeConfig(1e4))


def write_run(run: Path, sequence: int) -> str:
    """`text-SEQUENCE` of a run that trained on prose(0) and holds out prose(1); its folder."""
    ByteTokenizer().save(str(_write_stage(run / "tokenizer", "tokenizer", {}) / "tokenizer"))
    write_corpus(_write_stage(run / "tokens", "tokens", {}, tokenizer="tokenizer"), [prose(0, 40), prose(1, 40)])
    recipe = {"model": to_mapping(MODEL), "sequence": sequence, "dtype": "float32"}
    made = _write_stage(run / f"text-{sequence}", "train", recipe, tokens="tokens")
    save_params(str(made / "params"), jax.tree.map(lambda leaf: leaf * 4, init_params(MODEL, jax.random.key(0))))
    return str(run / f"text-{sequence}")


def _write_stage(folder: Path, kind: str, recipe: dict, **inputs: str) -> Path:
    """A finished stage's manifest; the folder of its outputs."""
    (folder / "attempt-1").mkdir(parents=True)
    refs = {port: {"stage": stage, "fingerprint": "f"} for port, stage in inputs.items()}
    manifest = {"schema": 1, "kind": kind, "recipe": recipe, "inputs": refs, "attempt": 1, "values": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder / "attempt-1"
