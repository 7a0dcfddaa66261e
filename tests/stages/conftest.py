"""What a runner would hand a stage: its context, and the artifacts of others."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest

from infra.manifest import FileEntry, Manifest, Provenance
from infra.placement import Placement
from infra.stage import Artifact, Recipe, Result, Stage, StageContext


class RunStage(Protocol):
    def __call__(
        self,
        module: Any,
        recipe: Recipe,
        inputs: Mapping[str, Artifact] | None = None,
        name: str = "stage",
        stop: threading.Event | None = None,
    ) -> Artifact: ...


@pytest.fixture
def run_stage(tmp_path: Path) -> RunStage:
    """Run a stage module's `run` in an attempt folder of its own; the artifact lists exactly what the result lists."""
    made = 0

    def run(
        module: Any,
        recipe: Recipe,
        inputs: Mapping[str, Artifact] | None = None,
        name: str = "stage",
        stop: threading.Event | None = None,
    ) -> Artifact:
        nonlocal made
        made += 1
        folder = tmp_path / "runs" / f"{recipe.kind}-{made}" / "attempt-1"
        folder.mkdir(parents=True)
        context = StageContext(
            stage=Stage(name, recipe, module.run, {}, Placement()),
            inputs=inputs or {},
            attempt=1,
            attempt_dir=str(folder),
            state_dir=str(folder.parent / "state"),
            gangs=None,
            report=lambda **_: None,
            stop=stop or threading.Event(),
            fence=lambda: None,
        )
        return _artifact(context, module.run(context, recipe), folder)

    return run


def _artifact(context: StageContext, result: Result, folder: Path) -> Artifact:
    stage = context.stage
    files = tuple(FileEntry(path, (folder / path).stat().st_size) for path in result.files)
    origin = Provenance(None, {}, "host", "", "", 0.0, 1)
    manifest = Manifest(stage.name, stage.recipe.kind, 1, stage.fingerprint, {}, {}, files, result.values, 1, 1, origin)
    manifest.to_json()  # the values are JSON
    return Artifact(manifest, str(folder))
