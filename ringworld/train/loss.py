"""Cross entropy over a vocabulary, in chunks of tokens: the logits of a whole sequence never exist.

Inside a shard the tokens are walked chunk by chunk. The training loss computes its gradient in the same walk (each
chunk's logits are used for the loss, for the gradient of the hidden states and for the head's, then dropped), so the
backward pass only scales: three matrix products per chunk where recomputation would cost four. The vocabulary may be
split over `tensor`; then each device holds its columns' logits only, of the tokens that the tensor ranks bring
together chunk by chunk. The sequence is never gathered.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from ringworld.mesh import BATCH_AXES, SEQUENCE_AXES
from ringworld.model.layout import DIMENSION_AXES, HIDDEN, TOKENS, spec_of

_HEAD_DIMS = ("embed", "vocabulary")
_WEIGHT_AXES = DIMENSION_AXES["embed"]


class TokenScores(NamedTuple):
    """Both [batch, tokens]. loss: float32, nats of each target. hit: bool, the target is the likeliest token."""

    loss: jax.Array
    hit: jax.Array


def cross_entropy(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array, *, mesh: Mesh, chunk: int = 1024
) -> jax.Array:
    """The sum over all tokens of weight * -log softmax(hidden @ head)[target], float32 scalar.

    hidden [batch, tokens, embed] in the compute dtype; head float32 [embed, vocabulary]; targets int32 and weights
    float32 [batch, tokens]; `chunk` tokens on a device at a time. Differentiable in hidden and head; a target of weight
    0 costs and moves nothing, whatever its id.
    """
    return _cross_entropy(mesh, chunk, hidden, head, targets, weights)


def score_tokens(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, *, mesh: Mesh, chunk: int = 1024
) -> TokenScores:
    """Every target's loss and whether a greedy reader would have said it. Arguments as in `cross_entropy`."""

    def local(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> TokenScores:
        head = _whole(head, hidden.dtype)

        def walk(_: None, piece: Any) -> tuple[None, TokenScores]:
            x, target = _gather(piece)
            logits = _logits(x, head)
            log_normalizer, target_logit = _normalizer(logits), _pick(logits, target)
            # A tie would make two tokens the likeliest; then neither is said to be.
            rivals = lax.psum((logits >= target_logit[:, None]).sum(-1), "tensor")
            return None, TokenScores(*_own((log_normalizer - target_logit, rivals == 1), len(piece[1])))

        pieces = _chunked(
            max(1, chunk // mesh.shape["tensor"]), hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
        )
        _, scores = lax.scan(walk, None, pieces)
        return TokenScores(*(part.reshape(-1)[: targets.size].reshape(targets.shape) for part in scores))

    return jax.shard_map(
        local, mesh=mesh, in_specs=(HIDDEN, spec_of(_HEAD_DIMS), TOKENS), out_specs=TOKENS, check_vma=False
    )(hidden, head, targets)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _cross_entropy(
    mesh: Mesh, chunk: int, hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array
) -> jax.Array:
    scores = score_tokens(hidden, head, targets, mesh=mesh, chunk=chunk)
    return jnp.sum(scores.loss * weights)


def _forward(mesh, chunk, hidden, head, targets, weights):
    def local(hidden, head32, targets, weights):
        head = _whole(head32, hidden.dtype)
        columns = jnp.arange(head.shape[1]) + lax.axis_index("tensor") * head.shape[1]

        def walk(carry, piece):
            total, d_head = carry
            x, target, weight = _gather(piece)
            logits = _logits(x, head)
            log_normalizer = _normalizer(logits)
            total += jnp.sum(weight * (log_normalizer - _pick(logits, target)))
            probability = jnp.exp(logits - log_normalizer[:, None])
            d_logits = weight[:, None] * (probability - (columns == target[:, None]))
            d_logits = d_logits.astype(x.dtype)
            d_x = lax.dot_general(d_logits, head, (((1,), (1,)), ((), ())))
            d_head += lax.dot_general(x, d_logits, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
            return (total, d_head), lax.psum_scatter(d_x, "tensor", scatter_dimension=0, tiled=True)

        pieces = _chunked(
            max(1, chunk // mesh.shape["tensor"]),
            hidden.reshape(-1, hidden.shape[-1]),
            targets.reshape(-1),
            weights.reshape(-1),
        )
        (total, d_head), d_x = lax.scan(walk, (jnp.float32(0), jnp.zeros(head.shape, jnp.float32)), pieces)
        d_hidden = d_x.reshape(-1, hidden.shape[-1])[: targets.size].reshape(hidden.shape)
        # One sum at the end of the walk, not one per chunk; each device keeps its own rows of the head's gradient.
        d_head = lax.psum_scatter(d_head, _WEIGHT_AXES, scatter_dimension=0, tiled=True)
        return lax.psum(total, (*BATCH_AXES, *SEQUENCE_AXES)), d_hidden, lax.psum(d_head, "data")

    total, d_hidden, d_head = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(HIDDEN, spec_of(_HEAD_DIMS), TOKENS, TOKENS),
        out_specs=(PartitionSpec(), HIDDEN, spec_of(_HEAD_DIMS)),
        check_vma=False,
    )(hidden, head, targets, weights)
    return total, (d_hidden, d_head)


def _backward(mesh, chunk, residual, cotangent):
    d_hidden, d_head = residual
    return (d_hidden * cotangent).astype(d_hidden.dtype), d_head * cotangent, None, None


_cross_entropy.defvjp(_forward, _backward)


def _whole(head: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """This shard's columns [embed, columns] of the head, from its part of their rows."""
    return lax.all_gather(head.astype(dtype), _WEIGHT_AXES, axis=0, tiled=True)


def _gather(arrays: tuple[jax.Array, ...]) -> list[jax.Array]:
    """[tokens, ...] of every tensor rank, one after another."""
    return [lax.all_gather(x, "tensor", axis=0, tiled=True) for x in arrays]


def _own(arrays: tuple[jax.Array, ...], tokens: int) -> list[jax.Array]:
    """This tensor rank's tokens of gathered ones."""
    return [lax.dynamic_slice_in_dim(x, lax.axis_index("tensor") * tokens, tokens) for x in arrays]


def _logits(x: jax.Array, head: jax.Array) -> jax.Array:
    return lax.dot_general(x, head, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _normalizer(logits: jax.Array) -> jax.Array:
    """log sum exp over a vocabulary split over `tensor`: [tokens, columns] -> [tokens]."""
    largest = lax.pmax(logits.max(-1), "tensor")
    return largest + jnp.log(lax.psum(jnp.exp(logits - largest[:, None]).sum(-1), "tensor"))


def _pick(logits: jax.Array, target: jax.Array) -> jax.Array:
    """The target's logit, from whichever device holds its column: [tokens, columns], [tokens] -> [tokens]."""
    column = target - lax.axis_index("tensor") * logits.shape[1]
    mine = (column >= 0) & (column < logits.shape[1])
    value = jnp.take_along_axis(logits, jnp.clip(column, 0, logits.shape[1] - 1)[:, None], axis=1)[:, 0]
    return lax.psum(jnp.where(mine, value, 0.0), "tensor")


def _chunked(chunk: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Arrays [tokens, ...] as [chunks, chunk, ...], padded with zeros (so with weight 0) at the end."""
    tokens = arrays[0].shape[0]
    chunk = min(chunk, tokens)
    short = -tokens % chunk
    return tuple(
        jnp.pad(array, ((0, short), *((0, 0),) * (array.ndim - 1))).reshape(-1, chunk, *array.shape[1:])
        for array in arrays
    )
