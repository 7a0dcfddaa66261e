"""Cross entropy over one or more vocabularies, in chunks of tokens: the logits of a whole sequence never exist.

Inside a shard the tokens are walked chunk by chunk. The training loss computes its gradient in the same walk (each
chunk's logits are used for the loss, for the gradient of the hidden states and for the head's, then dropped), so the
backward pass only scales: three matrix products per chunk where recomputation would cost four. The vocabulary may be
split over `tensor`; then each device holds its columns' logits only, of the tokens that the tensor ranks bring
together chunk by chunk. The sequence is never gathered. A chunk of which nothing counts is passed over: where only
answers count, or only the tokens of one vocabulary, most are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
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
    hidden: jax.Array,
    heads: Sequence[jax.Array],
    targets: jax.Array,
    weights: jax.Array,
    *,
    mesh: Mesh,
    chunk: int = 1024,
) -> jax.Array:
    """Of each vocabulary the sum over its targets of weight * -log softmax(hidden @ head)[target], float32 [heads].

    hidden [batch, tokens, embed] in the compute dtype; heads float32 [embed, vocabulary], whose ids follow one another:
    a target is compared with its own vocabulary alone. targets int32 and weights float32 [batch, tokens]; `chunk`
    tokens on a device at a time. Differentiable in hidden and heads; a target of weight 0 costs and moves nothing,
    whatever its id.
    """
    return jnp.stack(
        [
            _cross_entropy(mesh, chunk, hidden, head, own, jnp.where(within, weights, 0))
            for head, own, within in _by_vocabulary(heads, targets)
        ]
    )


def weight_by_vocabulary(heads: Sequence[jax.Array], targets: jax.Array, weights: jax.Array) -> jax.Array:
    """Of each vocabulary the sum of its targets' weights, float32 [heads]."""
    return jnp.stack([jnp.where(within, weights, 0).sum() for _, _, within in _by_vocabulary(heads, targets)])


def score_tokens(
    hidden: jax.Array, heads: Sequence[jax.Array], targets: jax.Array, *, mesh: Mesh, chunk: int = 1024
) -> TokenScores:
    """Every target's loss and whether a greedy reader would have said it. Arguments as in `cross_entropy`.

    A target of -1 is not asked for, and has loss 0 and no hit; a chunk without targets of a vocabulary costs no product
    with that vocabulary's head.
    """
    found = TokenScores(jnp.zeros(targets.shape, jnp.float32), jnp.zeros(targets.shape, bool))
    for head, own, within in _by_vocabulary(heads, targets):
        scores = _score(hidden, head, own, mesh, chunk)
        found = TokenScores(*(jnp.where(within, new, old) for new, old in zip(scores, found, strict=True)))
    return found


def _by_vocabulary(heads: Sequence[jax.Array], targets: jax.Array) -> Iterator[tuple[jax.Array, jax.Array, jax.Array]]:
    """(head, targets counted in its vocabulary, which of them lie in it) of each."""
    first = 0
    for head in heads:
        own = targets - first
        yield head, own, (own >= 0) & (own < head.shape[1])
        first += head.shape[1]


def _score(hidden: jax.Array, head: jax.Array, targets: jax.Array, mesh: Mesh, chunk: int) -> TokenScores:
    def local(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> TokenScores:
        head = _whole(head, hidden.dtype)

        def asked(x: jax.Array, target: jax.Array) -> TokenScores:
            logits = _logits(x, head)
            log_normalizer, target_logit = _normalizer(logits), _pick(logits, target)
            # A tie would make two tokens the likeliest; then neither is said to be.
            rivals = lax.psum((logits >= target_logit[:, None]).sum(-1), "tensor")
            return TokenScores(log_normalizer - target_logit, rivals == 1)

        def passed(x: jax.Array, target: jax.Array) -> TokenScores:
            return TokenScores(jnp.zeros(target.shape, jnp.float32), jnp.zeros(target.shape, bool))

        def walk(_: None, piece: Any) -> tuple[None, TokenScores]:
            x, target = _gather(piece)
            here = (target >= 0) & (target < head.shape[1] * mesh.shape["tensor"])
            return None, TokenScores(*_own(lax.cond(here.any(), asked, passed, x, target), len(piece[1])))

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
    return jnp.sum(_score(hidden, head, targets, mesh, chunk).loss * weights)


def _forward(mesh, chunk, hidden, head, targets, weights):
    def local(hidden, head32, targets, weights):
        head = _whole(head32, hidden.dtype)
        columns = jnp.arange(head.shape[1]) + lax.axis_index("tensor") * head.shape[1]

        def counted(total, d_head, x, target, weight):
            logits = _logits(x, head)
            log_normalizer = _normalizer(logits)
            total += jnp.sum(weight * (log_normalizer - _pick(logits, target)))
            probability = jnp.exp(logits - log_normalizer[:, None])
            d_logits = weight[:, None] * (probability - (columns == target[:, None]))
            d_logits = d_logits.astype(x.dtype)
            d_x = lax.dot_general(d_logits, head, (((1,), (1,)), ((), ())))
            d_head += lax.dot_general(x, d_logits, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
            return total, d_head, lax.psum_scatter(d_x, "tensor", scatter_dimension=0, tiled=True)

        def passed(total, d_head, x, target, weight):
            return total, d_head, jnp.zeros((len(x) // mesh.shape["tensor"], x.shape[1]), x.dtype)

        def walk(carry, piece):
            gathered = _gather(piece)
            # All tensor ranks have gathered the same weights, so they take the same way.
            *carry, d_x = lax.cond((gathered[-1] != 0).any(), counted, passed, *carry, *gathered)
            return tuple(carry), d_x

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
