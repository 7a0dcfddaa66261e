"""The device mesh: five named axes, how a text such as `data=1,fsdp=-1,ring=4` becomes one.

    data     batches, replicated weights
    fsdp     batches, sharded weights
    tensor   heads, feed-forward columns, vocabulary
    ulysses  the sequence; attention exchanges it for heads by all-to-all (inside a host)
    ring     the sequence; attention passes keys and values around it (between hosts)

One axis may be -1: what is left of the devices. Axis order is the order above, so neighbours on `ring` are neighbours
in the device list.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from ringworld.errors import UserError

AXES = ("data", "fsdp", "tensor", "ulysses", "ring")
BATCH_AXES = ("data", "fsdp")
# Ring is the outer axis of the sequence: a host's ulysses group holds one contiguous run of slots.
SEQUENCE_AXES = ("ring", "ulysses")
ROWS = PartitionSpec(BATCH_AXES, SEQUENCE_AXES)  # of an array [batch, sequence]


@dataclass(frozen=True)
class MeshSpec:
    """Sizes of the mesh axes; one of them may be -1, "whatever is left"."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    ulysses: int = 1
    ring: int = 1

    def __post_init__(self) -> None:
        sizes = dataclasses.astuple(self)
        for axis, size in zip(AXES, sizes, strict=True):
            if size < 1 and size != -1:
                raise UserError(f"mesh {axis}={size}: an axis is 1 or more, or -1 for what is left")
        if sizes.count(-1) > 1:
            raise UserError(f"mesh {self}: only one axis may be -1")

    def __str__(self) -> str:
        return ",".join(f"{axis}={size}" for axis, size in zip(AXES, dataclasses.astuple(self), strict=True))

    def sizes(self) -> dict[str, int]:
        """Axis name -> size, as a jax mesh's `shape`."""
        return dataclasses.asdict(self)

    def resolved(self, devices: int) -> MeshSpec:
        """The same mesh with -1 replaced, for a count of devices. Raises UserError where they do not multiply."""
        sizes = dict(zip(AXES, dataclasses.astuple(self), strict=True))
        given = math.prod(size for size in sizes.values() if size != -1)
        if devices % given or (given != devices and -1 not in sizes.values()):
            divisors = [n for n in range(1, devices + 1) if devices % n == 0]
            raise UserError(
                f"mesh {self} does not fit {devices} devices: its axes multiply to {given}; "
                f"each axis must be one of {divisors} and all together {devices}, or one of them -1"
            )
        return MeshSpec(**{axis: devices // given if size == -1 else size for axis, size in sizes.items()})


def parse_mesh(text: str) -> MeshSpec:
    """`data=1,fsdp=-1,ring=4` as a MeshSpec; an axis not named is 1 (fsdp: what is left, if no other axis is -1)."""
    sizes: dict[str, int] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        axis, _, size = part.partition("=")
        if axis not in AXES:
            raise UserError(f"mesh axis {axis!r} in {text!r}: the axes are {', '.join(AXES)}")
        try:
            sizes[axis] = int(size)
        except ValueError:
            raise UserError(f"mesh {axis}={size!r}: a size is a whole number or -1") from None
    if "fsdp" not in sizes and -1 in sizes.values():
        sizes["fsdp"] = 1
    return MeshSpec(**sizes)


def make_mesh(spec: MeshSpec, devices: Sequence[Any] | None = None) -> Mesh:
    """A jax mesh with the five axes over all devices (or those given)."""
    devices = list(jax.devices() if devices is None else devices)
    sizes = dataclasses.astuple(spec.resolved(len(devices)))
    # Mesh, not make_mesh: the latter makes explicit-sharding axes by default, and the compiler places ours.
    return Mesh(np.array(devices).reshape(sizes), AXES)
