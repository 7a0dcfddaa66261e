"""For every test: JAX on eight CPU devices, and one small Ray cluster with one token for all tests of a process."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from actors.local import RayCluster

# Before anything imports JAX or Ray, which read these once in the life of a process.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
# Compiling is most of what the tests' processes do, and these programs are too small to win it back by running faster.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true",
)


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayCluster]:
    """Ray with two CPUs, started by the first test that asks for it."""
    from actors.local import start_ray

    with start_ray(num_cpus=2, object_store_bytes=200 << 20) as cluster:
        yield cluster
