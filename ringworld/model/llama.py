"""Llama in Flax NNX: RMSNorm, SwiGLU, rotary grouped-query attention, scanned layers.

A module holds float32 master weights; a forward pass computes in `dtype` (float32 or bfloat16) and keeps norms and
rotary angles in float32. The modules of a layer are written for one shard of the mesh: they see this shard's tokens,
its heads and its columns, and ask the others through `Shard`. Parameters leave this file as a plain nested dict
(`bind`), which is what checkpoints, the optimizer and the sharding table see; `PARAMETER_DIMS` names the dimensions of
each.

Dimension letters: b batch, t tokens, d embed, h heads (query or key-value), k head_dim, f mlp, v vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ringworld.model.config import ModelConfig
from ringworld.model.layout import Layout
from ringworld.model.memory import scan_layers
from ringworld.model.rope import Rope, rotate
from ringworld.model.shard import Shard

Params = dict[str, Any]

DEVIATION = 0.02  # of fresh weights; see `ringworld.model.init`

LAYER_DIMS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "attention": {
        "norm": ("layers", "embed"),
        "query": ("layers", "embed", "heads", "head_dim"),
        "key": ("layers", "embed", "kv_heads", "head_dim"),
        "value": ("layers", "embed", "kv_heads", "head_dim"),
        "query_bias": ("layers", "heads", "head_dim"),
        "key_bias": ("layers", "kv_heads", "head_dim"),
        "value_bias": ("layers", "kv_heads", "head_dim"),
        "query_norm": ("layers", "head_dim"),
        "key_norm": ("layers", "head_dim"),
        "output": ("layers", "heads", "head_dim", "embed"),
    },
    "mlp": {
        "norm": ("layers", "embed"),
        "gate": ("layers", "embed", "mlp"),
        "up": ("layers", "embed", "mlp"),
        "down": ("layers", "mlp", "embed"),
    },
}
PARAMETER_DIMS: Mapping[str, Any] = {
    "embedding": ("vocabulary", "embed"),
    "layers": LAYER_DIMS,
    "norm": ("embed",),
    "head": ("embed", "vocabulary"),
    "vision": {"embedding": ("vocabulary", "embed"), "head": ("embed", "vocabulary")},
}


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """x / rms(x) * scale over the last axis, in float32, returned in x's dtype (Zhang and Sennrich 2019)."""
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + epsilon)
    return (x32 * inverse * scale).astype(x.dtype)


def product(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x [batch, tokens, in] @ weight [in, out], in x's dtype. Tokens as one axis: a CPU multiplies arrays of rank 3 at
    half the speed."""
    return (x.reshape(-1, x.shape[-1]) @ weight.astype(x.dtype)).reshape(*x.shape[:2], -1)


def embed(tokens: jax.Array, table: jax.Array, shard: Shard) -> jax.Array:
    """Rows of this shard's part of the table [vocabulary, embed] for tokens [batch, tokens]: [batch, tokens, embed].

    Zero for a token outside of the whole table, so that several vocabularies add up.
    By hand, because the compiler answers a lookup in a table sharded over both dimensions by replicating its result.
    """

    def look(tokens: jax.Array) -> jax.Array:
        tokens = shard.gather(tokens)
        row = tokens if shard.tensor is None else tokens - jax.lax.axis_index(shard.tensor) * table.shape[0]
        mine = (row >= 0) & (row < table.shape[0])
        found = table[jnp.clip(row, 0, table.shape[0] - 1)].astype(shard.dtype)
        return shard.scatter(jnp.where(mine[..., None], found, 0))

    return shard.by_chunks(look, tokens)


@jax.custom_vjp
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up, elementwise. Its gradient keeps the two inputs alone, where autodiff would keep five arrays."""
    return jax.nn.silu(gate) * up


def _swiglu_backward(inputs: tuple[jax.Array, jax.Array], d_out: jax.Array) -> tuple[jax.Array, jax.Array]:
    gate, up = inputs
    sigmoid = jax.nn.sigmoid(gate)
    return d_out * up * sigmoid * (1 + gate * (1 - sigmoid)), d_out * gate * sigmoid


swiglu.defvjp(lambda gate, up: (swiglu(gate, up), (gate, up)), _swiglu_backward)


class Attention(nnx.Module):
    """Pre-norm attention: what its heads find, and that merged into the residual stream."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        d, k = config.embed_dim, config.head_dim
        self.epsilon = config.norm_epsilon
        self.norm = nnx.Param(jnp.ones(d))
        self.query = nnx.Param(_normal(rngs, (d, config.num_heads, k)))
        self.key = nnx.Param(_normal(rngs, (d, config.num_kv_heads, k)))
        self.value = nnx.Param(_normal(rngs, (d, config.num_kv_heads, k)))
        self.output = nnx.Param(_normal(rngs, (config.num_heads, k, d), depth=config.num_layers))
        self.biased, self.normed = config.qkv_biases, config.head_norms
        if self.biased:
            self.query_bias = nnx.Param(jnp.zeros((config.num_heads, k)))
            self.key_bias = nnx.Param(jnp.zeros((config.num_kv_heads, k)))
            self.value_bias = nnx.Param(jnp.zeros((config.num_kv_heads, k)))
        if self.normed:
            self.query_norm, self.key_norm = nnx.Param(jnp.ones(k)), nnx.Param(jnp.ones(k))

    def project(
        self,
        x: jax.Array,
        positions: jax.Array,
        rope: Rope,
        shard: Shard,
        weights: tuple[jax.Array, ...],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Rotated queries and keys, and values, of these `input_weights`, each [batch, gathered tokens, heads,
        head_dim]."""
        h = shard.gather(rms_norm(x, self.norm[...], self.epsilon))
        positions = shard.gather(positions)
        q, k, v = (
            product(h, weight.reshape(x.shape[-1], -1)).reshape(*h.shape[:2], *weight.shape[1:])
            for weight in weights[:3]
        )
        if self.biased:
            q, k, v = (found + bias.astype(found.dtype) for found, bias in zip((q, k, v), weights[3:], strict=True))
        if self.normed:
            q = rms_norm(q, self.query_norm[...], self.epsilon)
            k = rms_norm(k, self.key_norm[...], self.epsilon)
        return rotate(q, positions, rope), rotate(k, positions, rope), v

    def input_weights(self) -> tuple[jax.Array, ...]:
        """The projections of queries, keys and values, and where the model has them their biases."""
        projections = self.query[...], self.key[...], self.value[...]
        if not self.biased:
            return projections
        return *projections, self.query_bias[...], self.key_bias[...], self.value_bias[...]

    def find(
        self,
        x: jax.Array,
        positions: jax.Array,
        segments: jax.Array,
        rope: Rope,
        shard: Shard,
        weights: tuple[jax.Array, ...],
    ) -> jax.Array:
        """What the heads of these `input_weights` find, [batch, gathered tokens, heads, head_dim]."""

        def project(x: jax.Array, positions: jax.Array, segments: jax.Array) -> Any:
            projected = self.project(x, positions, rope, shard, weights)
            return *projected, shard.gather(positions), shard.gather(segments)

        return shard.attend(*shard.by_chunks(project, x, positions, segments))

    def __call__(self, x: jax.Array, positions: jax.Array, segments: jax.Array, rope: Rope, shard: Shard) -> jax.Array:
        """x and what attention adds to it, [batch, tokens, embed], a group of heads at a time."""

        def of_group(output: jax.Array, *inputs: jax.Array) -> jax.Array:
            found = self.find(x, positions, segments, rope, shard, inputs)
            return shard.by_chunks(lambda found: merge(found, output, shard), found)

        weights = self.output[...], *self.input_weights()
        return shard.by_head_groups(of_group, x, weights, head_axes=(0, 1, 1, 1, 0, 0, 0)[: len(weights)])


def merge(found: jax.Array, output: jax.Array, shard: Shard) -> jax.Array:
    """What heads [batch, gathered tokens, heads, head_dim] add to the residual stream, [batch, tokens, embed]."""
    return shard.scatter(product(found.reshape(*found.shape[:2], -1), output.reshape(-1, output.shape[-1])))


class FeedForward(nnx.Module):
    """Pre-norm SwiGLU (Shazeer 2020, arXiv 2002.05202): down(silu(gate x) * up x)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        d, f = config.embed_dim, config.mlp_dim
        self.epsilon = config.norm_epsilon
        self.norm = nnx.Param(jnp.ones(d))
        self.gate = nnx.Param(_normal(rngs, (d, f)))
        self.up = nnx.Param(_normal(rngs, (d, f)))
        self.down = nnx.Param(_normal(rngs, (f, d), depth=config.num_layers))

    def __call__(self, x: jax.Array, shard: Shard) -> jax.Array:
        h = shard.gather(rms_norm(x, self.norm[...], self.epsilon))
        return shard.scatter(product(swiglu(product(h, self.gate[...]), product(h, self.up[...])), self.down[...]))


class Layer(nnx.Module):
    """One residual layer: a walk over the tokens, attention, and a walk that ends it and does the feed-forward."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.attention = Attention(config, rngs)
        self.mlp = FeedForward(config, rngs)

    def __call__(self, x: jax.Array, positions: jax.Array, segments: jax.Array, rope: Rope, shard: Shard) -> jax.Array:
        attention = self.attention
        if shard.head_groups > 1:
            x = attention(x, positions, segments, rope, shard)
            return shard.by_chunks(lambda x: x + self.mlp(x, shard), x)

        # All heads at once: the sum of input and attention then exists for one chunk only.
        found = attention.find(x, positions, segments, rope, shard, attention.input_weights())
        return shard.by_chunks(lambda x, found: self.finish(x, found, shard), x, found)

    def finish(self, x: jax.Array, found: jax.Array, shard: Shard) -> jax.Array:
        """The layer's output from its input and what all its heads found."""
        x = x + merge(found, self.attention.output[...], shard)
        return x + self.mlp(x, shard)


class Vision(nnx.Module):
    """The rows and columns of vision tokens, which a text model gains when it learns to see."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Param(_normal(rngs, (config.vision_vocabulary, config.embed_dim)))
        self.head = nnx.Param(_normal(rngs, (config.embed_dim, config.vision_vocabulary)))


class Llama(nnx.Module):
    """Tokens in, hidden states out; the vocabulary is met in the loss, so that full logits never exist."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        self.embedding = nnx.Param(_normal(rngs, (config.vocabulary, config.embed_dim)))
        self.norm = nnx.Param(jnp.ones(config.embed_dim))
        if not config.tied_embeddings:
            self.head = nnx.Param(_normal(rngs, (config.embed_dim, config.vocabulary)))

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stacked(rngs: nnx.Rngs) -> Layer:
            return Layer(config, rngs)

        self.layers = stacked(rngs)
        # Last, so that the other weights of a seed are those of the text model.
        if config.vision_vocabulary:
            self.vision = Vision(config, rngs)

    def __call__(
        self, tokens: jax.Array, positions: jax.Array, segments: jax.Array, rope: Rope, layout: Layout
    ) -> jax.Array:
        """Hidden states [batch, tokens, embed], in the layout's dtype.

        tokens, positions, segments: int32 [batch, tokens].
        """
        graph, state = nnx.split(self.layers)
        dims = one_layer_dims(self.config)

        def lookup(shard: Shard, table: jax.Array, _: Rope, tokens: jax.Array) -> jax.Array:
            return embed(tokens, table, shard)

        def layer(x: jax.Array, weights: Params) -> jax.Array:
            def local(shard: Shard, weights: Params, rope: Rope, x: jax.Array, *tokens: jax.Array) -> jax.Array:
                return _filled(graph, state, weights)(x, *tokens, rope, shard)

            return layout.per_shard(local, weights, dims, rope, x, positions, segments)

        x = layout.per_shard(lookup, self.embedding[...], PARAMETER_DIMS["embedding"], rope, tokens)
        if self.config.vision_vocabulary:
            table, seen = self.vision.embedding[...], tokens - self.config.vocabulary
            x += layout.per_shard(lookup, table, PARAMETER_DIMS["vision"]["embedding"], rope, seen)
        x = scan_layers(layer, x, nnx.to_pure_dict(state), layout.memory)
        return rms_norm(x, self.norm[...], self.config.norm_epsilon)

    def output_weights(self) -> tuple[jax.Array, ...]:
        """The projections to each vocabulary, float32 [embed, its size], in the order of their ids."""
        text = self.embedding[...].T if self.config.tied_embeddings else self.head[...]
        return (text, self.vision.head[...]) if self.config.vision_vocabulary else (text,)


@functools.cache
def _abstract(config: ModelConfig) -> tuple[Any, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: Llama(config, nnx.Rngs(0))))


def abstract_params(config: ModelConfig) -> Params:
    """The parameters of a config as jax.ShapeDtypeStruct, float32."""
    return nnx.to_pure_dict(_abstract(config)[1])


def bind(config: ModelConfig, params: Params) -> Llama:
    """The module that computes with these parameters."""
    return _filled(*_abstract(config), params)


@functools.cache
def _abstract_layer(config: ModelConfig) -> tuple[Any, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: Layer(config, nnx.Rngs(0))))


def bind_layer(config: ModelConfig, weights: Params) -> Layer:
    """The one layer that computes with these weights: those of `params["layers"]` without their leading axis."""
    return _filled(*_abstract_layer(config), weights)


def _filled(graph: Any, state: nnx.State, params: Params) -> Any:
    state = jax.tree.map(lambda leaf: leaf, state)  # a copy: the given one stays as it is
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def parameter_dims(config: ModelConfig) -> Mapping[str, Any]:
    """PARAMETER_DIMS without what this config lacks: the same tree as its parameters."""
    lacking: set[str] = set()
    if config.tied_embeddings:
        lacking |= {"head"}
    if not config.vision_vocabulary:
        lacking |= {"vision"}
    if not config.qkv_biases:
        lacking |= {"query_bias", "key_bias", "value_bias"}
    if not config.head_norms:
        lacking |= {"query_norm", "key_norm"}
    layers = {part: _without(lacking, weights) for part, weights in LAYER_DIMS.items()}
    return _without(lacking, {**PARAMETER_DIMS, "layers": layers})


def one_layer_dims(config: ModelConfig) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """The dimensions of one layer's weights: those of `parameter_dims` without their leading axis."""
    layers = parameter_dims(config)["layers"]
    return {part: {name: dims[1:] for name, dims in weights.items()} for part, weights in layers.items()}


def _without(lacking: set[str], weights: Mapping[str, Any]) -> dict[str, Any]:
    return {name: of for name, of in weights.items() if name not in lacking}


def count_parameters(config: ModelConfig) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], depth: int = 0) -> jax.Array:
    scale = DEVIATION / (2 * depth) ** 0.5 if depth else DEVIATION
    return scale * jax.random.normal(rngs.params(), shape)
