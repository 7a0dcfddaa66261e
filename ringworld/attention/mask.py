"""The mask is data: who attends to whom follows from the positions and segments that travel with the tokens.

One rule: a query attends to a key iff their segments are equal and non-zero and position_query >= position_key. It says
causality, packing, padding and every layout of blocks over a ring; nothing else in this package decides visibility.

The rule is also applied to whole blocks: `bounds` sums up a block of tokens in a few integers, and two such summaries
prove a block of the score matrix empty (never computed) or full (computed without looking at the mask). The proofs
may only err towards "needed, and look at the mask".
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

_LARGEST = jnp.iinfo(jnp.int32).max
_SMALLEST = jnp.iinfo(jnp.int32).min


class Tokens(NamedTuple):
    """What the mask knows of tokens: two int32 arrays of one shape [..., tokens]; segment 0 is padding."""

    positions: jax.Array
    segments: jax.Array


class Bounds(NamedTuple):
    """The summary of blocks of tokens, int32 [..., blocks]; padding counts only in `padded` (bool).

    The `first` and `last` fields tell of the smallest and the largest segment in the block: documents that meet
    inside a block would otherwise lend each other their positions, and hide that a block is empty.
    """

    first_segment: jax.Array
    last_segment: jax.Array
    lowest: jax.Array
    lowest_of_first: jax.Array
    lowest_of_last: jax.Array
    highest: jax.Array
    highest_of_first: jax.Array
    highest_of_last: jax.Array
    padded: jax.Array


class Schedule(NamedTuple):
    """The order in which one block of queries (or keys) visits the blocks of the other side.

    order: int32 [..., blocks], the full ones, then the ones to be masked, then the empty ones.
    full, needed: int32 [...]: order[:full] need no mask, order[full:needed] do, order[needed:] are never visited.
    """

    order: jax.Array
    full: jax.Array
    needed: jax.Array


def visible(query: Tokens, key: Tokens) -> jax.Array:
    """The rule itself: bool [..., queries, keys] from tokens [..., queries] and [..., keys]."""
    segments, positions = query.segments[..., :, None], query.positions[..., :, None]
    same = (segments == key.segments[..., None, :]) & (segments != 0)
    return same & (positions >= key.positions[..., None, :])


def bounds(tokens: Tokens) -> Bounds:
    """Sums up blocks of tokens, [..., blocks, block] -> [..., blocks]; padding alone meets no other's bounds."""
    positions, segments = tokens
    real = segments != 0
    first = jnp.where(real, segments, _LARGEST).min(-1)
    last = jnp.where(real, segments, _SMALLEST).max(-1)

    def lowest(chosen: jax.Array) -> jax.Array:
        return jnp.where(chosen, positions, _LARGEST).min(-1)

    def highest(chosen: jax.Array) -> jax.Array:
        return jnp.where(chosen, positions, _SMALLEST).max(-1)

    of_first = real & (segments == first[..., None])
    of_last = real & (segments == last[..., None])
    return Bounds(
        first_segment=first,
        last_segment=last,
        lowest=lowest(real),
        lowest_of_first=lowest(of_first),
        lowest_of_last=lowest(of_last),
        highest=highest(real),
        highest_of_first=highest(of_first),
        highest_of_last=highest(of_last),
        padded=~real.all(-1),
    )


def is_needed(query: Bounds, key: Bounds) -> jax.Array:
    """False where the bounds prove that no query of the block sees a key of the other; broadcasts."""
    first = jnp.maximum(query.first_segment, key.first_segment)
    last = jnp.minimum(query.last_segment, key.last_segment)

    def of_shared(block: Bounds, overall: jax.Array, of_first: jax.Array, of_last: jax.Array) -> jax.Array:
        # With one segment in common, only that segment's positions matter; they are known when it is the block's
        # smallest or largest.
        at_edge = jnp.where(
            first == block.first_segment, of_first, jnp.where(first == block.last_segment, of_last, overall)
        )
        return jnp.where(first == last, at_edge, overall)

    latest_query = of_shared(query, query.highest, query.highest_of_first, query.highest_of_last)
    earliest_key = of_shared(key, key.lowest, key.lowest_of_first, key.lowest_of_last)
    return (first <= last) & (latest_query >= earliest_key)


def is_full(query: Bounds, key: Bounds) -> jax.Array:
    """True where the bounds prove that every query of the block sees every key of the other; broadcasts."""
    one_segment = (query.first_segment == query.last_segment) & (key.first_segment == key.last_segment)
    same = one_segment & (query.first_segment == key.first_segment)
    return same & ~query.padded & ~key.padded & (query.lowest >= key.highest)


def schedule(query: Bounds, key: Bounds) -> Schedule:
    """Orders blocks for a loop: of two bounds that broadcast to [..., blocks], the last axis is the one visited.

    Cost and memory are linear in that axis, so a loop asks for one block's schedule at a time.
    """
    needed, full = is_needed(query, key), is_full(query, key)
    rank = jnp.where(full, 0, jnp.where(needed, 1, 2))
    return Schedule(
        order=jnp.argsort(rank, axis=-1, stable=True).astype(jnp.int32),
        full=full.sum(-1, dtype=jnp.int32),
        needed=needed.sum(-1, dtype=jnp.int32),
    )


def split(tokens: Tokens, block: int) -> Tokens:
    """Cuts [..., tokens] into [..., blocks, block], filling the last block with padding."""
    length = tokens.segments.shape[-1]
    extra = -length % block

    def cut(values: jax.Array) -> jax.Array:
        filled = jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, extra)])
        return filled.reshape(*values.shape[:-1], (length + extra) // block, block)

    return Tokens(cut(tokens.positions), cut(tokens.segments))


def any_visible(query: Tokens, key: Tokens) -> jax.Array:
    """False when the bounds of whole shards [batch, tokens] prove that no row has anything to compute; bool []."""
    return is_needed(bounds(query), bounds(key)).any()
