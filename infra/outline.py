"""plan.json: the graph of a run and what its driver thinks of each stage, for those who have only the storage.

A view, written by the driver at the start and at each change of state. Manifests say what is done, whatever stands
here; the states count only while that driver lives. It names stages and counts steps; recipes stay in the manifests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from infra.errors import UserError
from infra.records import write_view

if TYPE_CHECKING:
    from infra.storage import Store

PLAN = "plan.json"


@dataclass(frozen=True)
class Outlined:
    """A stage. inputs: names of stages. steps, step_tokens: of one that trains.

    step_flops: operations of a step, by which stages are compared. step_seconds: as planned for its machines, None
    where nobody knows them. state, detail: as the runner last said; empty before it said anything.
    """

    name: str
    kind: str
    fingerprint: str
    inputs: tuple[str, ...] = ()
    steps: int | None = None
    step_tokens: int | None = None
    step_flops: float | None = None
    step_seconds: float | None = None
    state: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Outline:
    """A run. stages: each after its inputs. command: without secrets. written: unix seconds."""

    run: str
    curriculum: str
    command: str
    written: float
    stages: tuple[Outlined, ...] = field(default=())

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), indent=1) + "\n").encode()


def write_outline(store: Store, outline: Outline) -> None:
    """Put it in its place, atomically. Raises what storage raises."""
    write_view(store, PLAN, outline.to_json())


def read_outline(store: Store) -> Outline:
    """UserError where there is none, or another file."""
    found = store.read(PLAN)
    where = store.url(PLAN)
    if found is None:
        raise UserError(
            f"{where} does not exist: no driver has worked on run {store.run!r} there, or an older version did. "
            "Look at root= and run=, or start the run again: what is finished is reused"
        )
    try:
        data = json.loads(found.data)
        stages = tuple(Outlined(**_known(stage, Outlined)) for stage in data["stages"])
        stages = tuple(Outlined(**{**vars(stage), "inputs": tuple(stage.inputs)}) for stage in stages)
        return Outline(data["run"], data["curriculum"], data["command"], float(data["written"]), stages)
    except (ValueError, KeyError, TypeError) as wrong:
        raise UserError(
            f"{where} is no outline of a run ({wrong}); the next start of the run writes it again"
        ) from wrong


def _known(data: Mapping[str, Any], cls: type) -> dict[str, Any]:
    """Without what a newer version may have added."""
    return {key: value for key, value in data.items() if key in cls.__dataclass_fields__}
