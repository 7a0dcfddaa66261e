"""What a trainer may expect of the devices it has: the plan's figures for this very job, to lay beside the run's."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from ringworld.mesh import MeshSpec
from ringworld.planning.estimate import estimate
from ringworld.planning.hardware import CHIPS, Chip, Machine
from ringworld.planning.processor import measured_processor
from ringworld.planning.roofline import Efficiency
from ringworld.train.recipe import TrainOptions, TrainRecipe


@dataclass(frozen=True)
class Expected:
    """Of a step: seconds and mfu (None where the devices are of no known kind), and bytes of one device."""

    seconds: float | None
    mfu: float | None
    bytes: float


def expected(recipe: TrainRecipe, options: TrainOptions, mesh: Mesh, attention_pairs: float) -> Expected:
    """attention_pairs: of a typical step, as its packing lets through. A processor is measured first, for a second."""
    devices = mesh.devices.flat
    hosts, local = jax.process_count(), jax.local_device_count()
    chip = _chip(devices[0], local, recipe.dtype)
    # A TPU slice is joined by its own links, other devices within their host.
    joined = mesh.devices.size if devices[0].platform == "tpu" else local
    machine = Machine(chip, mesh.devices.size, hosts, joined)
    found = estimate(recipe, options, str(MeshSpec(**mesh.shape)), machine, attention_pairs, Efficiency())
    return Expected(found.time.seconds if found.time else None, found.mfu, found.memory.total)


def peak_bytes() -> float:
    """The most memory of one device that was in use so far; of the whole process, where devices are a processor's."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "peak_bytes_in_use" in stats:
        return float(stats["peak_bytes_in_use"])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _chip(device: Any, local: int, dtype: str) -> Chip | None:
    if device.platform == "cpu":
        return measured_processor(local, dtype)
    kind = device.device_kind.lower().replace("v5 lite", "v5e").replace("v6 lite", "v6e")
    return next((chip for name, chip in CHIPS.items() if name.lower() in kind), None)
