"""Where a stage runs and how wide: hosts, what each of them offers, and the variables of its trainer.

A placement is never identity: a stage that moves to other machines, a wider mesh or another cache folder stays the same
stage. It is data alone; which scheduler turns it into machines is no business of this file.

- A *host* is what one trainer process owns. For `gpu` and `tpu` that is a whole machine with all its accelerators; for
  `cpu` it is a share of a machine, so that several hosts may lie on one (two trainers on a laptop).
- `resources` are per host. `hosts` counts the hosts of all slices together.
- A placement may allow fewer hosts than it asks for: divisors of their number, so that a mesh with a -1 still divides.
- Everything is checked when it is made; an error names the key, the value and what is allowed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from infra.errors import UserError

Kind = Literal["cpu", "gpu", "tpu"]
Scalar = str | int | float | bool | None

_TOPOLOGY = re.compile(r"[1-9]\d*(x[1-9]\d*){1,2}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Set by the gang for each rank: a value from a file would be stale on the next cluster, and JAX then waits for ever.
_OWNED_BY_THE_GANG = ("RINGWORLD_", "RAY_", "MEGASCALE_")


@dataclass(frozen=True)
class Placement:
    """A request for machines.

    resources: per host, in the scheduler's names: {"CPU": 4}, {"GPU": 8}, {"TPU": 4}; "memory" is in bytes.
    topology: of one TPU slice, such as "4x8x8"; None for other kinds.
    accelerator: what the chips are, such as "v4" or "H100": needed for TPUs, for GPUs of use to a plan alone.
    slices: TPU slices joined by the data-centre network; `hosts` is a multiple of it.
    mesh: the trainer's mesh, in the trainer's own syntax; it checks it.
    env: variables of the trainer process, over what its kind sets. Not for secrets: placements are printed and stored.
    options: execution options of the trainer that leave its result alone (checkpoint interval, rematerialisation, ...).
    wait_seconds: how long to wait for machines that the cluster does not have in total (an autoscaler may bring them)
        before the stage fails. Machines that exist and are busy are awaited without end.
    least_hosts: fewer hosts than `hosts` will do, down to so many; 0: no fewer. Slices are given up as a whole.
    shrink_seconds: how long the cluster must be too small for `hosts` before fewer are asked for. Where an autoscaler
        brings machines, longer than it takes.
    frozen_seconds: a trainer whose process gives no sign of life for so long is ended, and its gang with it.
    """

    hosts: int = 1
    resources: Mapping[str, float] = field(default_factory=lambda: {"CPU": 1.0})
    kind: Kind = "cpu"
    topology: str | None = None
    accelerator: str | None = None
    slices: int = 1
    mesh: str = "data=1,fsdp=-1,tensor=1,ulysses=1,ring=1"
    env: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Scalar | Mapping[str, Scalar]] = field(default_factory=dict)
    wait_seconds: float = 60.0
    frozen_seconds: float = 120.0
    least_hosts: int = 0
    shrink_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("resources", "env", "options"):
            value = getattr(self, name)
            _require(isinstance(value, Mapping), name, value, "a mapping")
            object.__setattr__(self, name, dict(value))
        self._check_sizes()
        self._check_kind()
        self._check_environment()

    @property
    def distinct(self) -> bool:
        """Whether each host is a machine of its own: two trainers cannot share the accelerators of one."""
        return self.kind != "cpu"

    def request(self) -> str:
        """For people: 'CPU: 2 x 1', 'GPU: 1 x 8, memory: 1 x 205 GiB'."""
        return ", ".join(f"{name}: {self.hosts} x {_amount(name, size)}" for name, size in self.resources.items())

    def widths(self) -> tuple[Placement, ...]:
        """This placement on every number of hosts that will do, widest first: divisors of `hosts`, in whole slices."""
        unit = self.hosts // self.slices if self.kind == "tpu" else 1
        units = self.hosts // unit
        return tuple(
            replace(self, hosts=count * unit, slices=count if self.kind == "tpu" else 1, least_hosts=0)
            for count in range(units, 0, -1)
            if units % count == 0 and count * unit >= (self.least_hosts or self.hosts)
        )

    def _check_sizes(self) -> None:
        for name in ("hosts", "slices"):
            value = getattr(self, name)
            _require(type(value) is int and value >= 1, name, value, "a whole number, 1 or more")
        _require(self.hosts % self.slices == 0, "hosts", self.hosts, f"a multiple of slices={self.slices}")
        _require(bool(self.resources), "resources", self.resources, 'at least one, such as {"CPU": 1}')
        for name, size in self.resources.items():
            _require(isinstance(name, str) and bool(name), "resources", name, "names of resources, such as CPU")
            _require(_is_number(size) and size > 0, f"resources.{name}", size, "a number above 0")
        least, frozen = self.least_hosts, self.frozen_seconds
        _require(type(least) is int and 0 <= least <= self.hosts, "hosts.min", least, f"1 to hosts.max={self.hosts}")
        for name in ("wait_seconds", "shrink_seconds"):
            value = getattr(self, name)
            _require(_is_number(value) and value >= 0, name, value, "a number of seconds, 0 or more")
        # Trainers give a sign of life twice a second; a busy machine may swallow a few.
        _require(_is_number(frozen) and frozen >= 2, "frozen_seconds", frozen, "a number of seconds, 2 or more")
        _require(isinstance(self.mesh, str) and bool(self.mesh), "mesh", self.mesh, "a text such as 'fsdp=-1,ring=4'")

    def _check_kind(self) -> None:
        _require(self.kind in get_args(Kind), "kind", self.kind, "cpu, gpu or tpu")
        if self.kind != "tpu":
            for name in ("topology", "accelerator") if self.kind == "cpu" else ("topology",):
                _require(getattr(self, name) is None, name, getattr(self, name), f"nothing for kind={self.kind}")
            _require(self.slices == 1, "slices", self.slices, f"1 for kind={self.kind}")
        else:
            topology, accelerator = self.topology, self.accelerator
            good = isinstance(topology, str) and _TOPOLOGY.fullmatch(topology) is not None
            _require(good, "topology", topology, "the shape of a TPU slice, such as '4x8x8', for kind=tpu")
            good = isinstance(accelerator, str) and accelerator != ""
            _require(good, "accelerator", accelerator, "a TPU generation, such as 'v4', for kind=tpu")
        if self.kind != "cpu":
            needed = self.kind.upper()
            _require(needed in self.resources, "resources", dict(self.resources), f"{needed} for kind={self.kind}")

    def _check_environment(self) -> None:
        for name, value in self.env.items():
            good = isinstance(name, str) and _VARIABLE.fullmatch(name) is not None
            _require(good, "env", name, "names of environment variables")
            owned = name.startswith(_OWNED_BY_THE_GANG)
            _require(
                not owned, f"env.{name}", value, f"no variable of {', '.join(_OWNED_BY_THE_GANG)}: the gang sets them"
            )
            _require(isinstance(value, str) and "\0" not in value, f"env.{name}", value, "a text (quote numbers)")
        for name, value in self.options.items():
            values = value.values() if isinstance(value, Mapping) else (value,)
            scalar = all(one is None or isinstance(one, (str, int, float, bool)) for one in values)
            allowed = "a text, a number, true, false, null, or a mapping of those"
            _require(isinstance(name, str) and scalar, f"options.{name}", value, allowed)


def shortage(placement: Placement, nodes: Sequence[Mapping[str, float]]) -> str | None:
    """What nodes with these *total* resources lack for the placement, in words; None when they can hold it.

    All hosts ask for the same, so counting how many each node holds is exact, no search is needed.
    """
    for name, size in placement.resources.items():
        largest = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if largest < size:
            return f"no node has {name} {_amount(name, size)} (the largest has {_amount(name, largest)})"
    room = 0
    for node in nodes:
        held = min(math.floor(node.get(name, 0.0) / size + 1e-9) for name, size in placement.resources.items())
        room += min(held, 1) if placement.distinct else held
    if room < placement.hosts:
        where = "one per node" if placement.distinct else "in all"
        return f"there is room for {room} of {placement.hosts} hosts ({where}) of {_per_host(placement.resources)}"
    return None


def _require(good: bool, key: str, value: object, allowed: str) -> None:
    if not good:
        raise UserError(f"placement.{key}={value!r}: allowed is {allowed}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _amount(name: str, size: float) -> str:
    return f"{size / 2**30:.3g} GiB" if name in ("memory", "object_store_memory") else f"{size:g}"


def _per_host(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {_amount(name, size)}" for name, size in resources.items())
