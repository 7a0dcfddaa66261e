"""Attention to the cache: queries travel, keys stay.

Each sequence shard attends with the queries of all to the keys that it holds, and the partial results, each with its
log-sum-exp, merge exactly. A chunk of a prompt is much shorter than the prompt, so its queries are fewer bytes than the
keys that a ring would pass around (arXiv:2411.01783 compares the two), and no shard ever sees another's keys. A chunk's
own keys are in the cache before its queries look, so causality by position is the whole mask.

Dimension letters: b slots, t tokens of a chunk, h heads, n kv_heads, g heads a key head, s keys, d head_dim.
"""

from __future__ import annotations

from importlib import import_module
from typing import cast

import jax
import jax.numpy as jnp
from jax import lax

from ringworld.attention.backend import NOTHING, BlockBackend, Scoring
from ringworld.attention.mask import Tokens
from ringworld.generate.cache import LayerCache, Stripes

# Keys of a slot that one step of a decoding loop looks at: on an accelerator, and on a CPU.
_STEP = (1024, 128)
# What has come of some keys: weighted sum of values [b, n, g, d], highest score and sum of weights, each [b, n, g].
Partial = tuple[jax.Array, jax.Array, jax.Array]


def attend_chunk(
    q: jax.Array, cache: LayerCache, slot: jax.Array, start: jax.Array, end: jax.Array, stripes: Stripes, backend: str
) -> jax.Array:
    """What a chunk's heads find in their slot, like q [1, t, h, d]: this shard's tokens of the chunk.

    start: the index on each shard of the chunk's first token. end: tokens of the prompt; what lies behind is padding
    and finds nothing of use.
    """
    tokens = q.shape[1]
    if stripes.axes:
        q = lax.all_gather(q, stripes.axes, axis=1, tiled=True)
    shard, index = jnp.divmod(jnp.arange(stripes.count * tokens, dtype=jnp.int32), tokens)
    positions = ((start + index) * stripes.count + shard)[None]
    query = Tokens(positions, (positions < end).astype(jnp.int32))
    k, v = (lax.dynamic_index_in_dim(x, slot, keepdims=True) for x in cache)
    held = stripes.positions(0, k.shape[2])[None]
    key = Tokens(held, jnp.ones_like(held))
    chosen = cast(BlockBackend, import_module(f"ringworld.attention.{backend}"))
    blocks = chosen.default_blocks(
        queries=q.shape[1],
        keys=k.shape[2],
        heads=q.shape[2],
        kv_heads=k.shape[1],
        head_dim=q.shape[3],
        itemsize=q.dtype.itemsize,
    )
    out, lse = chosen.forward(
        q.swapaxes(1, 2), k, v, query, key, scoring=Scoring(q.shape[3] ** -0.5), blocks=blocks
    )  # [1, h, t, d], [1, h, t]
    if stripes.axes:
        weight = jnp.exp(lse - lax.pmax(lse, stripes.axes))[..., None]
        both = jnp.concatenate([out * weight, weight], axis=-1)
        both = lax.psum_scatter(both, stripes.axes, scatter_dimension=2, tiled=True)
        out = both[..., :-1] / both[..., -1:]
    return out.swapaxes(1, 2).astype(q.dtype)


def attend_tokens(
    q: jax.Array, cache: LayerCache, positions: jax.Array, active: jax.Array, stripes: Stripes
) -> jax.Array:
    """What the heads of one token a slot find, like q [b, 1, h, d]; q is the same on every sequence shard.

    Blocks are visited up to the last one that any active slot has filled, so a step costs what the longest slot needs.
    Where that is most of the length, all keys are visited at once, where they lie: a block is copied before a product.
    """
    b, _, h, d = q.shape
    n, length = cache.k.shape[1:3]
    grouped = (q.astype(jnp.float32) * d**-0.5).astype(q.dtype).reshape(b, n, h // n, d)
    longest = jnp.where(active, positions, 0).max() // stripes.count
    block = min(_STEP[jax.default_backend() == "cpu"], length)

    def visit(state: Partial, k: jax.Array, v: jax.Array, begin: jax.Array | int, new: jax.Array | int) -> Partial:
        """Attention so far, and to these keys from index `begin` on, of which those before `new` were visited."""
        acc, top, total = state
        index = begin + jnp.arange(k.shape[2], dtype=jnp.int32)
        scores = jnp.einsum("bngd,bnsd->bngs", grouped, k, preferred_element_type=jnp.float32)
        seen = (index >= new) & (stripes.positions(begin, k.shape[2]) <= positions[:, None])
        seen = seen[:, None, None]
        new_top = jnp.maximum(top, jnp.where(seen, scores, NOTHING).max(-1))
        p = jnp.where(seen, jnp.exp(scores - new_top[..., None]), 0)
        shrink = jnp.exp(top - new_top)
        found = jnp.einsum("bngs,bnsd->bngd", p.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return acc * shrink[..., None] + found, new_top, total * shrink + p.sum(-1)

    def step(j: jax.Array, state: Partial) -> Partial:
        # The last block of a length that `block` does not divide begins earlier.
        begin = jnp.minimum(j * block, length - block)
        k, v = (lax.dynamic_slice_in_dim(x, begin, block, axis=2) for x in cache)
        return visit(state, k, v, begin, j * block)

    empty = jnp.full((b, n, h // n), NOTHING, jnp.float32)
    start = (jnp.zeros((b, n, h // n, d), jnp.float32), empty, jnp.zeros_like(empty))
    acc, top, total = lax.cond(
        2 * longest >= length,
        lambda: visit(start, cache.k, cache.v, 0, 0),
        lambda: lax.fori_loop(0, longest // block + 1, step, start),
    )
    if stripes.axes:
        weight = jnp.exp(top - lax.pmax(top, stripes.axes))
        both = lax.psum(jnp.concatenate([acc * weight[..., None], (total * weight)[..., None]], axis=-1), stripes.axes)
        acc, total = both[..., :-1], both[..., -1]
    return (acc / jnp.maximum(total, 1e-30)[..., None]).reshape(b, 1, h, d).astype(q.dtype)
