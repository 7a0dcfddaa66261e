"""Ray for the length of a flow: the cluster that is already there, or a small one on this machine, ended afterwards.

- A flow inside a Ray job, or with RAY_ADDRESS set, joins that cluster and leaves it running.
- Otherwise a local one starts. It asks for a token, fresh and known to this process and its children alone, because
  anybody who can reach a cluster's ports can run code on it.
- What it started it ends; it never ends anything else. If this process is killed, the kernel ends the local cluster.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import ray

from actors.warden import CODE_ROOT

OBJECT_STORE_BYTES = 1 << 30


@dataclass(frozen=True)
class RayCluster:
    """The cluster a flow runs on. address: HOST:PORT of its head; started: whether we did, and so will end it."""

    address: str
    started: bool


@contextlib.contextmanager
def start_ray(
    *, num_cpus: int | None = None, address: str | None = None, object_store_bytes: int = OBJECT_STORE_BYTES
) -> Iterator[RayCluster]:
    """Joins or starts Ray; within the block `ray` is ready for use.

    num_cpus: CPUs of a local cluster, by name only: more than the machine has lets small gangs run on it. None: the
        machine's own.
    address: of a running cluster. None: RAY_ADDRESS, else a new local cluster.
    object_store_bytes: shared memory of a local cluster for the blocks of Ray Data.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized():
        yield RayCluster(ray.get_runtime_context().gcs_address, started=False)
        return
    if address:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    else:
        _start_local(num_cpus or os.cpu_count() or 1, object_store_bytes)
    try:
        yield RayCluster(ray.get_runtime_context().gcs_address, started=not address)
    finally:
        ray.shutdown()


def _start_local(num_cpus: int, object_store_bytes: int) -> None:
    # Ray turns token authentication on by itself for a new local cluster, and makes up a token in the home folder when
    # it is given none. RAY_AUTH_MODE is left to it: set after `import ray`, its own driver does not see it.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers import this code by name, from wherever the flow was started.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CODE_ROOT), before]))
    try:
        ray.init(
            address="local",  # never a cluster that happens to run on this machine
            num_cpus=num_cpus,
            object_store_memory=object_store_bytes,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
