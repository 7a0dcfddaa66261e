"""Heads-parallel attention around the ring: the two-dimensional attention of LongVILA (arXiv:2408.10188, section 3.3).

Inside a `ulysses` group an all-to-all trades tokens for heads (DeepSpeed Ulysses, arXiv:2309.14509): each rank then
holds all of the group's tokens for its share of the heads, and the ring goes on between groups. Four all-to-alls of a
shard replace as many ring hops as the group has ranks, so the group belongs on the fastest links.

Key heads fewer than ranks are replicated, just as often as they must be. Because the mask travels with the tokens,
the order in which the group's tokens come together does not matter.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ringworld.attention.api import check_arrays, check_axis, ring_attention


def ulysses_ring_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    positions: jax.Array,
    segments: jax.Array,
    ulysses_axis: str | None,
    axis_name: str | None,
    **options: Any,
) -> jax.Array:
    """`ring_attention` of a sequence sharded over two mesh axes: `axis_name` (ring), `ulysses_axis` (heads-parallel).

    Shapes, dtypes, the mask, the result and the options are those of ring_attention; ulysses_axis=None or an axis of
    size 1 is ring_attention itself. Blocks are those of the gathered shard, tokens * ulysses size.

    Raises:
        ValueError: as ring_attention, and when the heads of q cannot be dealt to the ranks of ulysses_axis.
    """
    check_arrays(q, k, v)
    check_axis("ulysses_axis", ulysses_axis)
    size = 1 if ulysses_axis is None else lax.axis_size(ulysses_axis)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, positions: jax.Array, segments: jax.Array) -> jax.Array:
        return ring_attention(q, k, v, positions=positions, segments=segments, axis_name=axis_name, **options)

    if ulysses_axis is None or size == 1:
        return attend(q, k, v, positions, segments)

    heads, kv_heads = q.shape[2], k.shape[2]
    # The least number of key heads that both groups of query heads and ranks divide evenly.
    dealt = math.lcm(kv_heads, size)
    if heads % dealt:
        raise ValueError(
            f"q has {heads} heads; with {kv_heads} key heads over {ulysses_axis}={size} "
            f"they must be a multiple of {dealt}"
        )

    def to_heads(x: jax.Array) -> jax.Array:
        return lax.all_to_all(x, ulysses_axis, split_axis=2, concat_axis=1, tiled=True)

    def gather(x: jax.Array) -> jax.Array:
        return lax.all_gather(x, ulysses_axis, axis=1, tiled=True)

    k, v = (jnp.repeat(x, dealt // kv_heads, axis=2) for x in (k, v))
    out = attend(to_heads(q), to_heads(k), to_heads(v), gather(positions), gather(segments))
    return lax.all_to_all(out, ulysses_axis, split_axis=1, concat_axis=2, tiled=True)
