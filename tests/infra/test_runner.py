"""Running a plan: order, reuse, resume after kills, on real storage."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from infra import manifest as manifests
from infra.errors import UserError
from infra.stage import Result, Stage, StageContext
from infra.storage import Store
from tests.infra.driver import lines, slow
from tests.infra.processes import end, start, wait_for
from tests.infra.tiny import Number, add, stage, total
from tests.infra.witness import Witness, quick


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path), "tiny")


def test_a_graph_is_made_in_order_and_a_rerun_reuses_all_of_it(store: Store):
    calls: list[str] = []

    def work(context: StageContext, recipe: Number) -> Result:
        calls.append(context.stage.name)
        return add(context, recipe)

    a = stage("a", 1, work)
    b = stage("b", 2, work, source=a)
    c = stage("c", 3, work, left=a, right=b)
    first = quick([c], store)
    assert first.ok
    assert calls == ["a", "b", "c"]
    assert total(store, "c") == 3 + 1 + (2 + 1)
    witness = Witness()
    again = quick([c], store, observer=witness)
    assert again.ok
    assert calls == ["a", "b", "c"]
    assert witness.states == [("a", "reused"), ("b", "reused"), ("c", "reused")]
    assert {name: art.values for name, art in again.artifacts.items()} == {
        "a": {"total": 1},
        "b": {"total": 3},
        "c": {"total": 7},
    }
    assert store.attempts("c") == (1,)


def test_the_manifest_says_what_was_made_from_what(store: Store):
    a = stage("a")
    b = stage("b", source=a)
    quick([b], store)
    found = manifests.load(store, "b")
    assert found is not None
    manifest = found[0]
    assert manifest.fingerprint == b.fingerprint
    assert manifest.recipe == {"value": 1, "rope": {"theta": 10000.0}}
    assert manifest.inputs["source"] == manifests.InputRef("a", a.fingerprint)
    assert [(entry.path, entry.bytes) for entry in manifest.files] == [("out.json", 1)]
    assert (manifest.attempt, manifest.series, manifest.provenance.attempts) == (1, 1, 1)
    assert "tensorstore" in manifest.provenance.versions


def test_independent_branches_run_at_the_same_time(store: Store):
    both = threading.Barrier(2)

    def meet(context: StageContext, recipe: Number) -> Result:
        both.wait(timeout=5)
        return add(context, recipe)

    a = stage("a")
    outcome = quick([stage("d", left=stage("b", 1, meet, source=a), right=stage("c", 1, meet, source=a))], store)
    assert outcome.ok
    assert total(store, "d") == 5


def test_a_killed_driver_s_stage_resumes_its_state_and_its_partial_output_stays_unseen(store: Store, tmp_path: Path):
    ticks = Path(store.state_url("slow", 1)) / "ticks"
    process = start("tests.infra.driver", str(tmp_path), "ticks=60")
    try:
        wait_for(lambda: len(lines(str(ticks)) or []) >= 5, process)
    finally:
        end(process)
    assert process.returncode == -signal.SIGKILL
    seen = lines(str(ticks))
    assert seen is not None
    assert 5 <= len(seen) < 60
    assert manifests.load(store, "slow") is None

    witness = Witness()
    outcome = quick([slow(60)], store, observer=witness)
    assert witness.plans[0]["slow"].action == "resume"
    artifact = outcome.artifacts["slow"]
    assert Path(artifact.path("out.txt")).read_text().split() == ["1"] * len(seen) + ["2"] * (60 - len(seen))
    assert (artifact.manifest.attempt, artifact.manifest.series, artifact.manifest.provenance.attempts) == (2, 1, 2)
    with pytest.raises(KeyError):
        artifact.path("partial.txt")


def test_a_killed_forced_attempt_resumes_while_the_first_result_stands(store: Store, tmp_path: Path):
    quick([slow(40)], store)
    ticks = Path(store.state_url("slow", 2)) / "ticks"
    process = start("tests.infra.driver", str(tmp_path), "ticks=40", "force=slow")
    try:
        # The forced attempt has a fresh series; it is killed before it can finish.
        wait_for(lambda: lines(str(ticks)), process)
    finally:
        end(process)
    kept = quick([slow(40)], store)
    assert kept.artifacts["slow"].manifest.series == 1, "the first result must stand until the forced one is complete"

    witness = Witness()
    outcome = quick([slow(40)], store, force="slow", observer=witness)
    assert witness.plans[0]["slow"].action == "resume"
    manifest = outcome.artifacts["slow"].manifest
    assert (manifest.attempt, manifest.series) == (3, 2)
    assert Path(outcome.artifacts["slow"].path("out.txt")).read_text().split()[0] == "2"
    assert Path(store.attempt_url("slow", 1), "out.txt").exists(), "force deletes nothing"


def test_force_makes_a_new_attempt_in_a_new_series_and_what_is_below_is_reused(store: Store):
    a = stage("a")
    b = stage("b", source=a)
    quick([b], store)
    outcome = quick([b], store, force="a")
    assert outcome.ok
    manifest = outcome.artifacts["a"].manifest
    assert (manifest.attempt, manifest.series) == (2, 2)
    assert outcome.artifacts["b"].manifest.attempt == 1
    assert total(store, "a", 1) == total(store, "a", 2)
    assert quick([b], store).artifacts["a"].manifest == manifest


def test_drift_is_an_error_before_any_work_and_force_is_the_way_out(store: Store):
    quick([stage("b", source=stage("a"))], store)
    changed = stage("b", source=stage("a", 2))
    with pytest.raises(UserError, match="value: 1 -> 2") as caught:
        quick([changed, stage("new")], store)
    assert "force=a,b " in str(caught.value)
    assert "run=NEWNAME" in str(caught.value)
    assert store.attempts("a") == (1,)
    assert store.attempts("new") == (), "nothing at all runs under drift"
    assert quick([changed], store, force="a,b").ok
    assert total(store, "b", 2) == 3


def test_only_runs_one_stage_and_demands_its_inputs(store: Store):
    a = stage("a")
    b = stage("b", source=a)
    with pytest.raises(UserError, match="needs a"):
        quick([b], store, only="b")
    quick([b], store, only="a")
    assert manifests.load(store, "b") is None
    assert quick([b], store, only="b").ok


def test_a_wrong_name_writes_nothing_at_all(store: Store):
    with pytest.raises(UserError, match="did you mean 'text-1k'"):
        quick([stage("text-1k")], store, only="text-1q")
    assert not Path(store.url()).exists()


def test_reports_reach_the_observer_and_a_broken_observer_harms_nothing(store: Store, caplog: pytest.LogCaptureFixture):
    def work(context: StageContext, recipe: Number) -> Result:
        context.report(step=1, of=2, loss=0.5)
        return add(context, recipe)

    class Broken(Witness):
        def on_report(self, stage: Stage, figures: Mapping[str, Any]) -> None:
            super().on_report(stage, figures)
            raise RuntimeError("observer broke")

    witness = Broken()
    assert quick([stage("a", 1, work)], store, observer=witness).ok
    assert witness.figures == [{"step": 1, "of": 2, "loss": 0.5}]
    assert witness.finished == ["a"]
    assert "observer broke" in caplog.text
