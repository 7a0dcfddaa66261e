"""An evaluation of two processes, a ring over both: the figures, answers and files of one process on the same mesh."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from ringworld.evaluate import evaluator
from ringworld.evaluate.recipe import (
    ChatConfig,
    ContextConfig,
    EvaluateInputs,
    EvaluateJob,
    EvaluateRecipe,
    NeedleConfig,
    TasksConfig,
)
from ringworld.exits import DONE
from ringworld.mesh import make_mesh, parse_mesh
from ringworld.model.init import init_params
from ringworld.train.checkpoint import save_params
from tests.ringworld.corpus import prose, write_corpus
from tests.ringworld.evaluate.stage import MODEL
from tests.ringworld.evaluate.talks import write_talks
from tests.ringworld.ranks import await_all, module, start_two

TALKS = [("qa", [(f"{prose(seed, 2)} Who slept?", "captain ahab")]) for seed in range(3)]


def in_two_processes(job: EvaluateJob, folder: Path) -> list[tuple[int, str]]:
    """(exit code, stderr) of both."""
    job.save(str(folder / "job.yaml"))
    words = ["--recipe", str(folder / "job.yaml"), "--mesh", "fsdp=1,ring=2"]
    return await_all(start_two(module("ringworld.evaluate", *words)))


def test_two_processes_find_what_one_finds(tmp_path, monkeypatch):
    write_corpus(tmp_path, [prose(0, 20), prose(1, 20)])
    write_talks(tmp_path, TALKS, held_out=[False, True, True])
    save_params(str(tmp_path / "after"), jax.tree.map(lambda leaf: leaf * 4, init_params(MODEL, jax.random.key(2))))
    recipe = EvaluateRecipe(
        MODEL, 512, 1, NeedleConfig((256,), (0.5,)), chat=ChatConfig(("qa",), asked=1),
        context=ContextConfig(64, 128, 1, 100, 1), tasks=TasksConfig(("passkey",), (400, 512), (0.5,)),
    )  # fmt: skip
    inputs = EvaluateInputs(
        str(tmp_path / "tokens"), str(tmp_path / "tokenizer"), str(tmp_path / "after"), str(tmp_path / "two"),
        conversations=str(tmp_path / "conversations"),
    )  # fmt: skip
    (tmp_path / "two").mkdir()
    ended = in_two_processes(EvaluateJob(recipe, inputs), tmp_path)
    assert [code for code, _ in ended] == [DONE, DONE], ended
    two = json.loads((tmp_path / "two" / "evaluation.json").read_text())

    monkeypatch.setattr(evaluator, "make_mesh", lambda spec: make_mesh(spec, jax.devices()[:2]))
    alone = EvaluateJob(recipe, replace(inputs, output=str(tmp_path / "one")))
    one = evaluator.evaluate(alone, parse_mesh("fsdp=1,ring=2"))
    for name in ("loss_before", "loss_after", "context_gain", "short_loss_after", "tasks_mean"):
        assert two[name] == pytest.approx(one[name], rel=1e-5)
    assert two["chat"]["asked"] == 1
    assert two["chat"]["transcripts"][0]["said"] == one["chat"]["transcripts"][0]["said"]
    cells = sorted(path.name for path in (tmp_path / "two" / "tasks" / "cells").iterdir())
    assert cells == ["passkey-400-0.5000.json", "passkey-512-0.5000.json"]
    for cell in cells:
        kept = [(tmp_path / run / "tasks" / "cells" / cell).read_bytes() for run in ("two", "one")]
        assert kept[0] == kept[1]
    assert (tmp_path / "two" / "tasks" / "summary.json").exists()
