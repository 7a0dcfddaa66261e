"""What a driver leaves for people while it works: the graph and its word on each stage, a page, goodput for metrics."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from flows.views import Views
from infra.outline import read_outline
from infra.runner import run
from infra.stage import Result, StageContext, StageFailure
from infra.status import read_status
from infra.storage import Store
from infra.tracking import Target
from tests.infra.tiny import Number, add, stage


def fail(context: StageContext, recipe: Number) -> Result:
    raise StageFailure("user", "step 1: loss=nan, gradient norm=nan; hf_token=hf_abcdefghijklmnopqrstuv")


def train(context: StageContext, recipe: Number) -> Result:
    time.sleep(0.05)
    line = {"step": 1, "tokens": 8, "loss": 1.0, "seconds": 0.02, "time": time.time()}
    Path(context.state_dir, "progress.jsonl").write_text(json.dumps(line) + "\n")
    return add(context, recipe)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr("flows.views.choose_target", lambda root: Target(None))
    return Store(str(tmp_path), "tiny")


def test_what_the_driver_says_of_each_stage_lies_on_storage(store: Store):
    first = stage("first", run=train)
    broken = stage("broken", 2, fail, source=first)
    below = stage("below", 3, source=broken)
    shares: dict[str, float] = {}
    with Views(store, [below], "curricula/tiny.yaml", ["key=value", "hub_token=canary-77aa"]) as views:
        views.tell_goodput(lambda name, share: shares.update({name: share}))
        run([below], store, observer=views)
        views.finish()
    outline = read_outline(store)
    assert [(found.name, found.inputs, found.state) for found in outline.stages] == [
        ("first", (), "finished"), ("broken", ("first",), "failed"), ("below", ("broken",), "blocked")
    ]  # fmt: skip
    assert "canary" not in outline.to_json().decode()
    assert "hf_abcdef" not in outline.to_json().decode()
    assert [found.state for found in read_status(store, time.time()).stages] == ["finished", "failed", "waiting"]
    assert 0 < shares["first"] < 1
    assert "lower learning_rate" in Path(store.url("report.html")).read_text()


def test_a_driver_that_is_refused_leaves_another_s_views_alone(store: Store):
    with Views(store, [stage("first")], "tiny", []) as views:
        views.finish()
    assert store.read("plan.json") is None
    assert store.read("report.html") is None
