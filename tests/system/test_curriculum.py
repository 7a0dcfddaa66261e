"""The curriculum from documents to a longer context, run as a person runs it."""

from __future__ import annotations

import json
import sqlite3
import time

import pytest

from tests.system import flow

STAGES = (
    "documents", "deduplicate", "decontaminate", "tokenizer", "tokens", "pack-text-256", "text-256",
    "evaluate-text-256", "pack-text-512", "text-512", "evaluate-text-512",
)  # fmt: skip


def test_every_stage_is_done_and_learns(calm):
    for stage in STAGES:
        assert flow.done(calm, stage), stage
    for stage in ("evaluate-text-256", "evaluate-text-512"):
        values = flow.manifest(calm, stage)["values"]
        assert values["loss_after"] < values["loss_before"]
        assert values["loss_past_after"] < values["loss_past_before"]
    assert len(flow.losses(calm, "text-256")) == 40


def test_the_log_shows_step_loss_and_speed(calm):
    log = (calm / "flow.log").read_text()
    assert "text-256 step" in log
    assert all(word in log for word in ("loss", "tokens/s", "text-512 finished"))
    assert "\x1b" not in log


def test_it_leaves_a_page_and_an_experiment(calm):
    page = (calm / flow.RUN / "report.html").read_text()
    assert all(stage in page for stage in STAGES)
    assert "data:image/png;base64," in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    with sqlite3.connect(calm / "mlflow.db") as database:
        names = {name for (name,) in database.execute("select name from runs")}
        tokens = database.execute("select max(step) from metrics where key = 'loss'").fetchone()[0]
    assert {"text-256", "text-512", "evaluate-text-512"} <= names
    assert tokens == 40 * 1024


def test_a_second_run_reuses_everything_without_starting_ray(calm, sources):
    before = {stage: flow.manifest(calm, stage) for stage in STAGES}
    started = time.monotonic()
    ended = flow.run(calm, sources)
    assert ended.returncode == 0
    assert time.monotonic() - started < 20
    assert ended.stdout.count("plan: reuse") == len(STAGES)
    assert {stage: flow.manifest(calm, stage) for stage in STAGES} == before


def test_a_changed_recipe_under_a_finished_stage_is_drift_that_names_the_field_and_both_ways_out(calm, sources):
    ended = flow.run(calm, sources, "stages.text-256.steps=41")
    assert ended.returncode == 2
    assert all(part in ended.stderr for part in ("text-256", "steps", "40", "41", "run=", "force="))


def test_only_runs_one_stage_and_nothing_else(prepared, calm, sources):
    root = prepared("text-512")
    ended = flow.run(root, sources, "only=text-512")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not flow.done(root, "evaluate-text-512")
    assert flow.losses(root, "text-512") == flow.losses(calm, "text-512")


def test_two_hosts_train_the_same_batches(prepared, calm, sources):
    root = prepared("text-256")
    ended = flow.run(root, sources, "only=text-256", "hosts=2")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    two, one = flow.losses(root, "text-256"), flow.losses(calm, "text-256")
    assert [step for step, _ in two] == [step for step, _ in one]
    for (_, a), (_, b) in zip(two[:10], one[:10], strict=True):
        assert a == pytest.approx(b, rel=1e-3)
    assert flow.manifest(root, "text-256")["fingerprint"] == flow.manifest(calm, "text-256")["fingerprint"]
    attempt = root / flow.RUN / "text-256" / "attempt-1"
    assert {path.name for path in attempt.glob("trainer-*.log")} == {"trainer-0.log", "trainer-1.log"}


def test_a_folder_without_documents_is_an_error_that_names_it(tmp_path):
    (tmp_path / "empty").mkdir()
    ended = flow.run(tmp_path, f"sources.text={tmp_path}/empty")
    assert ended.returncode == 1
    assert f"{tmp_path}/empty" in ended.stdout + ended.stderr
    assert not (tmp_path / flow.RUN / "documents" / "manifest.json").exists()


def test_provenance_is_in_every_manifest(calm):
    for stage in STAGES:
        origin = flow.manifest(calm, stage)["provenance"]
        assert origin["seconds"] >= 0
        assert "python" in json.dumps(origin["versions"]).lower()
