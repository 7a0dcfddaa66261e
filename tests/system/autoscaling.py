"""A cluster of Ray's real autoscaler, whose nodes are processes of this machine, and a driver that works on it.

The provider is the fake one of Ray's own wheel: everything but the virtual machines is real. As a program, this file is
the driver, which prints what it saw as JSON:

    python -m tests.system.autoscaling ADDRESS ROOT
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from infra.placement import Placement
from infra.runner import run
from infra.stage import Result, Stage, StageContext, StageFailure
from infra.storage import Store
from tests.system import flow
from tests.system.chaos.cluster import RAY, answers, free_port, marked
from tests.system.timeline import Moment

MOST_NODES = 4
IDLE_SECONDS = 3.0
WORK_SECONDS = 3.0
# What marks the head among the fake provider's nodes.
_HEAD = "f" * 51 + "00000"
_COMMANDS = (
    "initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray",
)  # fmt: skip


@contextmanager
def autoscaled_cluster(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(address, a driver's environment) of a head without CPUs that may add nodes of 2 CPUs each."""
    port = free_port()
    environment = {
        **flow.environment(),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join([str(flow.REPOSITORY), str(folder)]),
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
    }
    own = {"RAY_CLOUD_INSTANCE_ID": _HEAD, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD}
    temporary = tempfile.mkdtemp(prefix="ra-")
    config = Path(temporary) / "cluster.json"
    # The address by which its nodes know the head, not 127.0.0.1: they are told it as it stands here.
    address = subprocess.run(
        [sys.executable, "-c", "import ray.util; print(ray.util.get_node_ip_address())"],
        env=environment, capture_output=True, text=True, check=True,
    ).stdout.split()[-1]  # fmt: skip
    config.write_text(json.dumps(_cluster(f"{address}:{port}")))
    command = [
        RAY, "start", "--head", "--block", f"--port={port}", f"--autoscaling-config={config}", "--num-cpus=0",
        "--include-dashboard=false", "--include-log-monitor=false", "--object-store-memory=80000000",
        f"--temp-dir={temporary}",
        f"--ray-client-server-port={free_port()}",
    ]  # fmt: skip
    with open(folder / "head.log", "w") as log:
        head = subprocess.Popen(
            command, env={**environment, **own}, stdout=log, stderr=log, start_new_session=True, cwd=folder
        )
    try:
        flow.until(lambda: answers(port), head, 60)  # type: ignore[arg-type]
        yield f"{address}:{port}", environment
    finally:
        # Nodes are processes of the autoscaler: all carry the folder in their environment.
        while left := marked(folder):
            for process in left:
                process.kill()
            head.poll()
            time.sleep(0.1)
        shutil.rmtree(temporary, ignore_errors=True)


def _cluster(address: str) -> dict[str, Any]:
    empty: dict[str, Any] = {f"{what}_commands": [] for what in _COMMANDS}
    worker = {"resources": {"CPU": 2, "object_store_memory": 80 << 20}, "node_config": {}}
    return {
        **empty,
        "cluster_name": "fake",
        "max_workers": MOST_NODES,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "gcs_address": address,
            "head_node_id": _HEAD,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {**worker, "min_workers": 0, "max_workers": MOST_NODES},
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": IDLE_SECONDS / 60,
        "docker": {},
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
    }


# Says that it is here, and waits for the other one.
_MEETING = f"""
import os, sys, time
here, there = (os.path.normpath(place) + ".here" for place in sys.argv[1:3])
open(here, "w").close()
end = time.monotonic() + 100
while not os.path.exists(there):
    if time.monotonic() > end:
        sys.exit("nobody came")
    time.sleep(0.1)
time.sleep({WORK_SECONDS})
"""


@dataclass(frozen=True)
class Work:
    """What a stage does: WORK_SECONDS on every host of its gang, or, alone, to wait until the cluster is empty.

    meets: a stage that must be at work at some moment while this one is; it waits for that.
    """

    kind: ClassVar[str] = "work"
    on_hosts: bool = True
    meets: str = ""


def work(context: StageContext, recipe: Work) -> Result:
    if not recipe.on_hosts:
        context.report(note="waits for an empty cluster")
        while nodes() and not context.stop.wait(0.2):
            pass
        return Result((), {})
    places = [
        os.path.join(os.path.dirname(context.state_dir), "..", "..", name)
        for name in (context.stage.name, recipe.meets)
    ]
    script = _MEETING if recipe.meets else f"import time; time.sleep({WORK_SECONDS})"
    with context.gangs(context.stage.placement, context.stage.name) as gang:
        ended = gang.run(
            ["-c", script, *places],
            log_dir=context.attempt_dir,
            stop=context.stop,
            on_poll=lambda view: context.report(note=view.note if view.phase == "waiting" else view.phase),
        )
    if ended.kind != "done":
        raise StageFailure(ended.kind, ended.message, ended.log_tail)
    return Result((), {})


def nodes() -> int:
    """Worker nodes alive."""
    import ray

    return sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())


class Watcher:
    """An observer, and a thread that counts nodes: together they make the moments of a timeline."""

    def __init__(self) -> None:
        self.moments: list[Moment] = []
        self.notes: dict[str, list[str]] = {}
        self._began = time.monotonic()
        self._stages: dict[str, str] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def on_plan(self, plan: Any) -> None: ...

    def on_state(self, stage: Any, state: str, detail: str) -> None:
        self._stages[stage.name] = "refused" if state == "failed" else ""

    def on_report(self, stage: Any, figures: Mapping[str, Any]) -> None:
        note = str(figures.get("note", ""))
        self.notes.setdefault(stage.name, []).append(note)
        self._stages[stage.name] = "waits for machines" if note.startswith("waiting") else note or "begins"

    def on_finished(self, stage: Any, manifest: Any) -> None: ...

    def on_failure(self, stage: Any, failure: Any, decision: Any) -> None: ...

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            self.moments.append(Moment(time.monotonic() - self._began, nodes(), dict(self._stages)))


def graph() -> list[Stage]:
    """A stage of two hosts, a pause until its machines are gone, two branches of two hosts each, and one that asks for
    what no node type has."""
    two = Placement(2, {"CPU": 2})
    first = Stage("first", Work(), work, {}, two)
    pause = Stage("pause", Work(on_hosts=False), work, {"first": first}, Placement())
    left = Stage("left", Work(meets="right"), work, {"pause": pause}, two)
    right = Stage("right", Work(meets="left"), work, {"pause": pause}, two)
    wide = Placement(1, {"GPU": 8, "CPU": 1}, "gpu", wait_seconds=6)
    return [first, pause, left, right, Stage("impossible", Work(), work, {"pause": pause}, wide)]


def main(address: str, root: str) -> None:
    from actors.gang import Gangs
    from actors.local import start_ray

    with start_ray(address=address):
        watcher = Watcher()
        began = time.monotonic()
        outcome = run(graph(), Store(root, "scaled"), gangs=Gangs(), observer=watcher)  # type: ignore[arg-type]
        while nodes() and time.monotonic() - began < 120:
            time.sleep(0.2)
        time.sleep(0.5)
        watcher.close()
        seen = {
            "finished": sorted(outcome.artifacts),
            "failures": {name: [failure.kind, failure.message] for name, failure in outcome.failures.items()},
            "notes": watcher.notes,
            "moments": [asdict(moment) for moment in watcher.moments],
        }
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
