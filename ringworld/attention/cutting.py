"""Queries and keys cut into the blocks that a backend walks, and put together again.

Legend: b batch, h heads, n groups of heads, t query tokens, s key tokens, d head_dim.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def group_rows(x_bhtd: jax.Array, groups: int, block: int) -> jax.Array:
    """[b, h, t, d] -> [b, n, query blocks, h / n * block, d]: the heads of a group are rows of one block."""
    b, h, t, d = x_bhtd.shape
    x = jnp.pad(x_bhtd, ((0, 0), (0, 0), (0, -t % block), (0, 0)))
    x = x.reshape(b, groups, h // groups, -1, block, d).swapaxes(2, 3)
    return x.reshape(b, groups, x.shape[2], -1, d)


def ungroup_rows(x: jax.Array, heads: int, tokens: int) -> jax.Array:
    """The inverse of group_rows: [b, h, t, d]."""
    b, n, count, rows, d = x.shape
    group = heads // n
    x = x.reshape(b, n, count, group, rows // group, d).swapaxes(2, 3)
    return x.reshape(b, heads, -1, d)[:, :, :tokens]


def cut_keys(x_bnsd: jax.Array, block: int) -> jax.Array:
    """[b, n, s, d] -> [b, n, key blocks, block, d]."""
    b, n, s, d = x_bnsd.shape
    return jnp.pad(x_bnsd, ((0, 0), (0, 0), (0, -s % block), (0, 0))).reshape(b, n, -1, block, d)


def join_keys(x: jax.Array, tokens: int) -> jax.Array:
    """The inverse of cut_keys: [b, n, s, d]."""
    b, n, _, _, d = x.shape
    return x.reshape(b, n, -1, d)[:, :, :tokens]
