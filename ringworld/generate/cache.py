"""The key-value cache: where the keys and values of a slot's tokens lie on the mesh.

- A slot holds one request at a time. Of each layer there is a pair of arrays [slots, kv_heads, length, head_dim]: slots
  split over data and fsdp, heads over tensor, length over ring and ulysses.
- The sequence is dealt out like cards: of `count` sequence shards, the one numbered p % count holds the token at
  position p, at index p // count. So any run of positions is shared evenly, and a shard knows the positions of what it
  holds without storing them (striped attention, arXiv:2311.09431).
- Nothing is cleared for the next request. A query sees positions up to its own; whatever lies behind them in the slot
  was left by an earlier request, or is the padding of a chunk, and is overwritten before anyone can see it. Not so
  numbers that are not finite: what no one sees has weight 0, and 0 x NaN is NaN. A slot that holds such is wiped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ringworld.mesh import BATCH_AXES, SEQUENCE_AXES
from ringworld.model.config import ModelConfig

SPEC = PartitionSpec(BATCH_AXES, "tensor", SEQUENCE_AXES, None)
# Tokens of a slot on a shard that are copied at a time.
_BLOCK = 512


class LayerCache(NamedTuple):
    """Keys (rotated) and values of one layer, [slots, kv_heads, length, head_dim]."""

    k: jax.Array
    v: jax.Array


Cache = tuple[LayerCache, ...]


@dataclass(frozen=True)
class Stripes:
    """The shards that a sequence is dealt to: their mesh axes, those longer than 1, and how many they are."""

    axes: tuple[str, ...]
    count: int

    def index(self) -> jax.Array | int:
        """This shard's number; inside `jax.shard_map`."""
        return lax.axis_index(self.axes) if self.axes else 0

    def positions(self, start: jax.Array | int, tokens: int) -> jax.Array:
        """The positions that this shard holds at indices start ... start + tokens - 1: int32 [tokens]."""
        return (start + jnp.arange(tokens, dtype=jnp.int32)) * self.count + self.index()


def stripes_of(mesh: Mesh) -> Stripes:
    axes = tuple(axis for axis in SEQUENCE_AXES if mesh.shape[axis] > 1)
    return Stripes(axes, math.prod(mesh.shape[axis] for axis in axes))


@dataclass(frozen=True)
class CacheShape:
    """The sizes of a whole cache; `length` is tokens a slot, a multiple of the sequence shards."""

    layers: int
    slots: int
    kv_heads: int
    length: int
    head_dim: int
    dtype: jnp.dtype

    @property
    def bytes(self) -> int:
        """Bytes of all shards together."""
        numbers = 2 * self.layers * self.slots * self.kv_heads * self.length * self.head_dim
        return numbers * self.dtype.itemsize


def cache_shape(config: ModelConfig, slots: int, length: int, dtype: jnp.dtype) -> CacheShape:
    return CacheShape(config.num_layers, slots, config.num_kv_heads, length, config.head_dim, dtype)


def make_cache(shape: CacheShape, mesh: Mesh) -> Cache:
    """An empty cache on the mesh."""
    whole = (shape.slots, shape.kv_heads, shape.length, shape.head_dim)

    def make() -> Cache:
        return tuple(
            LayerCache(jnp.zeros(whole, shape.dtype), jnp.zeros(whole, shape.dtype)) for _ in range(shape.layers)
        )

    return jax.jit(make, out_shardings=NamedSharding(mesh, SPEC))()


def write_chunk(
    cache: LayerCache, k: jax.Array, v: jax.Array, slot: jax.Array, start: jax.Array, active: jax.Array
) -> LayerCache:
    """The cache with k and v [1, tokens, kv_heads, head_dim] in a slot, from index start on. Not active: unchanged."""

    def write(whole: jax.Array, part: jax.Array) -> jax.Array:
        at = (slot, 0, start, 0)
        part = part.swapaxes(1, 2)
        kept = lax.dynamic_slice(whole, at, part.shape)
        return lax.dynamic_update_slice(whole, jnp.where(active, part, kept), at)

    return LayerCache(write(cache.k, k), write(cache.v, v))


def write_tokens(
    cache: LayerCache, k: jax.Array, v: jax.Array, positions: jax.Array, active: jax.Array, stripes: Stripes
) -> LayerCache:
    """The cache with one token of each active slot: k and v [slots, 1, kv_heads, head_dim], positions [slots]."""
    mine = active & (positions % stripes.count == stripes.index())
    # An index behind the end is dropped by the scatter.
    index = jnp.where(mine, positions // stripes.count, cache.k.shape[2])
    slots = jnp.arange(len(index))

    def write(whole: jax.Array, part: jax.Array) -> jax.Array:
        return whole.at[slots, :, index].set(part[:, 0], mode="drop", unique_indices=True)

    return LayerCache(write(cache.k, k), write(cache.v, v))


def copy_slot(cache: Cache, source: jax.Array, target: jax.Array, tokens: jax.Array) -> Cache:
    """The cache with the first `tokens` indices of slot `source` in slot `target` too, int32 []; all layers."""
    return _by_blocks(cache, source, target, tokens, lambda part: part)


def wipe_unless_finite(cache: Cache, slot: jax.Array, axes: tuple[str, ...]) -> tuple[Cache, jax.Array]:
    """The cache with zeros in a slot (int32 []; -1: none) that holds a number that is not finite; bool [], that it did
    not. axes: the mesh axes that share the slot."""
    active, slot = slot >= 0, jnp.maximum(slot, 0)
    finite = jnp.stack([jnp.isfinite(x[slot]).all() for x in jax.tree.leaves(cache)]).all() | ~active
    if axes:
        finite = lax.pmin(finite.astype(jnp.int32), axes) > 0
    return _by_blocks(cache, slot, slot, jnp.where(finite, 0, cache[0].k.shape[2]), jnp.zeros_like), finite


def _by_blocks(
    cache: Cache, source: jax.Array, target: jax.Array, tokens: jax.Array, made: Callable[[jax.Array], jax.Array]
) -> Cache:
    """The cache with what is made of a slot's first tokens in another one, in place: a block of them exists twice."""
    length = cache[0].k.shape[2]
    block = min(_BLOCK, length)

    def write(n: jax.Array, cache: Cache) -> Cache:
        # The last block of a length that `block` does not divide begins earlier.
        begin = jnp.minimum(n * block, length - block)

        def of(x: jax.Array) -> jax.Array:
            part = lax.dynamic_slice(x, (source, 0, begin, 0), (1, x.shape[1], block, x.shape[3]))
            return lax.dynamic_update_slice(x, made(part), (target, 0, begin, 0))

        return jax.tree.map(of, cache)

    return lax.fori_loop(0, -(-tokens // block), write, cache)
