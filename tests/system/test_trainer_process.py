"""The trainer's contract as a process: exit codes, the watchdog, the parent's death."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from tests.system import flow


@pytest.fixture
def job(calm, tmp_path):
    """A function that writes the calm run's job with changes, as (path, state folder)."""
    with open(calm / flow.RUN / "text-256" / "attempt-1" / "job.yaml") as file:
        made = yaml.safe_load(file)
    made["inputs"]["output"] = str(tmp_path)

    def write(**options):
        changed = {**made, "options": {**made["options"], **options}}
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(changed))
        return str(tmp_path / "job.yaml"), str(tmp_path / "state")

    return write


def command(path, state, mesh="fsdp=1"):
    return [sys.executable, "-m", "ringworld.train", "--recipe", path, "--state", state, "--mesh", mesh]


def run(*arguments, **variables):
    environment = {**flow.environment(), "JAX_PLATFORMS": "cpu", **variables}
    return subprocess.run(
        command(*arguments), cwd=flow.REPOSITORY, env=environment, capture_output=True, text=True, timeout=120
    )


def test_what_a_person_must_repair_exits_with_64_and_one_line(job, tmp_path):
    path, state = job(keep=0)
    ended = run(path, state)
    assert ended.returncode == 64
    assert ended.stderr.strip() == "error: job.options: options.keep=0: must be 1 or more"
    assert run(str(tmp_path / "nothing.yaml"), state).returncode == 64
    path, state = job()
    ended = run(path, state, "ring=3")
    assert ended.returncode == 64
    assert "ring=3" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_trainer_that_makes_no_step_exits_with_124_and_shows_where_it_hangs(job):
    path, state = job(startup_seconds=1.0)
    ended = run(path, state)
    assert ended.returncode == 124
    assert "no step finished for" in ended.stderr
    assert "File " in ended.stderr
    with open(f"{state}/sessions/0001.json") as file:
        assert json.load(file)["ended"] == "stalled"


def test_a_trainer_whose_parent_dies_leaves(job, tmp_path):
    path, state = job(save_every=1000)
    script = f"""
import os, subprocess, sys, time
child = subprocess.Popen({command(path, state)!r}, env=dict(os.environ, RINGWORLD_PARENT_PID=str(os.getpid())))
print(child.pid, flush=True)
time.sleep(600)
"""
    environment = {**flow.environment(), "JAX_PLATFORMS": "cpu"}
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=flow.REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    progress = f"{state}/progress.jsonl"
    flow.until(lambda: os.path.exists(progress) and os.path.getsize(progress), parent)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 10
    while flow.alive([child]):
        assert time.monotonic() < end
        time.sleep(0.1)
