"""MLflow says what storage says: once, under the same run after a retry, and late rather than never."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from infra.mlflow_runs import as_params
from infra.records import parse_steps
from infra.storage import Store
from infra.tracking import CACHE, Target, Tracker, choose_target
from tests.infra.run_on_disk import (
    EvaluateRecipe,
    TrainRecipe,
    finish,
    make_stage,
    picture,
    put,
    with_recipe,
    write_steps,
)

CANARY = "canary-9f31"


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """One SQLite file for the module: making its tables takes seconds."""
    return tmp_path_factory.mktemp("mlflow") / "mlflow.db"


@pytest.fixture
def target(database, tmp_path):
    return Target(f"sqlite:///{database}", (database.parent / "artifacts").as_uri())


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "runs"), "tiny")


@pytest.fixture
def stage():
    return make_stage("text-512", TrainRecipe(sequence=512, rope_theta=10000.0))


def runs_of(target, store, role="stage"):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(target.uri)
    experiment = client.get_experiment_by_name("ringworld")
    assert experiment is not None
    condition = f"tags.`ringworld.role` = '{role}'"
    runs = client.search_runs([experiment.experiment_id], condition)
    return client, [run for run in runs if run.data.tags["ringworld.root"].endswith(store.url())]


def losses(client, run):
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "loss"))


def expected_losses(store, stage, series=1):
    found = store.read(f"{stage.name}/state/{series}/progress.jsonl")
    return [(step["tokens"], step["loss"]) for step in parse_steps(found.data.decode())]


def test_a_finished_stage_is_a_nested_run_with_params_steps_figures_and_files(store, stage, target):
    write_steps(store, stage, count=300)
    finish(store, stage, {"final_loss": 2.25, "name": "text", "good": True}, {"needle.png": picture(), "p.bin": b"x"})
    Tracker(store, "tiny", [stage], target).sync()
    client, (child,) = runs_of(target, store)
    _, (parent,) = runs_of(target, store, "run")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (parent.info.run_name, child.info.run_name) == ("tiny", "text-512")
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert child.data.params["rope_theta"] == "10000.0"
    assert child.data.params["kind"] == "train"
    assert losses(client, child) == expected_losses(store, stage)
    assert child.data.metrics["figures/final_loss"] == 2.25
    assert child.data.metrics["figures/seconds"] == 42.0
    assert 0 < child.data.metrics["figures/goodput"] < 1
    assert child.data.metrics["figures/goodput_lost_other_seconds"] > 0
    assert not {"figures/name", "figures/good"} & set(child.data.metrics)
    listed = {item.path for item in client.list_artifacts(child.info.run_id)}
    assert listed == {"files", "manifest.json", "recipe.json"}
    assert [item.path for item in client.list_artifacts(child.info.run_id, "files")] == ["files/needle.png"]


def test_a_new_driver_reattaches_and_a_resume_that_lost_steps_logs_none_twice(store, stage, target):
    write_steps(store, stage, count=50)
    first = Tracker(store, "tiny", [stage], target)
    first.sync()
    write_steps(store, stage, count=30, start=500)  # the resume drops 20 steps and trains them again, at other times
    first.sync()
    write_steps(store, stage, count=40, start=500)
    first.sync()
    write_steps(store, stage, count=60, start=500)
    Tracker(store, "tiny", [stage], target).sync()
    client, (child,) = runs_of(target, store)
    assert losses(client, child) == expected_losses(store, stage)
    assert child.info.status == "RUNNING"


def test_the_same_driver_logs_no_step_twice_when_a_resume_catches_up(store, stage, target):
    tracker = Tracker(store, "tiny", [stage], target)
    for start, count in enumerate((20, 10, 15, 25)):
        write_steps(store, stage, count=count, start=1000 * start)
        tracker.sync()
    client, (child,) = runs_of(target, store)
    assert losses(client, child) == expected_losses(store, stage)


def test_a_lost_cache_costs_nothing_but_time(store, stage, target):
    write_steps(store, stage, count=20)
    finish(store, stage, {"final_loss": 2.0})
    for _ in range(2):
        Tracker(store, "tiny", [stage], target).sync()
        put(store, CACHE, b"{not json")
    client, (child,) = runs_of(target, store)
    assert losses(client, child) == expected_losses(store, stage)
    assert len(client.get_metric_history(child.info.run_id, "figures/final_loss")) == 1


def test_a_forced_series_and_another_recipe_get_runs_of_their_own(store, stage, target):
    write_steps(store, stage, count=5)
    finish(store, stage, {"final_loss": 2.0})
    Tracker(store, "tiny", [stage], target).sync()
    write_steps(store, stage, count=3, series=2)
    Tracker(store, "tiny", [stage], target).sync()
    other = with_recipe(stage, learning_rate=5e-4)
    write_steps(store, other, count=4, series=3)
    Tracker(store, "tiny", [other], target).sync()
    _, runs = runs_of(target, store)
    series = {(run.data.tags["ringworld.series"], run.data.tags["ringworld.fingerprint"]) for run in runs}
    assert series == {("1", stage.fingerprint), ("2", stage.fingerprint), ("3", other.fingerprint)}


def test_two_roots_on_one_server_do_not_share_runs(tmp_path, stage, target):
    stores = [Store(str(tmp_path / name), "tiny") for name in ("one", "two")]
    for store in stores:
        write_steps(store, stage, count=2)
        Tracker(store, "tiny", [stage], target).sync()
    assert [len(runs_of(target, store)[1]) for store in stores] == [1, 1]


def test_statuses_follow_the_driver(store, stage, target):
    done = make_stage("eval-512", EvaluateRecipe(sequence=512), {"model": stage})
    write_steps(store, stage, count=2)

    def statuses():
        _, parents = runs_of(target, store, "run")
        _, children = runs_of(target, store)
        return parents[0].info.status, {run.data.tags["ringworld.stage"]: run.info.status for run in children}

    tracker = Tracker(store, "tiny", [stage, done], target, interval=0.05)
    tracker.start()
    assert tracker.close(30)
    assert statuses() == ("KILLED", {"text-512": "KILLED"})
    tracker = Tracker(store, "tiny", [stage, done], target)
    tracker.sync()
    assert statuses() == ("RUNNING", {"text-512": "RUNNING"})
    tracker.mark("text-512", "failed")
    tracker.start()
    assert tracker.close(30)
    assert statuses() == ("FAILED", {"text-512": "FAILED"})
    finish(store, stage, {})
    tracker = Tracker(store, "tiny", [stage, done], target)
    tracker.start()
    assert tracker.close(30)
    assert statuses() == ("SCHEDULED", {"text-512": "FINISHED"})
    finish(store, done, {})
    Tracker(store, "tiny", [stage, done], target).sync()
    assert statuses() == ("FINISHED", {"text-512": "FINISHED", "eval-512": "FINISHED"})


def test_no_secret_reaches_mlflow(store, database, target):
    stage = make_stage("text-512", TrainRecipe(sequence=512, rope_theta=1e4, hub_token=CANARY))
    write_steps(store, stage, count=2)
    finish(store, stage, {"source": f"https://user:{CANARY}@host/x"})
    Tracker(store, "tiny", [stage], target).sync()
    _, (child,) = runs_of(target, store)
    assert child.data.params["hub_token"] == "[redacted]"
    for path in database.parent.rglob("*"):
        assert path.is_dir() or CANARY.encode() not in path.read_bytes(), path


def test_a_finished_run_that_is_up_to_date_never_imports_mlflow(store, stage, target):
    write_steps(store, stage, count=2)
    finish(store, stage, {})
    Tracker(store, "tiny", [stage], target).sync()
    code = f"""
import sys
from infra.storage import Store
from infra.tracking import Target, Tracker
from tests.infra.run_on_disk import TrainRecipe, make_stage
stage = make_stage("text-512", TrainRecipe(sequence=512, rope_theta=10000.0))
tracker = Tracker(Store({store.root!r}, "tiny"), "tiny", [stage], Target({target.uri!r}))
tracker.start()
assert tracker.close(10)
assert "mlflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_deleted_database_is_filled_again(store, stage, target, tmp_path):
    write_steps(store, stage, count=2)
    finish(store, stage, {})
    Tracker(store, "tiny", [stage], target).sync()
    gone = Target(f"sqlite:///{tmp_path / 'gone.db'}", target.artifacts)
    put(
        store, CACHE, store.read(CACHE).data.replace(str(target.uri).encode(), str(gone.uri).encode())
    )  # says: all is written
    Tracker(store, "tiny", [stage], gone).sync()
    client, (child,) = runs_of(gone, store)
    assert losses(client, child) == expected_losses(store, stage)


def test_where_tracking_goes(tmp_path):
    given = choose_target(str(tmp_path), {"MLFLOW_TRACKING_URI": "http://tracker:5000"})
    assert (given.uri, given.artifacts) == ("http://tracker:5000", None)
    local = choose_target(str(tmp_path), {})
    assert local.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert local.artifacts == f"file://{tmp_path}/mlflow-artifacts"
    cloud = choose_target("gs://bucket/runs", {})
    assert cloud.uri is None
    assert "MLFLOW_TRACKING_URI" in cloud.note


def test_tracking_that_is_off_does_nothing(store, stage, caplog):
    write_steps(store, stage, count=2)
    tracker = Tracker(store, "tiny", [stage], Target(None, note="off here"))
    with caplog.at_level("INFO"):
        tracker.start()
    assert not tracker.close(1)
    assert "off here" in caplog.text
    assert store.read(CACHE) is None


def test_params_are_flat_and_within_the_limits():
    params = as_params(
        {"a": {"b": 1, "c": [1, 2]}, "list": [{"x": 1}, {"x": None}], "odd name!": "y" * 9000, "none": {}}
    )
    assert params["a.b"] == "1"
    assert params["a.c"] == "[1, 2]"
    assert params["list.1.x"] == "None"
    assert len(params["odd name_"]) == 6000
    assert params["none"] == "{}"


def test_lines_that_are_no_steps_are_left_out():
    text = '{"tokens": 1, "loss": 5}\n{"tokens": 2, "lo\n[]\n{"tokens": 2}\n{"tokens": 2}\n{"tok'
    assert [step["tokens"] for step in parse_steps(text)] == [1, 2]


class Server:
    """A real `mlflow server` on a loopback port, over the module's database."""

    def __init__(self, database, folder):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.uri_with_password = f"http://reader:{CANARY}@127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port),
                         "--workers", "1", "--backend-store-uri", f"sqlite:///{database}",
                         "--artifacts-destination", str(folder / "served")]  # fmt: skip
        self._log = (folder / "server.log").open("ab")
        self._process = None

    def start(self):
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        self._process = subprocess.Popen(
            self._command, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            assert self._process.poll() is None, Path(self._log.name).read_text()[-3000:]
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=10) as answer:
                    assert answer.status == 200
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("mlflow server did not start")

    def kill(self):
        """With all that it has started, in sessions of their own too: they hold its port."""
        if self._process and self._process.poll() is None:
            server = psutil.Process(self._process.pid)
            for process in [*server.children(recursive=True), server]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.wait()


@pytest.fixture
def server(database, tmp_path, target, stage):
    Tracker(Store(str(tmp_path / "seed"), "seed"), "seed", [stage], target).sync()  # tables exist before the server
    server = Server(database, tmp_path)
    yield server
    server.kill()


def wait_until(happened, seconds):
    deadline = time.monotonic() + seconds
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert happened()


def test_a_dead_server_delays_nothing_gets_what_it_missed_and_its_password_is_kept_secret(server, store, stage, caplog):
    there = Target(server.uri_with_password)
    tracker = Tracker(store, "tiny", [stage], there, interval=0.1, longest_pause=0.5)
    write_steps(store, stage, count=10)
    began = time.monotonic()
    tracker.start()  # nobody listens yet
    assert time.monotonic() - began < 0.1
    wait_until(lambda: "MLflow at" in caplog.text, 40)
    server.start()
    wait_until(lambda: not tracker._behind, 40)
    server.kill()
    write_steps(store, stage, count=25, start=100)
    wait_until(lambda: caplog.text.count("MLflow at") >= 2, 40)
    began = time.monotonic()
    assert tracker.close(1.0) is False
    assert time.monotonic() - began < 3
    tracker._thread.join(30)  # as the end of its process would: it must not write beside the next driver
    ours = [record for record in caplog.records if record.name == "infra.tracking" and "trying again" in record.message]
    assert len(ours) <= 3  # one per outage (a server that is just coming up may count as one), not one per try
    server.start()
    finish(store, stage, {"final_loss": 2.0}, {"evaluation.json": b"{}"})
    following = Tracker(store, "tiny", [stage], there)
    following.start()
    assert following.close(90)
    client, (child,) = runs_of(there, store)
    assert losses(client, child) == expected_losses(store, stage)
    assert child.info.status == "FINISHED"
    assert {item.path for item in client.list_artifacts(child.info.run_id)} == {"files", "manifest.json", "recipe.json"}
    assert client.download_artifacts(child.info.run_id, "files/evaluation.json")
    assert child.data.params["rope_theta"] == "10000.0"
    assert child.data.metrics["figures/final_loss"] == 2.0
    _, (parent,) = runs_of(there, store, "run")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    cache = store.read(CACHE).data.decode()
    assert json.loads(cache)["status"] == "FINISHED"
    assert CANARY not in caplog.text + cache
