"""Where stages run: a placement file. Nothing of it is part of what a stage is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from infra.placement import Placement
from ringworld.errors import UserError
from ringworld.mesh import parse_mesh
from ringworld.strict import from_mapping


@dataclass(frozen=True)
class Hosts:
    """Any number of hosts from `min` to `max` that divides `max`; as many as the cluster can hold."""

    min: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.max:
            raise UserError(f"hosts: min={self.min}, max={self.max}: 1 <= min <= max")


@dataclass(frozen=True)
class StagePlace:
    """What one training stage has otherwise than the rest of the site."""

    mesh: str | None = None
    hosts: int | Hosts | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Site:
    """A placement file: where training runs, with exceptions by stage. CPU: 0 means this machine's cores, shared
    evenly.

    hosts: a number, or {min: 2, max: 4}: see `infra.placement`.
    train, evaluate, vqgan: execution options of ringworld.train, ringworld.evaluate and ringworld.vision.train.
    questions: of `stages.synthesize_qa`, such as the server's address. codes: of `stages.codes`.
    """

    kind: Literal["cpu", "gpu", "tpu"] = "cpu"
    hosts: int | Hosts = 1
    resources: Mapping[str, float] = field(default_factory=lambda: {"CPU": 0.0})
    mesh: str = "fsdp=-1"
    topology: str | None = None
    accelerator: str | None = None
    slices: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    evaluate: Mapping[str, Any] = field(default_factory=dict)
    questions: Mapping[str, Any] = field(default_factory=dict)
    vqgan: Mapping[str, Any] = field(default_factory=dict)
    codes: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, StagePlace] = field(default_factory=dict)
    wait_seconds: float = 60.0
    frozen_seconds: float = 120.0
    shrink_seconds: float = 30.0

    def __post_init__(self) -> None:
        for own in (self, *self.stages.values()):
            if own.hosts is not None and most(own.hosts) < 1:
                raise UserError(f"placement.hosts={own.hosts}: 1 or more")
        for own in (self, *self.stages.values()):
            if own.mesh is not None:
                parse_mesh(own.mesh)

    @property
    def most_hosts(self) -> int:
        """Of any stage."""
        return max(most(own.hosts) for own in (self, *self.stages.values()) if own.hosts is not None)

    def devices(self, placement: Placement) -> int | None:
        """Devices of a placement's hosts together, as JAX will count them; None where only the hosts know."""
        if self.kind == "cpu":
            return None if "XLA_FLAGS" in self.env else placement.hosts
        return int(placement.hosts * self.resources[self.kind.upper()])

    def place(self, stage: str, options: Mapping[str, Any]) -> Placement:
        """The placement of a stage, with these execution options."""
        own = self.stages.get(stage, StagePlace())
        asked = own.hosts or self.hosts
        hosts = most(asked)
        resources = dict(self.resources)
        if resources.get("CPU") == 0:
            resources["CPU"] = float(max(1, (os.cpu_count() or 1) // hosts))
        return Placement(
            hosts=hosts,
            resources=resources,
            kind=self.kind,
            topology=self.topology,
            accelerator=self.accelerator,
            slices=self.slices,
            mesh=own.mesh or self.mesh,
            env=dict(self.env),
            options={**options, **own.options},
            wait_seconds=self.wait_seconds,
            frozen_seconds=self.frozen_seconds,
            shrink_seconds=self.shrink_seconds,
            least_hosts=asked.min if isinstance(asked, Hosts) else 0,
        )


def most(hosts: int | Hosts) -> int:
    return hosts.max if isinstance(hosts, Hosts) else hosts


def load_site(mapping: Mapping[str, Any]) -> Site:
    """A Site from a placement file's mapping; meshes may be written as a mapping of axes."""

    def as_text(part: Mapping[str, Any]) -> dict[str, Any]:
        mesh = part.get("mesh")
        text = ",".join(f"{axis}={size}" for axis, size in mesh.items()) if isinstance(mesh, Mapping) else mesh
        return {**part, "mesh": text} if "mesh" in part else dict(part)

    stages = mapping.get("stages")
    if isinstance(stages, Mapping):
        given = {name: as_text(own) if isinstance(own, Mapping) else own for name, own in stages.items()}
        mapping = {**mapping, "stages": given}
    return from_mapping(Site, as_text(mapping), at="placement")
