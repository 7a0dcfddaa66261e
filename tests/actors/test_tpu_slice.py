"""A TPU slice under a real Ray whose nodes only claim to have chips: reserved whole, ranked by its own worker ids."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from actors.gang import Gang
from actors.local import RayCluster
from actors.tpu_slice import multislice_variables
from infra.errors import UserError
from infra.placement import Placement

SLICE = Placement(1, {"TPU": 4, "CPU": 1}, "tpu", topology="2x2x1", accelerator="v4")


@pytest.fixture(scope="module")
def tpu_node(cluster: RayCluster) -> Iterator[None]:
    """A node that joins the cluster as the only worker of a v4 slice of 2x2x1 chips.

    One, not two: nodes of one address that start together hinder each other, and one after the other takes too long.
    """
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--address", cluster.address, "--block",
        "--num-cpus=1", '--resources={"TPU": 4}', "--object-store-memory=80000000",
    ]  # fmt: skip
    # What the device plugin of a real node sets: Ray makes the head resource and the node's labels of it.
    plugin = {"TPU_NAME": "s0", "TPU_WORKER_ID": "0", "TPU_TOPOLOGY": "2x2x1", "TPU_ACCELERATOR_TYPE": "v4-8"}
    node = subprocess.Popen(command, env={**os.environ, **plugin}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 40
        while ray.cluster_resources().get("TPU", 0) < 4:
            assert time.monotonic() < deadline, "the node did not join"
            time.sleep(0.1)
        yield
    finally:
        node.terminate()
        node.wait(30)


@pytest.mark.usefixtures("tpu_node")
def test_a_slice_is_taken_whole_and_given_back(tmp_path: Path) -> None:
    script = (
        "import os\n"
        f"open('{tmp_path}/environ', 'w').write(os.environ['TPU_WORKER_ID'] + ' ' + os.environ['JAX_PLATFORMS'])\n"
    )
    with Gang(SLICE, "slice") as gang:
        ended = gang.run(["-c", script], log_dir=str(tmp_path / "logs"), stop=threading.Event())
        assert ended.kind == "done", ended
        assert ray.available_resources().get("TPU", 0) == 0
    assert (tmp_path / "environ").read_text() == "0 tpu,cpu"
    deadline = time.monotonic() + 10
    while ray.available_resources().get("TPU", 0) != 4 or ray.available_resources().get("TPU-v4-8-head", 0) != 1:
        assert time.monotonic() < deadline, "the slice was not given back"
        time.sleep(0.05)


@pytest.mark.usefixtures("tpu_node")
def test_one_chip_of_a_host_is_taken_and_the_others_stay_free(tmp_path: Path) -> None:
    script = f"import os\nopen('{tmp_path}/chips', 'w').write(os.environ['TPU_VISIBLE_CHIPS'])\n"
    chip = Placement(1, {"TPU": 1, "CPU": 1}, "tpu", topology="1x1x1", accelerator="v4")
    with Gang(chip, "chip") as gang:
        ended = gang.run(["-c", script], log_dir=str(tmp_path / "logs"), stop=threading.Event())
        assert ended.kind == "done", ended
        assert ray.available_resources().get("TPU", 0) == 3
    assert (tmp_path / "chips").read_text() in list("0123")


def test_hosts_that_do_not_match_the_topology_are_refused(cluster: RayCluster, tmp_path: Path) -> None:
    wrong = Placement(3, {"TPU": 4, "CPU": 1}, "tpu", topology="2x2x2", accelerator="v4")
    with Gang(wrong, "slice") as gang, pytest.raises(UserError, match=r"hosts=3: 1 slice\(s\) '2x2x2'.* have 2 hosts"):
        gang.run(["-c", "pass"], log_dir=str(tmp_path), stop=threading.Event())


def test_several_slices_are_told_of_each_other_and_one_is_not() -> None:
    assert multislice_variables("10.0.0.1", 1, 0) == {}
    variables = multislice_variables("10.0.0.1", 2, 1)
    assert variables["MEGASCALE_COORDINATOR_ADDRESS"] == "10.0.0.1"
    assert (variables["MEGASCALE_NUM_SLICES"], variables["MEGASCALE_SLICE_ID"]) == ("2", "1")
