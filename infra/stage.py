"""A stage: what to make (its recipe and inputs), how (a run function), and where (a placement).

- Identity is the recipe, its kind, the code version and the identities of the inputs: `fingerprint`. Placement, paths,
  machines, the stage's name and the number of retries never enter it.
- Dependencies are the explicit `inputs`; nothing is scanned for. `topological` closes a list of stages over them.
- A run function reads its `StageContext` and returns a `Result`; it never schedules, retries or commits. What it has
  written becomes visible to others only as the `Artifact` of a committed manifest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol

from infra.errors import UserError
from infra.manifest import Manifest
from infra.placement import Placement

FailureKind = Literal["user", "preempted", "stalled", "crashed"]

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?")


class Recipe(Protocol):
    """A frozen dataclass of JSON scalars, tuples, string-keyed mappings and dataclasses of these."""

    kind: ClassVar[str]


@dataclass(frozen=True)
class Result:
    """What a run function has made.

    files: paths relative to the attempt folder, with forward slashes; exactly what the manifest will list.
    values: figures for people (report, MLflow): JSON scalars, lists and dicts. ValueError, naming the key, for what
        JSON lacks: NaN, infinities, arrays and NumPy scalars.
    """

    files: tuple[str, ...]
    values: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, value in self.values.items():
            try:
                json.dumps({key: value}, allow_nan=False)
            except (TypeError, ValueError) as wrong:
                raise ValueError(f"Result.values[{key!r}] cannot be kept in a manifest: {wrong}") from wrong


@dataclass(frozen=True)
class Artifact:
    """The committed output of a stage. `url` is the attempt folder that its manifest names: a path or a gs:// URL."""

    manifest: Manifest
    url: str

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def values(self) -> Mapping[str, Any]:
        return self.manifest.values

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(entry.path for entry in self.manifest.files)

    def path(self, relative: str) -> str:
        """Absolute path or URL of a file of the manifest, or of a folder that holds some.

        KeyError for anything else.
        """
        folder = relative.rstrip("/") + "/"
        if any(entry.path == relative or entry.path.startswith(folder) for entry in self.manifest.files):
            return f"{self.url}/{relative.rstrip('/')}"
        listed = ", ".join(self.files[:20]) or "no files"
        raise KeyError(f"stage {self.manifest.stage!r} made no {relative!r}; its manifest lists {listed}")


@dataclass(frozen=True)
class StageContext:
    """What a run function may know and touch during one attempt.

    attempt_dir: private to this attempt; files of the Result and logs go here. At its start it holds only attempt.json,
        the runner's claim on it; the runner adds error.txt when the attempt fails.
    state_dir: shared by the attempts of a series, so that a later attempt resumes: checkpoints, cursors,
        progress.jsonl. At its start it holds only identity.json.
    gangs: the flow's factory, `gangs(placement, name)` -> context manager of a Gang; None where a flow has none.
    report: live figures for the table: step=, of=, loss=, tokens_per_second=, note=.
    stop: set on lease loss, Ctrl-C or shutdown; the run function then returns or raises within seconds.
    fence: raises LeaseLost when the lease is no longer ours; call before anything that others can see.
    """

    stage: Stage
    inputs: Mapping[str, Artifact]
    attempt: int
    attempt_dir: str
    state_dir: str
    gangs: Any
    report: Callable[..., None]
    stop: threading.Event
    fence: Callable[[], None]


class StageFailure(Exception):
    """An attempt that ended without a result, already classified.

    marker: the newest checkpoint step that survives, None when there is none; retries go on while it advances.
    log_tail: the last lines of the failed process's log.
    """

    def __init__(self, kind: FailureKind, message: str, log_tail: str = "", marker: int | None = None) -> None:
        super().__init__(message)
        self.kind: FailureKind = kind
        self.message = message
        self.log_tail = log_tail
        self.marker = marker


@dataclass(frozen=True, eq=False)
class Stage:
    """A node of the graph. Two stages are the same node only when they are the same object.

    code_version is raised when the meaning of `run` changes. Raises UserError for a name that cannot be a folder.
    """

    name: str
    recipe: Recipe
    run: Callable[[StageContext, Any], Result]
    inputs: Mapping[str, Stage]
    placement: Placement
    code_version: int = 1

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UserError(f"stage name {self.name!r}: use letters, digits and inner hyphens only, such as 'text-8k'")
        object.__setattr__(self, "inputs", dict(self.inputs))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (64 hexadecimal digits) of the stage's identity; the same on any machine."""
        identity = {
            "kind": self.recipe.kind,
            "code_version": self.code_version,
            "recipe": canonical(self.recipe, at=f"{self.name}.recipe"),
            "inputs": {port: stage.fingerprint for port, stage in self.inputs.items()},
        }
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(stage: Stage) -> str:
    return stage.fingerprint


def canonical(value: Any, at: str = "recipe") -> Any:
    """A recipe as plain JSON values: dataclasses and mappings become dicts, tuples lists. `at` names it in errors.

    A field whose metadata says identity="unless default" is left out while it has its default: a recipe may so gain
    a field, and what was finished before keeps its fingerprint.

    Raises UserError, naming the field, for anything whose JSON is not one fixed text: sets, lists that could still
    change, NaN, paths, arrays, objects.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: canonical(getattr(value, f.name), f"{at}.{f.name}")
            for f in dataclasses.fields(value)
            if f.metadata.get("identity") != "unless default" or getattr(value, f.name) != f.default
        }
    if value is None or type(value) in (str, bool, int):
        return value
    if isinstance(value, float) and type(value) is float:
        if math.isfinite(value):
            return value
        raise UserError(f"{at}={value}: a recipe holds finite numbers only")
    if isinstance(value, tuple):
        return [canonical(item, f"{at}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        if wrong := [key for key in value if type(key) is not str]:
            raise UserError(f"{at} has the key {wrong[0]!r}: keys of a recipe's mapping are strings")
        return {key: canonical(item, f"{at}.{key}") for key, item in value.items()}
    raise UserError(
        f"{at}={value!r} ({type(value).__name__}): a recipe holds strings, numbers, booleans, None, tuples, "
        "mappings and dataclasses of these"
    )


def topological(stages: Iterable[Stage]) -> tuple[Stage, ...]:
    """The stages and everything they depend on, each after its inputs, otherwise in the order given.

    Raises UserError when two different stages share a name, or when a stage depends on itself.
    """
    ordered: dict[str, Stage] = {}
    path: list[Stage] = []

    def visit(stage: Stage) -> None:
        if any(stage is ancestor for ancestor in path):
            names = [ancestor.name for ancestor in path]
            raise UserError(f"stages form a cycle: {' -> '.join([*names[names.index(stage.name) :], stage.name])}")
        if (known := ordered.get(stage.name)) is not None:
            if known is not stage:
                raise UserError(f"two different stages are named {stage.name!r}: rename one, or share the one object")
            return
        path.append(stage)
        for parent in stage.inputs.values():
            visit(parent)
        path.pop()
        if stage.name in ordered:
            raise UserError(f"two different stages are named {stage.name!r}: rename one, or share the one object")
        ordered[stage.name] = stage

    for stage in stages:
        visit(stage)
    return tuple(ordered.values())
