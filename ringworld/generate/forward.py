"""The model's layers over the cache, for one shard of the mesh: the layers are those of `ringworld.model.llama`.

A prompt's chunk is split over ring, ulysses and tensor as in training. A decoding step has one token a slot, which is
whole on every rank of those axes (`Whole`): only sums travel.

Weights lie otherwise than in training: split over tensor alone, in the precision of the products, one tree a layer. No
step then waits for weights, and no layer is copied out of a stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ringworld.generate.attend import attend_chunk, attend_tokens
from ringworld.generate.cache import Cache, LayerCache, Stripes, write_chunk, write_tokens
from ringworld.model.config import ModelConfig
from ringworld.model.layout import DIMENSION_AXES, Layout
from ringworld.model.llama import Layer, Params, bind_layer, embed, one_layer_dims, parameter_dims, rms_norm
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
    return {**found, "layers": (specs(one_layer_dims(config)),) * config.num_layers}


def prepare(config: ModelConfig, params: Params, mesh: Mesh, dtype: jnp.dtype) -> Params:
    """A checkpoint's float32 weights as generation has them. Matrices get `dtype`; norms stay float32."""

    def lay(params: Params) -> Params:
        def of(leaf: jax.Array) -> jax.Array:
            return leaf.astype(dtype) if leaf.ndim > 1 else leaf

        layers = tuple(jax.tree.map(lambda leaf, n=n: of(leaf[n]), params["layers"]) for n in range(config.num_layers))
        return {**jax.tree.map(of, {name: x for name, x in params.items() if name != "layers"}), "layers": layers}

    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), weight_specs(config))
    return jax.jit(lay, out_shardings=shardings)(params)


def embedded(config: ModelConfig, tokens: jax.Array, weights: Params, shard: Shard) -> jax.Array:
    """What goes into the first layer for tokens [batch, tokens] of text or vision: [batch, tokens, embed]."""
    x = embed(tokens, weights["embedding"], shard)
    if config.vision_vocabulary:
        x += embed(tokens - config.vocabulary, weights["vision"]["embedding"], shard)
    return x


class Place(NamedTuple):
    """Where a chunk goes and where its prompt ends, int32 []: the slot (-1: none, nothing is written), the position of
    the chunk's first token, a multiple of the sequence shards, and the tokens of the prompt."""

    slot: jax.Array
    start: jax.Array
    end: jax.Array


def chunk_hidden(
    config: ModelConfig,
    shard: Shard,
    stripes: Stripes,
    weights: Params,
    rope: Rope,
    cache: Cache,
    tokens: jax.Array,
    place: Place,
) -> tuple[Cache, jax.Array, jax.Array]:
    """A chunk of one prompt through all layers, its keys and values written to its slot.

    tokens int32 [1, t], this shard's.
    Returns the cache, hidden states after the last norm [1, t, embed], and that of the prompt's last token [1, embed],
    the same on every rank, which has a meaning where the prompt ends in this chunk.
    """
    chunk = _Chunk.of(shard, stripes, rope, tokens, place)
    x = embedded(config, tokens, weights, shard)
    cache, x = _through(chunk, config, weights["layers"], cache, x)
    x = rms_norm(x, weights["norm"], config.norm_epsilon)
    return cache, x, _last(chunk, x)[:, 0]


def chunk_last(
    config: ModelConfig,
    shard: Shard,
    whole: Whole,
    stripes: Stripes,
    weights: Params,
    rope: Rope,
    cache: Cache,
    tokens: jax.Array,
    place: Place,
) -> tuple[Cache, jax.Array]:
    """What `chunk_hidden` says of the cache and of the prompt's last token [1, embed], for less work.

    All tokens need the last layer's keys and values; its attention and what follows, only the one that is asked for.
    """
    chunk = _Chunk.of(shard, stripes, rope, tokens, place)
    *below, top = weights["layers"]
    x = embedded(config, tokens, weights, shard)
    written, x = _through(chunk, config, below, cache[:-1], x)
    layer = bind_layer(config, top)
    _, kv = _write(chunk, layer, cache[-1], x)
    x, position = _last(chunk, x), place.end[None] - 1
    q, _, _ = layer.attention.project(x, position[:, None], rope, whole, layer.attention.input_weights())
    mine = LayerCache(*(lax.dynamic_index_in_dim(part, jnp.maximum(place.slot, 0), keepdims=True) for part in kv))
    x = layer.finish(x, attend_tokens(q, mine, position, jnp.ones(1, bool), stripes), whole)
    return (*written, kv), rms_norm(x, weights["norm"], config.norm_epsilon)[:, 0]


class _Chunk(NamedTuple):
    """A chunk as this shard sees it. positions [1, t], of its own tokens."""

    shard: Shard
    stripes: Stripes
    rope: Rope
    place: Place
    positions: jax.Array

    @classmethod
    def of(cls, shard: Shard, stripes: Stripes, rope: Rope, tokens: jax.Array, place: Place) -> _Chunk:
        first = place.start // stripes.count
        if shard.tensor is not None:  # its ranks share the tokens of a sequence shard
            first += lax.axis_index(shard.tensor) * tokens.shape[1]
        return cls(shard, stripes, rope, place, stripes.positions(first, tokens.shape[1])[None])


def _through(
    chunk: _Chunk, config: ModelConfig, layers: Sequence[Params], cache: Cache, x: jax.Array
) -> tuple[Cache, jax.Array]:
    """A chunk [1, t, embed] through these layers, each with its cache."""
    written, place = [], chunk.place
    for of_layer, kv in zip(layers, cache, strict=True):
        layer = bind_layer(config, of_layer)
        q, kv = _write(chunk, layer, kv, x)
        slot, start = jnp.maximum(place.slot, 0), place.start // chunk.stripes.count
        found = attend_chunk(q, kv, slot, start, place.end, chunk.stripes, chunk.shard.backend)
        x = layer.finish(x, found, chunk.shard)
        written.append(kv)
    return tuple(written), x


def _write(chunk: _Chunk, layer: Layer, cache: LayerCache, x: jax.Array) -> tuple[jax.Array, LayerCache]:
    """A chunk's queries in a layer, and the layer's cache with its keys and values."""
    place, attention = chunk.place, layer.attention
    q, k, v = attention.project(x, chunk.positions, chunk.rope, chunk.shard, attention.input_weights())
    slot, start = jnp.maximum(place.slot, 0), place.start // chunk.stripes.count
    return q, write_chunk(cache, k, v, slot, start, place.slot >= 0)


def _last(chunk: _Chunk, x: jax.Array) -> jax.Array:
    """The row of x [1, t, embed] of the prompt's last token, [1, 1, embed] on every rank; zeros where none has it."""
    row = jnp.where(chunk.positions[..., None] == chunk.place.end - 1, x, 0).sum(1, keepdims=True)
    tensor = chunk.shard.tensor
    axes = (*chunk.stripes.axes, *((tensor,) if tensor else ()))
    return lax.psum(row, axes) if axes else row


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
    x = embedded(config, tokens[:, None], weights, shard)
    written = []
    for of_layer, kv in zip(weights["layers"], cache, strict=True):
        layer = bind_layer(config, of_layer)
        q, k, v = layer.attention.project(x, positions[:, None], rope, shard, layer.attention.input_weights())
        kv = write_tokens(kv, k, v, positions, active, stripes)
        x = layer.finish(x, attend_tokens(q, kv, positions, active, stripes), shard)
        written.append(kv)
    return tuple(written), rms_norm(x, weights["norm"], config.norm_epsilon)[:, 0]


def logits_of(hidden: jax.Array, weights: Params, shard: Shard) -> jax.Array:
    """float32 [rows, vocabulary], of text, of hidden states [rows, embed] that are the same on every rank of tensor."""
    if "head" in weights:
        part = jnp.dot(hidden, weights["head"].astype(hidden.dtype), preferred_element_type=jnp.float32)
    else:
        table = weights["embedding"].astype(hidden.dtype)
        part = lax.dot_general(hidden, table, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return _whole(part, shard)


def vision_logits_of(hidden: jax.Array, weights: Params, shard: Shard) -> jax.Array:
    """`logits_of`, of the vision vocabulary: float32 [rows, vision_vocabulary]."""
    head = weights["vision"]["head"].astype(hidden.dtype)
    return _whole(jnp.dot(hidden, head, preferred_element_type=jnp.float32), shard)


def _whole(part: jax.Array, shard: Shard) -> jax.Array:
    return part if shard.tensor is None else lax.all_gather(part, shard.tensor, axis=1, tiled=True)
