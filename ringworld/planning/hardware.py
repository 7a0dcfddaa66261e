"""Machines that a plan can be made for: what a chip holds, computes and moves, and how chips are joined.

Sources. HBM that a program may use: the TPU compiler's own refusals (libtpu 0.0.51), for GPUs what the driver reports.
Bandwidths of TPUs: Google's TPU documentation and the one-way figures of "How to Scale Your Model"
(jax-ml.github.io/scaling-book, section on TPUs). GPUs: NVIDIA's data sheets of the SXM parts; networks and host memory:
Google's machine types (ct4p, ct5p, ct5lp, ct6e, a2-ultragpu, a3-highgpu, a3-ultragpu). Peak rates are those of
`ringworld.train.flops`, so that a plan's MFU and a run's are of the same peak.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ringworld.errors import UserError
from ringworld.train.flops import PEAK_FLOPS

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One device as JAX counts devices. Bandwidths are bytes per second, one way.

    bfloat16_flops, float32_flops   dense operations per second
    hbm_bytes            what one program may use
    link_bandwidth       over one link to a neighbour (TPU), over all links of a GPU to its switch
    links                links that a collective along one mesh axis keeps busy at once: a torus has two ways round
    network_bandwidth    a chip's share of its host's network, beyond the slice (TPU) or the machine (GPU)
    host_bandwidth       between a chip and its host's memory
    host_bytes           a chip's share of its host's memory
    dimensions           of a TPU topology; 0: no topology
    """

    name: str
    platform: Literal["cpu", "gpu", "tpu"]
    bfloat16_flops: float
    float32_flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    links: int
    network_bandwidth: float
    host_bandwidth: float
    host_bytes: float
    dimensions: int = 0

    def flops(self, dtype: str) -> float:
        """Peak operations per second with inputs of a dtype, as `ringworld.train.flops` counts them."""
        return self.bfloat16_flops if dtype == "bfloat16" else self.float32_flops


def _chip(name: str, platform: Literal["gpu", "tpu"], hbm_gib: float, *rest: float, **more: int) -> Chip:
    peak = next(peak for part, peak in PEAK_FLOPS if part.lower() in name.lower())
    hbm_bandwidth, link, links, network, to_host, host_bytes = rest
    return Chip(
        name,
        platform,
        peak,
        peak / 2,
        hbm_gib * GIB,
        hbm_bandwidth,
        link,
        int(links),
        network,
        to_host,
        host_bytes,
        **more,
    )


CHIPS: Mapping[str, Chip] = {
    chip.name: chip
    for chip in (
        _chip("v4", "tpu", 30.75, 1.23e12, 4.5e10, 2, 6.25e9, 1.6e10, 407e9 / 4, dimensions=3),
        _chip("v5e", "tpu", 15.75, 8.2e11, 4.5e10, 2, 3.1e9, 1.6e10, 48e9, dimensions=2),
        _chip("v5p", "tpu", 95.73, 2.76e12, 9e10, 2, 6.25e9, 1.6e10, 448e9 / 4, dimensions=3),
        _chip("v6e", "tpu", 31.24, 1.64e12, 9e10, 2, 1.25e10, 3.2e10, 180e9, dimensions=2),
        _chip("H100", "gpu", 79.6, 3.35e12, 4.5e11, 1, 5e10, 6.4e10, 1872e9 / 8),
        _chip("H200", "gpu", 140.4, 4.8e12, 4.5e11, 1, 5e10, 6.4e10, 2952e9 / 8),
        _chip("A100", "gpu", 80.0, 2.04e12, 3e11, 1, 2.5e10, 3.2e10, 1360e9 / 8),  # the one of 80 GB
    )
}
# Chips of a host, as the compiler cuts a topology into hosts; a slice of one host may have fewer.
_HOST_SHAPE: Mapping[int, tuple[int, int, int]] = {1: (1, 1, 1), 2: (2, 1, 1), 4: (2, 2, 1), 8: (2, 4, 1)}


@dataclass(frozen=True)
class Topology:
    """The words by which the compiler knows a set of TPU chips: `jax.experimental.topologies.get_topology_desc`.

    host_shape: chips of a host along each dimension.
    """

    name: str
    chip_config: str
    host_shape: tuple[int, int, int]
    slices: int = 1


@dataclass(frozen=True)
class Machine:
    """Chips of one kind. chip: None where nobody said what they are.

    joined: chips that reach each other without the network: a slice, or a machine of GPUs.
    host_bytes: memory of one host; None where it is not known.
    """

    chip: Chip | None
    chips: int
    hosts: int
    joined: int
    host_bytes: float | None = None
    topology: Topology | None = None

    @property
    def chips_per_host(self) -> int:
        return max(1, self.chips // self.hosts)


def known_chip(name: str, platform: str | None = None) -> Chip:
    """The chip of a name, whatever its case. UserError, with the nearest, for one that is not in the table."""
    names = [chip.name for chip in CHIPS.values() if platform in (None, chip.platform)]
    found = {known.lower(): known for known in names}
    if name.lower() in found:
        return CHIPS[found[name.lower()]]
    close = difflib.get_close_matches(name.lower(), found, n=1, cutoff=0.3)
    hint = f" (did you mean {found[close[0]]}?)" if close else ""
    raise UserError(f"chip {name!r}: no such chip{hint}; there are {', '.join(names)}")


def tpu_machine(
    accelerator: str, topology: str, hosts: int, chips_per_host: int, slices: int = 1, host_bytes: float | None = None
) -> Machine:
    """Whole TPU slices: `v4`, `4x8x8`, in hosts of so many chips. UserError where these do not agree."""
    chip = known_chip(accelerator, "tpu")
    shape = _shape(chip, topology)
    chips = math.prod(shape) * slices
    if chips != hosts * chips_per_host:
        fits = f"hosts={chips // chips_per_host}" if chips % chips_per_host == 0 else f"resources.TPU={chips // hosts}"
        raise UserError(
            f"topology {topology} in {slices} slice(s) has {chips} chips, but hosts={hosts} with {chips_per_host} each "
            f"have {hosts * chips_per_host}; use {fits}"
        )
    of_host = _HOST_SHAPE.get(chips_per_host)
    x, y, z = (*shape, 1, 1)[:3]
    whole = x, y, z
    if hosts == slices:
        of_host = whole
    elif of_host is None:
        raise UserError(f"resources.TPU={chips_per_host}: a TPU host has 1, 2, 4 or 8 chips")
    if any(size % part for size, part in zip(whole, of_host, strict=True)):
        tiled = (-(-size // part) * part for size, part in zip(shape, of_host[: len(shape)], strict=True))
        raise UserError(
            f"topology {topology}: hosts of {'x'.join(map(str, of_host))} chips do not tile it; "
            f"the nearest is {'x'.join(map(str, tiled))}"
        )
    return Machine(
        chip=chip,
        chips=chips,
        hosts=hosts,
        joined=math.prod(shape),
        host_bytes=host_bytes or chip.host_bytes * chips_per_host,
        # A v4 or v5p chip is one device of two cores; the others have one core, and no such word.
        topology=Topology(f"{chip.name}:{topology}", "megacore" if chip.dimensions == 3 else "", of_host, slices),
    )


def gpu_machine(chip: str, hosts: int, chips_per_host: int, host_bytes: float | None = None) -> Machine:
    """Machines of GPUs; chip '': of a kind that nobody named."""
    known = known_chip(chip, "gpu") if chip else None
    memory = host_bytes or (known.host_bytes * chips_per_host if known else None)
    return Machine(known, hosts * chips_per_host, hosts, chips_per_host, memory)


def cpu_machine(hosts: int, devices_per_host: int = 1, measured: Chip | None = None) -> Machine:
    """Processors; measured: one device, as `ringworld.planning.processor` finds it, None where nobody looked."""
    memory = measured.host_bytes * devices_per_host if measured else None
    return Machine(measured, hosts * devices_per_host, hosts, devices_per_host, memory)


def _shape(chip: Chip, topology: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in topology.split("x"))
    except ValueError:
        shape = ()
    if len(shape) != chip.dimensions or min(shape, default=0) < 1:
        example = "4x4x4" if chip.dimensions == 3 else "4x8"
        raise UserError(f"topology {topology!r}: a {chip.name} slice has {chip.dimensions} dimensions, as in {example}")
    return shape
