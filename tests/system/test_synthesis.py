"""Questions by our own model, end to end: served over HTTP and killed in the middle, and as a pool of workers."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from actors.local import start_ray
from infra.placement import Placement
from infra.stage import Result, Stage, StageContext
from ringworld.data.files import join
from ringworld.model.config import ModelConfig
from ringworld.model.init import init_params
from ringworld.train.checkpoint import save_params
from ringworld.train.recipe import OptimizerConfig, TrainRecipe
from stages.questions_plan import Choice
from stages.shards import committed, read_shard
from tests.ringworld.synthesis.misbehaving import free_port
from tests.ringworld.synthesis.reciting import write_reciter
from tests.stages.questions import Run, pairs
from tests.system import flow

SENTENCE = "Question: In what year did the sailor Ahab leave Lisbon? Answer: 1851"
MESH = "data=1,fsdp=1,ring=1"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "books").mkdir()
    for number in range(6):
        paragraphs = [
            f"In the year 1851 the sailor Ahab left Lisbon, as letter {number} of {n} says." for n in range(20)
        ]
        (folder / "books" / f"book{number}.txt").write_text("\n\n".join(paragraphs))
    with start_ray(num_cpus=2):  # or the one that other tests of this process have left running
        run = Run(folder)
        assert run.run(run.ports["tokens"]).ok
        yield run


@pytest.fixture(scope="module")
def reciter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reciter(tmp_path_factory.mktemp("models") / "reciter", SENTENCE)


@contextlib.contextmanager
def serving(model: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Our own server, once it answers."""
    command = [sys.executable, "-m", "ringworld.generate.serve", "--checkpoint", str(model), "--port", str(port)]
    environment = flow.environment() | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        [*command, "--slots", "4", "--chunk", "256"], cwd=flow.REPOSITORY, env=environment
    ) as process:
        try:
            end = time.monotonic() + 120
            while True:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                    break
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.1)
            yield process
        finally:
            process.kill()


def test_a_served_checkpoint_that_is_killed_loses_what_is_under_way_and_no_more(
    prepared: Run, reciter: Path, tmp_path: Path
) -> None:
    """And its replies are those of the same model in the workers of a pool."""
    here = prepared.copy(tmp_path / "root")
    port = free_port()
    server = {
        "base_url": f"http://127.0.0.1:{port}/v1", "concurrency": 4, "tries": 2, "patience": 2,
        "first_wait_seconds": 0.05, "longest_wait_seconds": 0.1,
    }  # fmt: skip
    options = {"openai": server, "shard_tries": 1}
    stage = here.stage(options, provider="openai", model="reciter", shard_chunks=4)
    folder = here.store.url("questions", "state", "1", "shards")
    with serving(reciter, port) as process:

        def kill_in_the_middle(**figures: Any) -> None:
            if len(committed(folder)) >= 2:
                process.kill()

        failure = here.run(stage, limit=1, observer=Watch(kill_in_the_middle)).failures["questions"]
    assert failure.kind == "crashed"
    before = {name: os.stat(join(folder, f"{name}.parquet")).st_mtime_ns for name in committed(folder)}
    assert failure.marker == len(before) >= 2
    with serving(reciter, port):
        made = here.made(stage)
    assert {name: os.stat(join(folder, f"{name}.parquet")).st_mtime_ns for name in before} == before
    rows = pairs(made)
    assert len(rows) == made.values["chosen"] == len({(row["document"], row["number"]) for row in rows})
    assert {row["reply"].strip() for row in rows} == {SENTENCE}
    # All say the same, so one of them is kept.
    assert (made.values["kept"], made.values["rejected"]) == (1, {"near duplicate": len(rows) - 1})

    place = Placement(
        mesh=MESH, env={"XLA_FLAGS": ""}, options={"workers": 2, "checkpoint": {"slots": 2, "chunk": 256}}
    )
    pooled = here.made(
        here.stage(place=place, provider="checkpoint", model=str(reciter), shard_chunks=4), force="questions"
    )
    told = ("document", "number", "prompt_sha256", "reply", "finish", "prompt_tokens", "reply_tokens", "kept")
    assert [[row[name] for name in told] for row in pairs(pooled)] == [[row[name] for name in told] for row in rows]
    assert pooled.values["models"] == {"reciter": len(rows)}


def test_a_stage_of_the_run_is_asked_by_its_port(prepared: Run, tmp_path: Path) -> None:
    """Untrained, it says nothing that could be kept; what it says is committed all the same."""
    here = prepared.copy(tmp_path / "root")
    model = ModelConfig(272, 1, 16, 2, 2, 8, 16)

    def train(context: StageContext, recipe: TrainRecipe) -> Result:
        save_params(
            join(context.attempt_dir, "params"), jax.tree.map(lambda leaf: leaf, init_params(model, jax.random.key(0)))
        )
        files = [
            str(p.relative_to(context.attempt_dir))
            for p in Path(context.attempt_dir, "params").rglob("*")
            if p.is_file()
        ]
        return Result(tuple(files))

    recipe = TrainRecipe(model, 2048, 2048, 1, OptimizerConfig(1e-3))
    trained = Stage("text-2k", recipe, train, {"tokenizer": here.ports["tokenizer"]}, Placement())
    place = Placement(mesh=MESH, env={"XLA_FLAGS": ""})
    choice = Choice(chunk_tokens=200, documents=2, per_document=2)
    stage = here.stage(place=place, ports={"model": trained}, provider="checkpoint", choice=choice)
    failure = here.run(stage).failures["questions"]
    assert failure.kind == "user"
    assert failure.message.startswith("none of 4 replies is a question and an answer that its chunk supports")
    folder = here.store.url("questions", "state", "1", "shards")
    [name] = committed(folder)
    rows = read_shard(folder, name).to_pylist()
    assert [(row["model"], row["finish"] != "error") for row in rows] == [("text-2k", True)] * 4


class Watch:
    """An observer that looks at figures."""

    def __init__(self, on_figures: Any) -> None:
        self._on_figures = on_figures

    def on_plan(self, plan: Any) -> None: ...

    def on_state(self, stage: Any, state: Any, detail: str) -> None: ...

    def on_report(self, stage: Any, figures: Any) -> None:
        self._on_figures(**figures)

    def on_finished(self, stage: Any, manifest: Any) -> None: ...

    def on_failure(self, stage: Any, failure: Any, decision: Any) -> None: ...
