"""How arrays lie on the mesh: one table from dimension names to mesh axes, for weights; two specs, for activations.

Every weight names its dimensions where it is defined (`llama.PARAMETER_DIMS`); this file is the only place that knows
which mesh axes split them. A `Layout` runs a function on every shard with what that shard holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from ringworld.attention import best_backend
from ringworld.mesh import BATCH_AXES, SEQUENCE_AXES
from ringworld.model.memory import Memory
from ringworld.model.shard import Shard

# Weights (and with them gradients and optimizer state) are split over every axis that does not already split the
# layer's work: `embed` takes what fsdp, ring and ulysses have, so a longer ring also means less weight memory per
# device.
DIMENSION_AXES: Mapping[str, tuple[str, ...]] = {
    "layers": (),
    "vocabulary": ("tensor",),
    "embed": ("fsdp", "ring", "ulysses"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
}
TOKENS = PartitionSpec(BATCH_AXES, (*SEQUENCE_AXES, "tensor"))  # [batch, tokens] of a forward pass
HIDDEN = PartitionSpec(*TOKENS, None)  # [batch, tokens, embed]


def spec_of(dims: tuple[str, ...]) -> PartitionSpec:
    """The partition of a weight with these dimension names."""
    return PartitionSpec(*(DIMENSION_AXES[dim] or None for dim in dims))


def specs_of(dims: Any) -> Any:
    """spec_of every leaf of a tree of dimension names."""
    return jax.tree.map(spec_of, dims, is_leaf=lambda x: isinstance(x, tuple))


@dataclass(frozen=True)
class Layout:
    """A forward pass on a mesh: in which precision it multiplies, what of it is kept for the backward pass, and which
    backend attends ("auto": the best one for the mesh's platform)."""

    mesh: Mesh
    dtype: jnp.dtype
    memory: Memory = field(default_factory=Memory)
    attention: str = "auto"

    @property
    def shard(self) -> Shard:
        sizes = self.mesh.shape
        tensor, ring, ulysses = (axis if sizes[axis] > 1 else None for axis in ("tensor", "ring", "ulysses"))
        return Shard(
            tensor=tensor,
            ring=ring,
            ulysses=ulysses,
            weight_axes=tuple(axis for axis in DIMENSION_AXES["embed"] if sizes[axis] > 1),
            dtype=self.dtype,
            backend=best_backend(self.mesh.devices.flat[0].platform) if self.attention == "auto" else self.attention,
            chunk=self.memory.chunk,
            head_groups=self.memory.head_groups,
        )

    def per_shard(self, local: Callable[..., jax.Array], weights: Any, dims: Any, everywhere: Any, *arrays: jax.Array):
        """local(shard, weights, everywhere, *arrays) on every shard: [batch, tokens, embed] split as HIDDEN.

        weights, a tree of float32 arrays with the dimension names `dims`, arrive whole over `embed` and split over
        tensor; everywhere, a tree of small arrays, as it is; arrays [batch, tokens] or [batch, tokens, embed], as this
        shard's.
        """
        shard = self.shard

        def gathered(weights: Any, *rest: Any) -> jax.Array:
            whole = (
                jax.tree.map(shard.weight, weights, dims) if isinstance(dims, Mapping) else shard.weight(weights, dims)
            )
            return local(shard, whole, *rest)

        array_specs = (TOKENS if x.ndim == 2 else HIDDEN for x in arrays)
        # check_vma=False: the ring's custom gradient moves device-varying values by hand.
        return jax.shard_map(
            gathered,
            mesh=self.mesh,
            in_specs=(specs_of(dims), PartitionSpec(), *array_specs),
            out_specs=HIDDEN,
            check_vma=False,
        )(weights, everywhere, *arrays)
