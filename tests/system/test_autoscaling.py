"""Machines that come when a stage asks for them and go when it is done, under Ray's own autoscaler."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.system import flow
from tests.system.autoscaling import autoscaled_cluster
from tests.system.timeline import Moment, timeline


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the driver saw; its timeline is printed, for `pytest -s`."""
    folder = tmp_path_factory.mktemp("scaled")
    with autoscaled_cluster(folder) as (address, environment):
        ended = subprocess.run(
            [sys.executable, "-m", "tests.system.autoscaling", address, str(folder)],
            cwd=flow.REPOSITORY, env=environment, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    found["moments"] = [Moment(**moment) for moment in found["moments"]]
    text = timeline(found["moments"])
    (Path(folder) / "timeline.txt").write_text(text + "\n")
    print("\n" + text)
    return found


def nodes_while(seen: dict[str, Any], stage: str) -> set[int]:
    return {moment.nodes for moment in seen["moments"] if moment.stages.get(stage) == "running"}


def test_nodes_appear_for_a_stage_go_when_idle_and_return_for_the_next(seen: dict[str, Any]) -> None:
    counts = [moment.nodes for moment in seen["moments"]]
    assert counts[0] == counts[-1] == 0
    assert nodes_while(seen, "first") == {2}
    assert seen["finished"] == ["first", "left", "pause", "right"]
    between = [moment.nodes for moment in seen["moments"] if moment.stages.get("left") == "waits for machines"]
    assert between[0] == 0, "the machines of the first stage had gone before the next one asked"


def test_two_branches_run_at_once_when_there_is_room(seen: dict[str, Any]) -> None:
    assert any(moment.stages.get("left") == moment.stages.get("right") == "running" for moment in seen["moments"])
    assert max(moment.nodes for moment in seen["moments"]) == 4


def test_what_no_node_type_can_hold_is_refused_by_the_resource_and_keeps_nobody_waiting(seen: dict[str, Any]) -> None:
    kind, message = seen["failures"]["impossible"]
    assert kind == "user"
    assert re.search(r"no node has GPU 8 .*the autoscaler can add no such nodes", message), message
    waiting = [moment.seconds for moment in seen["moments"] if moment.stages.get("impossible") == "waits for machines"]
    assert waiting[-1] - waiting[0] < 60


def test_what_may_still_come_is_awaited(seen: dict[str, Any]) -> None:
    assert any("the autoscaler may bring them" in note for note in seen["notes"]["first"]), seen["notes"]["first"]


def test_a_timeline_has_a_line_for_each_change() -> None:
    moments = [Moment(0, 0, {"a": "waits"}), Moment(0.2, 0, {"a": "waits"}), Moment(1.25, 2, {"a": "runs", "b": ""})]
    assert timeline(moments).splitlines()[1:] == ["     0.0  -      a waits", "     1.2  ##     a runs"]
