"""Heads-parallel attention around the ring: the two-dimensional attention of LongVILA (arXiv:2408.10188, section 3.3).

Inside a `ulysses` group an all-to-all trades tokens for heads (DeepSpeed Ulysses, arXiv:2309.14509): each rank then
holds all of the group's tokens for its share of the heads, and the ring goes on between groups. Four all-to-alls of a
shard replace as many ring hops as the group has ranks, so the group belongs on the fastest links.

Key heads fewer than ranks are replicated, just as often as they must be. Because the mask travels with the tokens,
the order in which the group's tokens come together does not matter.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from ringworld.attention.mask import Tokens


def dealt_key_heads(heads: int, kv_heads: int, axis: str) -> int:
    """The least number of key heads, copies included, that both groups of query heads and ranks divide evenly.

    Raises ValueError when the query heads cannot be dealt to the ranks of the axis.
    """
    size = lax.axis_size(axis)
    dealt = math.lcm(kv_heads, size)
    if heads % dealt:
        raise ValueError(
            f"q has {heads} heads; with {kv_heads} key heads over {axis}={size} they must be a multiple of {dealt}"
        )
    return dealt


def tokens_to_heads(x: jax.Array, axis: str) -> jax.Array:
    """[batch, tokens, heads, head_dim] -> all of the group's tokens, for this rank's share of the heads."""
    return lax.all_to_all(x, axis, split_axis=2, concat_axis=1, tiled=True)


def heads_to_tokens(x: jax.Array, axis: str) -> jax.Array:
    """The inverse of tokens_to_heads."""
    return lax.all_to_all(x, axis, split_axis=1, concat_axis=2, tiled=True)


def replicate_heads(x: jax.Array, heads: int) -> jax.Array:
    """Copies each head next to itself until there are so many."""
    return jnp.repeat(x, heads // x.shape[2], axis=2)


def gather(tokens: Tokens, axis: str) -> Tokens:
    """The whole group's positions and segments: two integers a token, where keys are hundreds of numbers."""
    return Tokens(*(lax.all_gather(x, axis, axis=1, tiled=True) for x in tokens))
