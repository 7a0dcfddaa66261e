"""What tests of the runner share: an observer that remembers, stages that fail, a run without long waits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.manifest import Manifest
from infra.plan import Plan
from infra.retries import Decision, Failure
from infra.runner import Outcome, run
from infra.stage import Result, Stage, StageContext
from infra.storage import Store
from tests.infra.tiny import Number, add


class Witness:
    """An observer that remembers everything."""

    def __init__(self) -> None:
        self.plans: list[Plan] = []
        self.states: list[tuple[str, str]] = []
        self.figures: list[Mapping[str, Any]] = []
        self.finished: list[str] = []
        self.failures: list[tuple[str, Failure, Decision]] = []

    def on_plan(self, plan: Plan) -> None:
        self.plans.append(plan)

    def on_state(self, stage: Stage, state: str, detail: str) -> None:
        self.states.append((stage.name, state))

    def on_report(self, stage: Stage, figures: Mapping[str, Any]) -> None:
        self.figures.append(figures)

    def on_finished(self, stage: Stage, manifest: Manifest) -> None:
        self.finished.append(stage.name)

    def on_failure(self, stage: Stage, failure: Failure, decision: Decision) -> None:
        self.failures.append((stage.name, failure, decision))


def failing(*errors: Exception) -> Any:
    """A run function that raises these in turn, then succeeds."""
    left = list(errors)

    def work(context: StageContext, recipe: Number) -> Result:
        if left:
            raise left.pop(0)
        return add(context, recipe)

    return work


def quick(stages: list[Stage], store: Store, **options: Any) -> Outcome:
    return run(stages, store, first_wait=0.01, **options)
