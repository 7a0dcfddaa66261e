"""The mask is data: who attends to whom follows from the positions and segments that travel with the tokens.

One rule: a query attends to a key iff their segments are equal and non-zero and position_query >= position_key. It says
causality, packing, padding and every layout of blocks over a ring; nothing else in this package decides visibility. A
`Rule` may narrow it to a sliding window behind the query, and keep the first tokens of each document in sight.

The rule is also applied to whole blocks: `bounds` sums up a block of tokens in a few integers, and two such summaries
prove a block of the score matrix empty (never computed) or full (computed without looking at the mask). The proofs
may only err towards "needed, and look at the mask".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

_LARGEST = jnp.iinfo(jnp.int32).max
_SMALLEST = jnp.iinfo(jnp.int32).min


@dataclass(frozen=True)
class Rule:
    """How much of its own segment's past a query sees.

    window: keys at fewer than `window` positions before the query, its own included (1: itself alone); None: all.
    sinks: keys at positions below this are seen however far back they lie (attention sinks, arXiv:2309.17453).
    Differences of positions must fit int32 where there is a window.
    """

    window: int | None = None
    sinks: int = 0


EVERYTHING = Rule()


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


def visible(query: Tokens, key: Tokens, rule: Rule = EVERYTHING) -> jax.Array:
    """The rule itself: bool [..., queries, keys] from tokens [..., queries] and [..., keys]."""
    segments, positions = query.segments[..., :, None], query.positions[..., :, None]
    key_positions = key.positions[..., None, :]
    seen = (segments == key.segments[..., None, :]) & (segments != 0) & (positions >= key_positions)
    if rule.window is None:
        return seen
    return seen & ((positions - key_positions < rule.window) | (key_positions < rule.sinks))


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


def is_needed(query: Bounds, key: Bounds, rule: Rule = EVERYTHING) -> jax.Array:
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
    needed = (first <= last) & (latest_query >= earliest_key)
    if rule.window is None:
        return needed
    earliest_query = of_shared(query, query.lowest, query.lowest_of_first, query.lowest_of_last)
    latest_key = of_shared(key, key.highest, key.highest_of_first, key.highest_of_last)
    return needed & ((earliest_query - latest_key < rule.window) | (earliest_key < rule.sinks))


def is_full(query: Bounds, key: Bounds, rule: Rule = EVERYTHING) -> jax.Array:
    """True where the bounds prove that every query of the block sees every key of the other; broadcasts."""
    one_segment = (query.first_segment == query.last_segment) & (key.first_segment == key.last_segment)
    same = one_segment & (query.first_segment == key.first_segment)
    full = same & ~query.padded & ~key.padded & (query.lowest >= key.highest)
    if rule.window is None:
        return full
    return full & ((query.highest - key.lowest < rule.window) | (key.highest < rule.sinks))


def schedule(query: Bounds, key: Bounds, rule: Rule = EVERYTHING) -> Schedule:
    """Orders blocks for a loop: of two bounds that broadcast to [..., blocks], the last axis is the one visited.

    Cost and memory are linear in that axis, so a loop asks for one block's schedule at a time.
    """
    needed, full = is_needed(query, key, rule), is_full(query, key, rule)
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


def any_visible(query: Tokens, key: Tokens, rule: Rule = EVERYTHING) -> jax.Array:
    """False when the bounds prove that no row of two shards [batch, tokens] has anything to compute; bool [].

    A shard may hold pieces from far apart, so it is looked at in a few pieces.
    """
    pieces = 16

    def of_pieces(tokens: Tokens) -> Bounds:
        return bounds(split(tokens, -(-tokens.segments.shape[-1] // pieces)))

    query_bounds = Bounds(*(x[..., :, None] for x in of_pieces(query)))
    key_bounds = Bounds(*(x[..., None, :] for x in of_pieces(key)))
    return is_needed(query_bounds, key_bounds, rule).any()
