"""An evaluation stage hands the evaluator its inputs, and its manifest lists what the evaluator left."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from infra.manifest import FileEntry, Manifest, Provenance
from infra.stage import Artifact
from ringworld.evaluate.recipe import (
    ChatConfig,
    EvaluateRecipe,
    NeedleConfig,
    VideoNeedleConfig,
    VisionConfig,
    load_job,
)
from ringworld.model.config import ModelConfig
from stages import evaluate

PLAIN = EvaluateRecipe(ModelConfig(264, 1, 16, 2, 2, 8, 32), 512, 2, NeedleConfig((256,)))
CHAT = EvaluateRecipe(PLAIN.model, 512, 2, PLAIN.needle, chat=ChatConfig(("qa",)))
SEES = replace(PLAIN, model=replace(PLAIN.model, vision_vocabulary=40), vision=VisionConfig(VideoNeedleConfig((4,))))
ARTIFACTS = {"after": "params", "before": "params", "tokenizer": "tokenizer", "codes": "codes", "vqgan": "vqgan"}


def made(folder: Path, name: str) -> Artifact:
    """An artifact of one file in a folder of its own."""
    place = f"{ARTIFACTS.get(name, 'tokens')}/x"
    (folder / name / place).parent.mkdir(parents=True)
    (folder / name / place).write_text("")
    origin = Provenance(None, {}, "host", "", "", 0.0, 1)
    manifest = Manifest(name, name, 1, "", {}, {}, (FileEntry(place, 0),), {}, 1, 1, origin)
    return Artifact(manifest, str(folder / name))


@pytest.mark.parametrize(
    ("recipe", "ports", "left"),
    [
        (PLAIN, (), ("loss_given_context.png", "tasks/cells/kv-512-0.5000.json", "tasks/summary.json")),
        (PLAIN, ("before",), ()),
        (CHAT, ("conversations",), ("answers.png", "questions.jsonl", "transcript.md")),
        (SEES, ("before", "vision", "codes", "vqgan"), ("video_needle.png", "samples.png")),
    ],
    ids=["first", "text", "chat", "vision"],
)
def test_what_the_evaluator_is_told_and_what_it_leaves(recipe, ports, left, tmp_path, run_stage, monkeypatch):
    told = []

    def evaluator(context, module, arguments, *, watch):
        told.append((module, load_job(arguments[1])))
        for name in ("loss_by_position.png", *left):
            (Path(context.attempt_dir) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(context.attempt_dir) / name).write_bytes(b"made")
        figures = {"loss_after": 1.5, "needle_prompts": [1], "chat": {"f1": 0.5}}
        (Path(context.attempt_dir) / "evaluation.json").write_text(json.dumps(figures))

    monkeypatch.setattr(evaluate, "run_module", evaluator)
    inputs = {name: made(tmp_path, name) for name in ("after", "tokens", "tokenizer", *ports)}
    done = run_stage(evaluate, recipe, inputs)
    [(module, job)] = told
    assert (module, job.recipe) == ("ringworld.evaluate", recipe)
    for port in ("after", "before", "tokens", "tokenizer", "conversations", "vision", "codes", "vqgan"):
        place = inputs[port].path(ARTIFACTS.get(port, "tokens")) if port in inputs else None
        assert getattr(job.inputs, port) == place
    assert done.manifest.values == {"loss_after": 1.5, "chat": {"f1": 0.5}}
    files = {entry.path for entry in done.manifest.files}
    assert files == {"evaluation.json", "job.yaml", "loss_by_position.png", *left}
