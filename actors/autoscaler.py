"""The one file that asks Ray's autoscaler: whether it could ever add the machines that a request waits for.

The autoscaler (v2, which the cluster launcher and KubeRay run) reports to the cluster's head which gangs of its pending
ones no set of machines could hold that it may still add. Ray 2.60 shows that report in no public function.
"""

from __future__ import annotations

from collections.abc import Iterable

import ray
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue] - a compiled module
from ray.core.generated.autoscaler_pb2 import (
    GetClusterStatusReply,  # pyright: ignore[reportAttributeAccessIssue] - a generated module
)

_ASK_SECONDS = 5


def may_come(groups: Iterable[str]) -> bool | None:
    """Whether the autoscaler may still bring the machines of pending placement groups, by their ids in hex.

    False where it says that it never can, as things stand; None where no autoscaler reports.
    """
    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    reply = GetClusterStatusReply.FromString(client.get_cluster_status(timeout_s=_ASK_SECONDS))
    if not reply.autoscaling_state.autoscaler_state_version:
        return None
    never = {gang.details.partition(":")[0] for gang in reply.autoscaling_state.infeasible_gang_resource_requests}
    return never.isdisjoint(groups)
