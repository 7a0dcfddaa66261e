"""One shard's view of a forward pass: its own tokens and parts of the weights, and what it may ask of the others.

All communication of a layer is written out here. Hidden states are split over ring, ulysses **and** tensor, so that
what a layer keeps shrinks with every chip: the ranks of `tensor` bring their tokens together for a product whose
columns they share (`gather`), and deal the summed result out again (`scatter`), as Megatron's sequence parallelism does
(arXiv:2205.05198). Weights are brought together over the axes that split their `embed` dimension, a layer at a time.

A shard may also be walked in chunks of tokens (Blockwise Parallel Transformer, arXiv:2305.19370): then norms,
projections and feed-forward hold one chunk's intermediate results at once, in both passes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ringworld.attention import SAVED, ring_attention


@dataclass(frozen=True)
class Shard:
    """What is static about a shard; every method is called inside `jax.shard_map` over the mesh's axes.

    tensor, ring, ulysses: the axes' names, None where an axis has size 1, so that one device compiles to no
    communication.
    weight_axes: the axes, longer than 1, that split `embed`.
    dtype: of products. backend: of attention.
    chunk: tokens of this shard that a layer's products see at once; 0: all.
    head_groups: parts in which the heads of a layer attend one after another.
    """

    tensor: str | None
    ring: str | None
    ulysses: str | None
    weight_axes: tuple[str, ...]
    dtype: jnp.dtype
    backend: str
    chunk: int = 0
    head_groups: int = 1

    def weight(self, part: jax.Array, dims: Sequence[str]) -> jax.Array:
        """The whole of a weight over its embed dimension, from this shard's float32 part; still split over tensor.

        Matrices come with the precision of `dtype` but typed float32, so that gradients of many chunks and shards are
        summed in float32; the compiler folds the pair of casts. A weight without that dimension is whole already.
        """
        if "embed" not in dims:
            return part
        dtype = self.dtype if part.ndim > 1 else jnp.dtype(jnp.float32)
        return _gathered(self.weight_axes, tuple(dims).index("embed"), dtype, part)

    def gather(self, x: jax.Array) -> jax.Array:
        """[batch, tokens, ...] of every tensor rank, one after another."""
        return x if self.tensor is None else lax.all_gather(x, self.tensor, axis=1, tiled=True)

    def scatter(self, partial: jax.Array) -> jax.Array:
        """The sum over tensor ranks of [batch, gathered tokens, ...], each rank's own tokens of it."""
        if self.tensor is None:
            return partial
        return lax.psum_scatter(partial, self.tensor, scatter_dimension=1, tiled=True)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, positions: jax.Array, segments: jax.Array) -> jax.Array:
        """Attention over the whole row of this shard's heads: q [batch, tokens, heads, head_dim] and out like it."""

        return ring_attention(
            q,
            k,
            v,
            positions=positions,
            segments=segments,
            axis_name=self.ring,
            ulysses_axis=self.ulysses,
            backend=self.backend,
        )

    def by_head_groups(
        self, function: Callable[..., jax.Array], x: jax.Array, weights: Sequence[jax.Array], head_axes: Sequence[int]
    ) -> jax.Array:
        """x + the sum of function(a group of heads of each weight), like x, one group after another.

        Queries, keys, values, what attention finds and the gradients of these then exist for one group only; what
        attention found is kept, so that the backward pass makes only the projections again.
        """

        def cut(weight: jax.Array, axis: int) -> jax.Array:
            grouped = weight.reshape(*weight.shape[:axis], self.head_groups, -1, *weight.shape[axis + 1 :])
            return jnp.moveaxis(grouped, axis, 0)

        kept = jax.checkpoint(function, policy=jax.checkpoint_policies.save_only_these_names(SAVED))
        groups = tuple(cut(weight, axis) for weight, axis in zip(weights, head_axes, strict=True))
        # The sum stays outside of `kept`, whose inputs are saved for each group.
        return lax.scan(lambda x, group: (x + kept(*group), None), x, groups)[0]

    def by_chunks(self, function: Callable[..., Any], *arrays: jax.Array) -> Any:
        """function(*arrays), a chunk of tokens at a time: arrays and results are [batch, tokens, ...], the tokens of
        each counted in this shard's, or in gathered ones, throughout.

        Gathered tokens then lie in another order, chunk by chunk. Attention does not mind, since positions and segments
        are gathered with them, and the next walk in chunks meets the same order.
        """
        tokens = min(x.shape[1] for x in arrays)
        count = chunks_of(tokens, self.chunk)
        if count == 1:
            return function(*arrays)

        def cut(x: jax.Array) -> jax.Array:
            return x.reshape(x.shape[0], count, -1, *x.shape[2:]).swapaxes(0, 1)

        def join(x: jax.Array) -> jax.Array:
            return x.swapaxes(0, 1).reshape(x.shape[1], -1, *x.shape[3:])

        pieces = tuple(cut(x) for x in arrays)
        return jax.tree.map(join, lax.map(jax.checkpoint(lambda xs: function(*xs)), pieces))


def chunks_of(tokens: int, chunk: int) -> int:
    """How many equal chunks of at most `chunk` tokens a shard is cut into; 1 for chunk 0."""
    if chunk == 0 or tokens <= chunk:
        return 1
    return next(n for n in range(-(-tokens // chunk), tokens + 1) if tokens % n == 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _gathered(axes: tuple[str, ...], dimension: int, dtype: jnp.dtype, part: jax.Array) -> jax.Array:
    # The cast stands before the exchange, which halves its bytes. Without the barrier the compiler casts the weights of
    # all layers before the first.
    part = lax.optimization_barrier(part).astype(dtype)
    whole = lax.all_gather(part, axes, axis=dimension, tiled=True) if axes else part
    return whole.astype(jnp.float32)


def _gathered_backward(axes: tuple[str, ...], dimension: int, dtype: jnp.dtype, _: None, grad: jax.Array):
    return (lax.psum_scatter(grad, axes, scatter_dimension=dimension, tiled=True) if axes else grad,)


_gathered.defvjp(
    lambda axes, dimension, dtype, part: (_gathered(axes, dimension, dtype, part), None), _gathered_backward
)
