"""Which host becomes which rank, and what each rank is told of the others. Pure.

JAX on a TPU slice expects process ids in the order of the slice's own worker ids; elsewhere any order that stays the
same for the same machines will do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

WORKER_ID = "ray.io/tpu-worker-id"
SLICE_NAME = "ray.io/tpu-slice-name"


@dataclass(frozen=True)
class HostInfo:
    """What a host says of itself. address: an IP that the other hosts reach; pid: of its actor; labels: of its node."""

    address: str
    node_id: str
    pid: int
    labels: Mapping[str, str] = field(default_factory=dict)


def rank_order(hosts: Sequence[HostInfo]) -> list[int]:
    """Indices of `hosts` in the order of their ranks: by slice, then worker id; else by node, then index."""
    if all(host.labels.get(WORKER_ID, "").isdigit() for host in hosts):
        # As numbers: as texts, worker 10 would come before worker 2.
        return sorted(
            range(len(hosts)), key=lambda i: (hosts[i].labels.get(SLICE_NAME, ""), int(hosts[i].labels[WORKER_ID]), i)
        )
    return sorted(range(len(hosts)), key=lambda i: (hosts[i].node_id, i))


def coordination(rank: int, hosts: int, coordinator: str) -> list[str]:
    """The trainer's arguments for `jax.distributed`; none for a gang of one."""
    if hosts == 1:
        return []
    return ["--coordinator", coordinator, "--num-processes", str(hosts), "--process-id", str(rank)]
