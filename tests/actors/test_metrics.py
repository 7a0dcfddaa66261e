"""What a flow tells of a run can be read where Prometheus reads it: at the metrics port of a Ray node."""

from __future__ import annotations

import time
import urllib.request

import ray
import ray.util.metrics

from infra.metrics import STATES, Metrics
from infra.retries import Again, Failure
from tests.infra.tiny import stage


def served() -> str:
    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=10) as answer:
        return answer.read().decode()


def test_ray_serves_a_run_s_figures(cluster):
    text = stage("text-1k")
    metrics = Metrics("tiny", ray.util.metrics)
    metrics.on_state(text, "running", "attempt 1")
    metrics.on_report(text, {"step": 7, "of": 50, "loss": 3.25, "tokens_per_second": 900.0, "note": "warm"})
    metrics.on_goodput("text-1k", 0.875)
    metrics.on_failure(text, Failure("stalled", "no step", 5), Again(1.0, "after checkpoint 5"))
    metrics.on_state(text, "retrying", "in 1 s")
    metrics.on_state(text, "running", "attempt 2")
    wanted = {
        "ray_ringworld_stage_step": 7,
        "ray_ringworld_stage_steps": 50,
        "ray_ringworld_stage_loss": 3.25,
        "ray_ringworld_stage_tokens_per_second": 900,
        "ray_ringworld_stage_goodput": 0.875,
        "ray_ringworld_stage_attempts": 2,
        "ray_ringworld_failures_total": 1,
    }
    deadline = time.monotonic() + 60
    found: dict[str, float] = {}
    while not wanted.items() <= found.items() and time.monotonic() < deadline:
        time.sleep(1)
        lines = [line for line in served().splitlines() if 'run="tiny"' in line]
        found = {line.partition("{")[0]: float(line.split()[-1]) for line in lines}
    assert wanted.items() <= found.items(), found
    states = [line for line in served().splitlines() if line.startswith("ray_ringworld_stage_state{")]
    assert len(states) == len(STATES)
    assert ['state="running"' in line for line in states if line.endswith(" 1.0")] == [True]
