"""Cross entropy over a vocabulary, in chunks of tokens: the logits of a whole sequence never exist.

Inside a shard the tokens are walked chunk by chunk. The training loss computes its gradient in the same walk (each
chunk's logits are used for the loss, for the gradient of the hidden states and for the head's, then dropped), so the
backward pass only scales: three matrix products per chunk where recomputation would cost four. The vocabulary may be
split over `tensor`; then each device holds its columns' logits only.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from ringworld.mesh import BATCH_AXES, SEQUENCE_AXES
from ringworld.model.sharding import HIDDEN, ROWS

HEAD = PartitionSpec(None, "tensor")
TOKEN_AXES = (*BATCH_AXES, *SEQUENCE_AXES)


class TokenScores(NamedTuple):
    """Both [batch, tokens]. loss: float32, nats of each target. hit: bool, the target is the likeliest token."""

    loss: jax.Array
    hit: jax.Array


def cross_entropy(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array, *, mesh: Mesh, chunk: int = 1024
) -> jax.Array:
    """The sum over all tokens of weight * -log softmax(hidden @ head)[target], float32 scalar.

    hidden [batch, tokens, embed] in the compute dtype; head float32 [embed, vocabulary]; targets int32 and weights
    float32 [batch, tokens]; `chunk` tokens of a shard at a time. Differentiable in hidden and head; a target of weight
    0 costs and moves nothing, whatever its id.
    """
    return _cross_entropy(mesh, chunk, hidden, head, targets, weights)


def score_tokens(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, *, mesh: Mesh, chunk: int = 1024
) -> TokenScores:
    """Every target's loss and whether a greedy reader would have said it. Arguments as in `cross_entropy`."""

    def local(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> TokenScores:
        head = head.astype(hidden.dtype)

        def walk(_: None, piece: Any) -> tuple[None, TokenScores]:
            logits = _logits(piece[0], head)
            log_normalizer, target_logit = _normalizer(logits), _pick(logits, piece[1])
            # A tie would make two tokens the likeliest; then neither is said to be.
            rivals = lax.psum((logits >= target_logit[:, None]).sum(-1), "tensor")
            return None, TokenScores(log_normalizer - target_logit, rivals == 1)

        pieces = _chunked(chunk, hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1))
        _, scores = lax.scan(walk, None, pieces)
        return TokenScores(*(part.reshape(-1)[: targets.size].reshape(targets.shape) for part in scores))

    return jax.shard_map(local, mesh=mesh, in_specs=(HIDDEN, HEAD, ROWS), out_specs=ROWS, check_vma=False)(
        hidden, head, targets
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _cross_entropy(
    mesh: Mesh, chunk: int, hidden: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array
) -> jax.Array:
    scores = score_tokens(hidden, head, targets, mesh=mesh, chunk=chunk)
    return jnp.sum(scores.loss * weights)


def _forward(mesh, chunk, hidden, head, targets, weights):
    def local(hidden, head32, targets, weights):
        head = head32.astype(hidden.dtype)
        columns = jnp.arange(head.shape[1]) + lax.axis_index("tensor") * head.shape[1]

        def walk(carry, piece):
            total, d_head = carry
            x, target, weight = piece
            logits = _logits(x, head)
            log_normalizer = _normalizer(logits)
            total += jnp.sum(weight * (log_normalizer - _pick(logits, target)))
            probability = jnp.exp(logits - log_normalizer[:, None])
            d_logits = weight[:, None] * (probability - (columns == target[:, None]))
            d_logits = d_logits.astype(x.dtype)
            d_x = lax.dot_general(d_logits, head, (((1,), (1,)), ((), ())))
            d_head += lax.dot_general(x, d_logits, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
            return (total, d_head), d_x

        pieces = _chunked(chunk, hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1), weights.reshape(-1))
        (total, d_head), d_x = lax.scan(walk, (jnp.float32(0), jnp.zeros(head.shape, jnp.float32)), pieces)
        d_hidden = d_x.reshape(-1, hidden.shape[-1])[: targets.size].reshape(hidden.shape)
        # One sum at the end of the walk, not one per chunk.
        return lax.psum(total, TOKEN_AXES), lax.psum(d_hidden, "tensor"), lax.psum(d_head, TOKEN_AXES)

    total, d_hidden, d_head = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(HIDDEN, HEAD, ROWS, ROWS),
        out_specs=(PartitionSpec(), HIDDEN, HEAD),
        check_vma=False,
    )(hidden, head, targets, weights)
    return total, (d_hidden, d_head)


def _backward(mesh, chunk, residual, cotangent):
    d_hidden, d_head = residual
    return (d_hidden * cotangent).astype(d_hidden.dtype), d_head * cotangent, None, None


_cross_entropy.defvjp(_forward, _backward)


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
