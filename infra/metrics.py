"""A run's figures as metrics, for Prometheus: an observer that sets gauges and counts failures.

Whoever builds it says where they go; a flow gives it `ray.util.metrics`, whose gauges every Ray node serves to
Prometheus. Nothing here imports Ray. Stages that are not at work keep their last values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from infra.manifest import Manifest
from infra.observer import State
from infra.plan import Plan
from infra.retries import Decision, Failure
from infra.stage import Stage

_TAGS = ("run", "stage")
STATES = ("waiting", "reused", "running", "retrying", "finished", "failed", "stopped", "blocked")


class Meters(Protocol):
    """What makes metrics, as the module `ray.util.metrics` does: each call is (name, description, keys of its tags)."""

    def Gauge(self, name: str, description: str, tag_keys: tuple[str, ...]) -> Any: ...

    def Counter(self, name: str, description: str, tag_keys: tuple[str, ...]) -> Any: ...


class Metrics:
    """An Observer. Names begin with `ringworld_`; each has the tags run and stage, some one more."""

    def __init__(self, run: str, meters: Meters) -> None:
        self._run = run
        self._figures = {
            key: meters.Gauge(f"ringworld_stage_{name}", description, _TAGS)
            for key, name, description in (
                ("step", "step", "steps that are trained"),
                ("of", "steps", "steps to train"),
                ("loss", "loss", "loss of the newest step, nats per token"),
                ("tokens_per_second", "tokens_per_second", "median over the last steps"),
            )
        }
        self._attempts = meters.Gauge("ringworld_stage_attempts", "attempts begun by this driver", _TAGS)
        self._goodput = meters.Gauge("ringworld_stage_goodput", "share of the wall time that trained, 0 to 1", _TAGS)
        self._state = meters.Gauge("ringworld_stage_state", "1 for the state that the stage is in", (*_TAGS, "state"))
        self._failures = meters.Counter("ringworld_failures_total", "attempts that failed", (*_TAGS, "kind"))
        self._begun: dict[str, int] = {}

    def on_plan(self, plan: Plan) -> None:
        """The states that follow say more."""

    def on_state(self, stage: Stage, state: State, detail: str) -> None:
        tags = self._tags(stage.name)
        for each in STATES:
            self._state.set(float(each == state), tags | {"state": each})
        if state == "running":
            self._begun[stage.name] = self._begun.get(stage.name, 0) + 1
            self._attempts.set(float(self._begun[stage.name]), tags)

    def on_report(self, stage: Stage, figures: Mapping[str, Any]) -> None:
        for key, gauge in self._figures.items():
            value = figures.get(key)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                gauge.set(float(value), self._tags(stage.name))

    def on_finished(self, stage: Stage, manifest: Manifest) -> None:
        """The state says it."""

    def on_failure(self, stage: Stage, failure: Failure, decision: Decision) -> None:
        self._failures.inc(1.0, self._tags(stage.name) | {"kind": failure.kind})

    def on_goodput(self, stage: str, share: float) -> None:
        """Not the runner's to say: of whoever reads storage."""
        self._goodput.set(share, self._tags(stage))

    def _tags(self, stage: str) -> dict[str, str]:
        return {"run": self._run, "stage": stage}
