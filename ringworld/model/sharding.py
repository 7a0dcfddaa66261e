"""How arrays lie on the mesh: one table from dimension names to mesh axes, for weights; two specs, for activations.

Every weight names its dimensions where it is defined (`llama.PARAMETER_DIMS`); this file is the only place that knows
mesh axes. A dimension whose size the axes do not divide is refused before anything is compiled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ringworld.attention import best_backend, ring_attention
from ringworld.errors import UserError
from ringworld.mesh import BATCH_AXES, SEQUENCE_AXES
from ringworld.model.config import ModelConfig
from ringworld.model.llama import Params, abstract_params, parameter_dims

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
HIDDEN = PartitionSpec(BATCH_AXES, SEQUENCE_AXES, None)  # activations [batch, tokens, embed] between blocks
WIDE = PartitionSpec(BATCH_AXES, SEQUENCE_AXES, "tensor")  # [batch, tokens, heads x head_dim or mlp] inside a block
HEADS = PartitionSpec(BATCH_AXES, SEQUENCE_AXES, "tensor", None)  # [batch, tokens, heads, head_dim]
ROWS = PartitionSpec(BATCH_AXES, SEQUENCE_AXES)  # [batch, tokens]


def spec_of(dims: tuple[str, ...]) -> PartitionSpec:
    """The partition of a weight with these dimension names."""
    return PartitionSpec(*(DIMENSION_AXES[dim] or None for dim in dims))


def param_shardings(config: ModelConfig, mesh: Mesh) -> Params:
    """NamedSharding of every weight of a model, by the table of dimension names."""
    return jax.tree.map(
        lambda dims: NamedSharding(mesh, spec_of(dims)), parameter_dims(config), is_leaf=lambda x: isinstance(x, tuple)
    )


def placed_params(config: ModelConfig, mesh: Mesh) -> Params:
    """Every weight as a float32 jax.ShapeDtypeStruct with its sharding: what a loader fills."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract_params(config),
        param_shardings(config, mesh),
    )


def check(config: ModelConfig, sizes: Mapping[str, int]) -> None:
    """Raise UserError, naming the size and what would work, where a mesh of these axis sizes cannot hold the model."""
    shards = math.prod(sizes[axis] for axis in DIMENSION_AXES["embed"])
    for name, size, parts, axis in (
        ("vocabulary", config.vocabulary, sizes["tensor"], "tensor"),
        ("num_heads", config.num_heads, sizes["tensor"], "tensor"),
        ("num_kv_heads", config.num_kv_heads, sizes["tensor"], "tensor"),
        ("mlp_dim", config.mlp_dim, sizes["tensor"], "tensor"),
        ("embed_dim", config.embed_dim, shards, "fsdp x ring x ulysses"),
    ):
        if size % parts:
            fits = [n for n in range(1, parts + 1) if size % n == 0]
            raise UserError(
                f"mesh {axis}={parts} does not divide model.{name}={size}; the nearest that does is {fits[-1]}"
            )
    if config.num_heads // sizes["tensor"] % sizes["ulysses"]:
        raise UserError(
            f"mesh ulysses={sizes['ulysses']} does not divide the {config.num_heads // sizes['tensor']} heads that "
            f"tensor={sizes['tensor']} leaves on a device; use ring for the rest of the sequence"
        )


class Layout:
    """The operations of a forward pass that know the mesh; what lies between them works on each slot by itself."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    def embed(self, table: jax.Array, tokens: jax.Array) -> jax.Array:
        """Rows of table [vocabulary, embed] for tokens [batch, tokens]: [batch, tokens, embed].

        By hand, because the compiler answers a lookup in a table sharded over both dimensions by replicating its
        result.
        """

        def local(table: jax.Array, tokens: jax.Array) -> jax.Array:
            row = tokens - jax.lax.axis_index("tensor") * table.shape[0]
            mine = (row >= 0) & (row < table.shape[0])
            found = table[jnp.clip(row, 0, table.shape[0] - 1)]
            return jax.lax.psum(jnp.where(mine[..., None], found, 0), "tensor")

        return self._sharded(local, (PartitionSpec("tensor", None), ROWS), HIDDEN)(table, tokens)

    def columns(self, x: jax.Array, weight: jax.Array) -> jax.Array:
        """x [batch, tokens, in] @ weight [in, out split over tensor] -> [batch, tokens, out split over tensor].

        The products run on the tokens of a shard as one axis: inside the compiler's own partitioning the two sharded
        axes could not be joined, and a CPU multiplies arrays of rank 3 at half the speed.
        """

        def local(x: jax.Array, weight: jax.Array) -> jax.Array:
            return (x.reshape(-1, x.shape[-1]) @ weight).reshape(*x.shape[:2], -1)

        return self._sharded(local, (HIDDEN, PartitionSpec(None, "tensor")), WIDE)(x, weight)

    def rows(self, x: jax.Array, weight: jax.Array) -> jax.Array:
        """x [batch, tokens, in] @ weight [in, out], `in` split over tensor in both -> [batch, tokens, out], summed."""

        def local(x: jax.Array, weight: jax.Array) -> jax.Array:
            return jax.lax.psum((x.reshape(-1, x.shape[-1]) @ weight).reshape(*x.shape[:2], -1), "tensor")

        return self._sharded(local, (WIDE, PartitionSpec("tensor", None)), HIDDEN)(x, weight)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, positions: jax.Array, segments: jax.Array) -> jax.Array:
        """Attention over the whole row: q [batch, tokens, heads, head_dim], k and v [.., kv_heads, ..] -> like q."""

        # An axis of size 1 is left out, so that a single shard compiles to no communication at all.
        ring, ulysses = (axis if self.mesh.shape[axis] > 1 else None for axis in ("ring", "ulysses"))
        backend = best_backend(self.mesh.devices.flat[0].platform)

        def local(q: Any, k: Any, v: Any, positions: Any, segments: Any) -> Any:
            return ring_attention(
                q,
                k,
                v,
                positions=positions,
                segments=segments,
                axis_name=ring,
                ulysses_axis=ulysses,
                backend=backend,
            )

        return self._sharded(local, (HEADS, HEADS, HEADS, ROWS, ROWS), HEADS)(q, k, v, positions, segments)

    def _sharded(self, local: Callable[..., jax.Array], in_specs: Any, out_specs: Any) -> Callable[..., jax.Array]:
        # check_vma=False: the ring's custom gradient moves device-varying values by hand.
        return jax.shard_map(local, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
