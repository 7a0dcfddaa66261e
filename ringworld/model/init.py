"""Fresh weights: as GPT-2 has them, or such that attention has the shape of one that copies.

What trained attention looks like can be written down at the start (Trockman and Kolter 2023, Mimetic Initialization of
Self-Attention Layers, arXiv 2305.09828). A small model that is trained from nothing, on little, then learns to copy,
and so to retrieve, in fewer steps (`benchmarks/learn_to_copy.py` counts them):

- values and outputs: output = transposed value, its columns orthonormal, so that a head hands on what it attends to;
- queries and keys, above the first layer: the same matrix, so that a token attends to its like;
- biases of queries and keys in the first layer, where the model has them: half of the heads attend to what stands
  1, 2, ... tokens before, whatever it is. With them an induction head (Olsson et al. 2022, arXiv 2209.11895) has both
  of its halves.

All else is normal with deviation 1 / sqrt(embed), not 0.02, which suits thousands of dimensions. Heads of their own
keep 0.02, so that a vocabulary that is new begins with even odds.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ringworld.model.config import ModelConfig
from ringworld.model.llama import DEVIATION, Llama, Params
from ringworld.model.rope import make_rope

LIKENESS = 0.7  # of the matrix that queries and keys share; what copied soonest of 0.5, 0.7, 1 and 2
MARGIN = 4.0  # nats by which a head prefers the place that it looks back to over the two beside it
_ROUNDS = 60  # a singular value grows by half in each; the least of n x n is about 1 / 2n at first
_TURNING = 1 / 32  # radians a token: pairs that turn less cannot tell a place from the next


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters, as `config.init` says.

    normal: deviation 0.02, output projections divided by sqrt(2 layers) as GPT-2 does. mimetic: see above.
    """
    params = nnx.to_pure_dict(nnx.split(Llama(config, nnx.Rngs(key)))[1])
    return _mimetic(config, params, key) if config.init == "mimetic" else params


def _mimetic(config: ModelConfig, params: Params, key: jax.Array) -> Params:
    scale = config.embed_dim**-0.5 / DEVIATION
    params = jax.tree_util.tree_map_with_path(lambda path, leaf: _scaled(path, leaf, scale), params)
    attention = dict(params["layers"]["attention"])
    group = config.num_heads // config.num_kv_heads
    values, likeness = (_orthonormal(config, jax.random.fold_in(key, number)) for number in range(2))
    attention["value"] = values
    attention["output"] = jnp.repeat(values, group, axis=2).transpose(0, 2, 3, 1) / group
    above = jnp.arange(config.num_layers)[:, None, None, None] > 0
    attention["key"] = jnp.where(above, LIKENESS * likeness, attention["key"])
    attention["query"] = jnp.where(above, LIKENESS * jnp.repeat(likeness, group, axis=2), attention["query"])
    if config.qkv_biases:
        queries, keys = look_back(config)
        attention["query_bias"] = attention["query_bias"].at[0].set(queries)
        attention["key_bias"] = attention["key_bias"].at[0].set(keys)
    return {**params, "layers": {**params["layers"], "attention": attention}}


def _orthonormal(config: ModelConfig, key: jax.Array) -> jax.Array:
    """[layers, embed, kv_heads, head_dim], of each layer orthonormal over all heads together: their columns, or their
    rows where there are fewer.

    By X <- 1.5 X - 0.5 X X^T X (Bjorck and Bowie 1971), which brings all singular values in 0..sqrt(3) to 1. Products
    alone: XLA's QR on processors blocks the threads that it waits for, and with two of them two at a time never end.
    """
    embed, columns = config.embed_dim, config.num_kv_heads * config.head_dim
    drawn = jax.random.normal(key, (config.num_layers, max(embed, columns), min(embed, columns)))

    def nearer(_: int, x: jax.Array) -> jax.Array:
        gram = jnp.einsum("lij,lik->ljk", x, x, precision="highest")
        return 1.5 * x - 0.5 * jnp.einsum("lij,ljk->lik", x, gram, precision="highest")

    made = jax.lax.fori_loop(0, _ROUNDS, nearer, drawn / (embed**0.5 + columns**0.5))
    made = made if embed >= columns else made.swapaxes(1, 2)
    return made.reshape(config.num_layers, embed, config.num_kv_heads, config.head_dim)


def look_back(config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """Biases of queries [heads, head_dim] and keys [kv_heads, head_dim] of one layer, float32.

    Head h of the first half (of the query heads that share a key head, all or none) attends to the token h + 1 before.
    A pair of frequency f, turned as RoPE does, gives a bias a at the query turned back by f times the distance and a at
    the key a score of a^2 cos(f (distance - (h + 1))) / sqrt(head_dim); a is such that the next best place has MARGIN
    less.
    """
    frequencies = make_rope(config.rope, config.head_dim).frequencies
    turning = frequencies > _TURNING
    size = jnp.sqrt(MARGIN * math.sqrt(config.head_dim) / jnp.sum(1 - jnp.cos(frequencies), where=turning))
    size = jnp.where(turning, size, 0)
    group = config.num_heads // config.num_kv_heads
    backwards = max(1, config.num_kv_heads // 2)
    key = jnp.concatenate([size, jnp.zeros_like(size)])
    keys = jnp.zeros((config.num_kv_heads, config.head_dim)).at[:backwards].set(key)
    angles = frequencies * jnp.arange(1, backwards * group + 1)[:, None]
    query = jnp.concatenate([size * jnp.cos(angles), -size * jnp.sin(angles)], axis=-1)
    queries = jnp.zeros((config.num_heads, config.head_dim)).at[: len(query)].set(query)
    return queries, keys


def _scaled(path: tuple[Any, ...], leaf: jax.Array, scale: float) -> jax.Array:
    return leaf if path[-1].key.endswith(("norm", "bias", "head")) else leaf * scale
