"""The one file that knows Ray's TPU slices (`ray.util.tpu`, alpha in Ray 2.60).

A slice is all hosts joined by one interconnect; part of a slice, or hosts of two, cannot run one trainer. Ray reserves
it in two steps: worker 0 of some free slice of the right shape, by its head resource, then all hosts with that slice's
name. The first step blocks until a slice is there, so it runs in a thread of its own and a stop is still heard.
"""

from __future__ import annotations

import threading

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.tpu import (
    SlicePlacementGroup,
    get_tpu_coordinator_env_vars,
    get_tpu_worker_resources,
    slice_placement_group,
)

from infra.errors import UserError
from infra.placement import Placement

# How long the reservation of a head may outlive a release: the thread looks up this often.
_HEAD_SECONDS = 20.0


class SliceRequest:
    """A pending or granted request for the slices of a placement, with the interface of `reservation.GroupRequest`."""

    def __init__(self, placement: Placement, name: str) -> None:
        self._placement, self._name = placement, name
        self._topology, self._accelerator = placement.topology or "", placement.accelerator or ""
        self._lock = threading.Lock()
        self._released = False
        self._slice: SlicePlacementGroup | None = None
        self._error: Exception | None = None
        self._check()
        # Daemonic: an exit of the driver need not wait for it, since Ray frees what a driver held.
        threading.Thread(target=self._reserve, name=f"slice of {name}", daemon=True).start()

    def wait(self, seconds: int) -> PlacementGroup | None:
        """The placement group once all hosts of the slices are ours, in the order of the slices; None after `seconds`.

        Raises what Ray raised when it refused.
        """
        if self._error is not None:
            raise self._error
        if self._slice is None:
            threading.Event().wait(seconds)
            return None
        group = self._slice.slice_placement_group
        if group is None or not group.wait(seconds):
            return None
        self._slice.release_head_pgs()
        return group

    def release(self) -> None:
        with self._lock:
            self._released = True
            if self._slice is not None:
                self._slice.shutdown()

    def _check(self) -> None:
        placement = self._placement
        try:
            hosts, _ = get_tpu_worker_resources(
                self._topology, self._accelerator, dict(placement.resources), num_slices=placement.slices
            )
        except ValueError as error:
            raise UserError(
                f"placement.topology={self._topology!r}, accelerator={self._accelerator!r}: {error}"
            ) from error
        if hosts != placement.hosts:
            raise UserError(
                f"placement.hosts={placement.hosts}: {placement.slices} slice(s) {self._topology!r} of "
                f"{self._accelerator!r} with {placement.resources['TPU']:g} TPU per host have {hosts} hosts"
            )

    def _reserve(self) -> None:
        while not self._released:
            try:
                granted = slice_placement_group(
                    topology=self._topology, accelerator_version=self._accelerator,
                    resources_per_bundle=dict(self._placement.resources), num_slices=self._placement.slices,
                    name=self._name, strategy="STRICT_SPREAD", head_reservation_timeout_s=_HEAD_SECONDS,
                )  # fmt: skip
            except TimeoutError:
                continue
            except (ray.exceptions.RayError, RuntimeError, ValueError) as error:
                self._error = error
                return
            with self._lock:
                if self._released:
                    granted.shutdown()
                self._slice = granted
            return


def multislice_variables(address: str, slices: int, slice_id: int) -> dict[str, str]:
    """What tells a rank its place among several slices; nothing for one slice. address: the IP of rank 0."""
    return get_tpu_coordinator_env_vars(address, slices, slice_id) if slices > 1 else {}
