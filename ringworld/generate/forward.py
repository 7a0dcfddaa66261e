"""The model's layers over the cache, for one shard of the mesh: the layers are those of `ringworld.model.llama`.

A prompt's chunk is split over ring, ulysses and tensor as in training. A decoding step has one token a slot, which is
whole on every rank of those axes (`Whole`): only sums travel.

Weights lie otherwise than in training: split over tensor alone, in the precision of the products, one tree a layer. No
step then waits for weights, and no layer is copied out of a stack.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ringworld.generate.attend import attend_chunk, attend_tokens
from ringworld.generate.cache import Cache, Stripes, write_chunk, write_tokens
from ringworld.model.config import ModelConfig
from ringworld.model.layout import DIMENSION_AXES, Layout
from ringworld.model.llama import ONE_LAYER_DIMS, Params, bind_layer, embed, parameter_dims, rms_norm
from ringworld.model.rope import Rope
from ringworld.model.shard import Shard


class Whole(Shard):
    """A shard on which tokens are whole: ranks of tensor share columns and heads, never tokens."""

    def gather(self, x: jax.Array) -> jax.Array:
        return x

    def scatter(self, partial: jax.Array) -> jax.Array:
        return partial if self.tensor is None else lax.psum(partial, self.tensor)


def shards(mesh: Mesh, dtype: jnp.dtype) -> tuple[Shard, Whole]:
    """The views of a mesh's shard in which a chunk and a decoding step compute."""
    of = Layout(mesh, dtype).shard
    fields = {"tensor": of.tensor, "ring": of.ring, "ulysses": of.ulysses, "dtype": dtype, "backend": of.backend}
    return Shard(weight_axes=(), **fields), Whole(weight_axes=(), **fields)


def weight_specs(config: ModelConfig) -> Params:
    """How the weights lie: a PartitionSpec for each of `prepare`'s."""

    def spec(dims: tuple[str, ...]) -> PartitionSpec:
        return PartitionSpec(*("tensor" if "tensor" in DIMENSION_AXES[dim] else None for dim in dims))

    def specs(dims: Any) -> Any:
        return jax.tree.map(spec, dims, is_leaf=lambda x: isinstance(x, tuple))

    found = {name: specs(dims) for name, dims in parameter_dims(config).items() if name != "layers"}
    return {**found, "layers": (specs(ONE_LAYER_DIMS),) * config.num_layers}


def prepare(config: ModelConfig, params: Params, mesh: Mesh, dtype: jnp.dtype) -> Params:
    """A checkpoint's float32 weights as generation has them. Matrices get `dtype`; norms stay float32."""

    def lay(params: Params) -> Params:
        def of(leaf: jax.Array) -> jax.Array:
            return leaf.astype(dtype) if leaf.ndim > 1 else leaf

        layers = tuple(jax.tree.map(lambda leaf, n=n: of(leaf[n]), params["layers"]) for n in range(config.num_layers))
        return {**{name: of(leaf) for name, leaf in params.items() if name != "layers"}, "layers": layers}

    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), weight_specs(config))
    return jax.jit(lay, out_shardings=shardings)(params)


def chunk_hidden(
    config: ModelConfig,
    shard: Shard,
    stripes: Stripes,
    weights: Params,
    rope: Rope,
    cache: Cache,
    tokens: jax.Array,
    slot: jax.Array,
    start: jax.Array,
    end: jax.Array,
) -> tuple[Cache, jax.Array, jax.Array]:
    """A chunk of one prompt through all layers, its keys and values written to its slot.

    tokens int32 [1, t], this shard's; slot, start, end int32 [1]: the slot (-1: none, nothing is written), the
    chunk's first position, a multiple of the sequence shards, and the tokens of the prompt.
    Returns the cache, hidden states after the last norm [1, t, embed], and their positions [1, t].
    """
    slot, start, end = slot[0], start[0] // stripes.count, end[0]
    active, slot = slot >= 0, jnp.maximum(slot, 0)
    first = start if shard.tensor is None else start + lax.axis_index(shard.tensor) * tokens.shape[1]
    positions = stripes.positions(first, tokens.shape[1])[None]
    x = embed(tokens, weights["embedding"], shard)
    written = []
    for of_layer, kv in zip(weights["layers"], cache, strict=True):
        layer = bind_layer(config, of_layer)
        q, k, v = layer.attention.project(x, positions, rope, shard, layer.attention.input_weights())
        kv = write_chunk(kv, k, v, slot, start, active)
        x = layer.finish(x, attend_chunk(q, kv, slot, start, end, stripes, shard.backend), shard)
        written.append(kv)
    return tuple(written), rms_norm(x, weights["norm"], config.norm_epsilon), positions


def token_hidden(
    config: ModelConfig,
    shard: Whole,
    stripes: Stripes,
    weights: Params,
    rope: Rope,
    cache: Cache,
    tokens: jax.Array,
    positions: jax.Array,
    active: jax.Array,
) -> tuple[Cache, jax.Array]:
    """One token of every slot through all layers: tokens, positions int32 [b], active bool [b].

    Returns the cache and hidden states after the last norm [b, embed]; those of slots that are not active mean nothing.
    """
    x = embed(tokens[:, None], weights["embedding"], shard)
    written = []
    for of_layer, kv in zip(weights["layers"], cache, strict=True):
        layer = bind_layer(config, of_layer)
        q, k, v = layer.attention.project(x, positions[:, None], rope, shard, layer.attention.input_weights())
        kv = write_tokens(kv, k, v, positions, active, stripes)
        x = layer.finish(x, attend_tokens(q, kv, positions, active, stripes), shard)
        written.append(kv)
    return tuple(written), rms_norm(x, weights["norm"], config.norm_epsilon)[:, 0]


def logits_of(hidden: jax.Array, weights: Params, shard: Shard) -> jax.Array:
    """float32 [rows, vocabulary] of hidden states [rows, embed] that are the same on every rank of tensor."""
    if "head" in weights:
        part = jnp.dot(hidden, weights["head"].astype(hidden.dtype), preferred_element_type=jnp.float32)
    else:
        table = weights["embedding"].astype(hidden.dtype)
        part = lax.dot_general(hidden, table, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return part if shard.tensor is None else lax.all_gather(part, shard.tensor, axis=1, tiled=True)
