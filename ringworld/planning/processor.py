"""This machine's processor as a chip to plan for: what it is, measured in a second.

Its speed depends on what else runs, so a plan made of it is of the moment.
"""

from __future__ import annotations

import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from ringworld.planning.hardware import Chip
from ringworld.train.flops import device_peak_flops

_COPIED = 1 << 28  # bytes, well past any cache


def measured_processor(devices: int = 1, dtype: str = "float32") -> Chip:
    """One of so many equal devices that share this machine: its part of memory, of bandwidth, and of the rate of matrix
    products of a dtype."""
    processor = jax.devices("cpu")[0]
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    bandwidth = _copy_rate() / devices
    rate = device_peak_flops(processor, jnp.dtype(dtype)) / devices
    return Chip(
        name="cpu",
        platform="cpu",
        bfloat16_flops=rate,
        float32_flops=rate,
        hbm_bytes=memory / devices,
        hbm_bandwidth=bandwidth,
        # Devices of one machine exchange by copies; "host memory" is the same memory.
        link_bandwidth=bandwidth,
        links=1,
        network_bandwidth=bandwidth,
        host_bandwidth=bandwidth,
        host_bytes=memory / devices,
    )


def _copy_rate(runs: int = 3) -> float:
    """Bytes per second, read and written together, of a large copy: the best of a few."""
    source = np.zeros(_COPIED, np.uint8)
    target = np.empty_like(source)
    best = float("inf")
    for _ in range(runs):
        start = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - start)
    return 2 * _COPIED / best
