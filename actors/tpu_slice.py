"""The one file that knows Ray's TPU slices (`ray.util.tpu`, alpha in Ray 2.60).

A slice is all hosts joined by one interconnect; part of a slice, or hosts of two, cannot run one trainer. Two steps
take one whole: worker 0 of some free slice of the right shape, by its head resource, then all hosts with that slice's
name. Only chips of a single host can be used in part (`part_of_a_host`): then no slice is asked for.

Ray's `slice_placement_group` takes the first step inside its constructor and blocks there until a slice is free, maybe
hours. Here the heads are an ordinary placement group instead, so that waiting can be interrupted; Ray is then told the
names of the slices, and does not block.
"""

from __future__ import annotations

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.tpu import (
    SlicePlacementGroup,
    get_chips_per_host,  # pyright: ignore[reportPrivateImportUsage] - what it counts a host of a slice to have
    get_tpu_coordinator_env_vars,
    get_tpu_worker_resources,
    infer_tpu_pod_type_from_topology,  # pyright: ignore[reportPrivateImportUsage] - as Ray itself names the heads
    slice_placement_group,
)

from actors.ranks import SLICE_NAME
from infra.errors import UserError
from infra.placement import Placement

_POD_TYPE = "ray.io/tpu-pod-type"
_ACCELERATOR = "ray.io/accelerator-type"


class SliceRequest:
    """A pending or granted request for the slices of a placement, as a `reservation.Request`.

    Raises UserError when the topology is unknown, or has another number of hosts than the placement says.
    """

    def __init__(self, placement: Placement, name: str) -> None:
        self._placement, self._name = placement, name
        self._topology, self._accelerator = placement.topology or "", placement.accelerator or ""
        self._check()
        self._slices: SlicePlacementGroup | None = None
        pod_type = infer_tpu_pod_type_from_topology(self._topology, self._accelerator)
        head = {f"TPU-{pod_type}-head": 1.0}
        self._heads = placement_group(
            [head] * placement.slices,
            strategy="STRICT_SPREAD",
            name=f"{name}-heads",
            # Worker 0 alone has the head resource. Its id is not asked for: a group of machines that an autoscaler
            # adds cannot promise it, as its labels are those of all its hosts.
            bundle_label_selector=[{_POD_TYPE: str(pod_type)}] * placement.slices,
        )

    def wait(self, seconds: int) -> PlacementGroup | None:
        if self._slices is None:
            if not self._heads.wait(seconds):
                return None
            self._slices = self._ask_for_workers()
        group = self._slices.slice_placement_group
        if group is None or not group.wait(seconds):
            return None
        remove_placement_group(self._heads)  # from here on the workers hold every chip of the slice
        return group

    def groups(self) -> list[str]:
        group = self._slices.slice_placement_group if self._slices is not None else None
        return [waited.id.hex() for waited in (self._heads, group) if waited is not None]

    def release(self) -> None:
        if self._slices is not None:
            self._slices.shutdown()
        remove_placement_group(self._heads)

    def _check(self) -> None:
        placement = self._placement
        try:
            hosts, _ = get_tpu_worker_resources(
                self._topology, self._accelerator, dict(placement.resources), num_slices=placement.slices
            )
        except ValueError as error:
            raise UserError(f"placement.topology={self._topology!r} of {self._accelerator!r}: {error}") from error
        if hosts != placement.hosts:
            raise UserError(
                f"placement.hosts={placement.hosts}: {placement.slices} slice(s) {self._topology!r} of "
                f"{self._accelerator!r} with {placement.resources['TPU']:g} TPU per host have {hosts} hosts"
            )

    def _ask_for_workers(self) -> SlicePlacementGroup:
        labels = {node["NodeID"]: node["Labels"] for node in ray.nodes()}
        heads = placement_group_table(self._heads)["bundles_to_node_id"]
        names = [labels[heads[index]].get(SLICE_NAME) for index in range(self._placement.slices)]
        per_slice = self._placement.hosts // self._placement.slices
        if per_slice > 1 and not all(names):
            raise UserError(f"the heads of TPU slices {self._topology!r} lack the node label {SLICE_NAME}: set it")
        selectors = [{SLICE_NAME: name} if name else {} for name in names for _ in range(per_slice)]
        return slice_placement_group(
            topology=self._topology,
            accelerator_version=self._accelerator,
            resources_per_bundle={key: float(size) for key, size in self._placement.resources.items()},
            num_slices=self._placement.slices,
            name=self._name,
            strategy="STRICT_SPREAD",
            bundle_label_selector=selectors,
        )


def part_of_a_host(placement: Placement) -> dict[str, str] | None:
    """The node labels to ask for when a placement wants fewer chips than a host has; None when it wants slices."""
    if placement.kind != "tpu" or placement.hosts > 1 or not placement.topology or not placement.accelerator:
        return None
    if placement.resources["TPU"] >= get_chips_per_host(placement.topology, placement.accelerator):
        return None
    return {_ACCELERATOR: f"TPU-{placement.accelerator.upper()}"}


def multislice_variables(address: str, slices: int, slice_id: int) -> dict[str, str]:
    """What tells a rank its place among several slices; nothing for one slice. address: the IP of rank 0."""
    return get_tpu_coordinator_env_vars(address, slices, slice_id) if slices > 1 else {}
