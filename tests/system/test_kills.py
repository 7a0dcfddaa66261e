"""Killed in the middle of a stage, whatever was killed: the rerun ends with the same losses, bit by bit."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest

from tests.system import flow

STAGE = "text-256"
OPTIONS = ("only=text-256", "placement.train.save_every=5")


@pytest.fixture
def running(prepared, sources):
    """A flow that has trained past a checkpoint of its stage; whatever is left of it is ended afterwards."""
    root = prepared(STAGE)
    process = flow.start(root, sources, *OPTIONS)
    try:
        flow.until(lambda: len(flow.losses(root, STAGE)) >= 12, process)
        yield root, process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def same_as_calm(root, calm) -> None:
    assert flow.losses(root, STAGE) == flow.losses(calm, STAGE)
    assert flow.manifest(root, STAGE)["fingerprint"] == flow.manifest(calm, STAGE)["fingerprint"]


def test_one_flow_refuses_a_second_driver_and_survives_kill_9_of_its_trainer_and_of_its_host_actor(
    running, calm, sources
):
    root, process = running
    (trainer,) = flow.trainers(root)
    trainer.suspend()  # the first must still be at it when the second asks
    second = flow.run(root, sources, *OPTIONS)
    trainer.resume()
    assert second.returncode == 2
    assert str(process.pid) in second.stderr
    assert process.poll() is None

    trainer.kill()
    flow.until(lambda: len(flow.losses(root, STAGE)) >= 24 and flow.trainers(root), process)
    (trainer,) = flow.trainers(root)
    actor = psutil.Process(trainer.pid).parent()
    assert actor is not None
    assert " ".join(actor.cmdline()).startswith("ray::Host")
    actor.kill()
    assert process.wait(120) == 0
    assert not flow.alive([trainer])
    same_as_calm(root, calm)
    assert flow.manifest(root, STAGE)["attempt"] == 3


def test_kill_9_of_the_driver_leaves_no_trainer_and_the_same_command_resumes(running, calm, sources):
    root, process = running
    family = flow.family(process)
    (trainer,) = flow.trainers(root)
    process.kill()
    process.wait()
    end = time.monotonic() + 20
    while flow.alive([trainer]):
        assert time.monotonic() < end, "the trainer outlived its driver"
        time.sleep(0.1)
    assert not flow.done(root, STAGE)
    ended = flow.run(root, sources, *OPTIONS)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "resum" in ended.stdout
    same_as_calm(root, calm)
    for left in flow.alive(family):  # Ray's own helpers of the killed driver take up to a minute to notice
        left.kill()


@pytest.mark.parametrize(("asked", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 1)])
def test_asked_to_stop_it_leaves_no_children_within_10_seconds_and_the_same_command_resumes(
    running, calm, sources, asked, code
):
    root, process = running
    family = flow.family(process)
    started = time.monotonic()
    process.send_signal(asked)
    assert process.wait(15) == code
    while flow.alive(family):
        assert time.monotonic() - started < 10, [left.cmdline() for left in flow.alive(family)]
        time.sleep(0.1)
    assert not flow.done(root, STAGE)
    ended = flow.run(root, sources, *OPTIONS)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    same_as_calm(root, calm)
