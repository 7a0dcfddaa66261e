"""The ring: each shard's queries stay, the keys and values go round with their positions and segments.

At every hop a shard attends to the keys at hand while the next ones are on their way; what it has so far is the pair
(out, log-sum-exp), and two such pairs over different keys merge exactly. After `size - 1` exchanges every query has
met every key; there is no further exchange to bring the keys home. A bidirectional ring sends keys both ways and needs
half as many exchanges one after another, each of twice the bytes over links that would else be idle one way.

The gradient is a ring too (Ring Attention, arXiv:2310.01889): it needs only the final log-sum-exp and delta of each
query. The gradients of keys and values travel with their keys, in float32 and one hop behind: a shard sends on what
arrived and grew at the last hop while it computes this one, and one last exchange takes them home from wherever the
keys' journey ended.

Nothing here knows of layouts: a hop that the bounds prove empty is skipped, whatever put it there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from ringworld.attention.backend import BlockBackend, Blocks, Scoring
from ringworld.attention.mask import Tokens, any_visible

# The name under which a remat policy can keep out and log-sum-exp, so that a layer's second forward skips attention:
# jax.checkpoint_policies.save_only_these_names(SAVED).
SAVED = "ring_attention"


@dataclass(frozen=True)
class Ring:
    """What is static about a call: the mesh axis (None: no ring), which ways keys go, and how a hop computes."""

    axis_name: str | None
    bidirectional: bool
    scoring: Scoring
    blocks: Blocks
    backend: BlockBackend

    @property
    def size(self) -> int:
        return 1 if self.axis_name is None else lax.axis_size(self.axis_name)

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The ways that keys go; together they bring every other shard's. The first is as long as the second, or one
        longer."""
        others = self.size - 1
        back = others // 2 if self.bidirectional else 0
        return tuple(stream for stream in (Stream(1, others - back), Stream(-1, back)) if stream.exchanges)


class Stream(NamedTuple):
    """Keys on their way: every exchange moves them `direction` ranks on."""

    direction: int
    exchanges: int


class Keys(NamedTuple):
    """What goes round: k and v [b, n, s, d] in the input's dtype, and the tokens [b, s] that say who may see them."""

    k: jax.Array
    v: jax.Array
    tokens: Tokens


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(ring: Ring, q: jax.Array, k: jax.Array, v: jax.Array, query: Tokens, key: Tokens) -> jax.Array:
    """Attention of this shard's queries over the whole ring's keys: q and out [b, h, t, d], k and v [b, n, s, d]."""
    return _forward(ring, q, k, v, query, key)[0]


def _forward(
    ring: Ring, q: jax.Array, k: jax.Array, v: jax.Array, query: Tokens, key: Tokens
) -> tuple[jax.Array, jax.Array]:
    def hop(keys: Keys) -> tuple[jax.Array, jax.Array]:
        return ring.backend.forward(q, keys.k, keys.v, query, keys.tokens, scoring=ring.scoring, blocks=ring.blocks)

    def visit(state: tuple[jax.Array, jax.Array], keys: Keys, cargo: Any) -> tuple[Any, Any]:
        seen = any_visible(query, keys.tokens, ring.scoring.rule)
        return lax.cond(seen, lambda: _merge(state, hop(keys)), lambda: state), cargo

    keys = Keys(k, v, key)
    (out, lse), _ = _tour(ring, keys, hop(keys), None, visit)
    return out.astype(q.dtype), lse


def _forward_and_save(ring: Ring, q: jax.Array, k: jax.Array, v: jax.Array, query: Tokens, key: Tokens):
    out, lse = (checkpoint_name(x, SAVED) for x in _forward(ring, q, k, v, query, key))
    return out, (q, k, v, query, key, out, lse)


def _backward(ring: Ring, saved, grad_out: jax.Array):
    q, k, v, query, key, out, lse = saved
    delta = (out.astype(jnp.float32) * grad_out.astype(jnp.float32)).sum(-1)

    def hop(keys: Keys) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        grad_q, *grad_kv = ring.backend.backward(
            q, keys.k, keys.v, query, keys.tokens, lse, delta, grad_out, scoring=ring.scoring, blocks=ring.blocks
        )
        return grad_q, (grad_kv[0], grad_kv[1])

    def visit(grad_q: jax.Array, keys: Keys, grad_kv: Any) -> tuple[Any, Any]:
        seen = any_visible(query, keys.tokens, ring.scoring.rule)
        return lax.cond(seen, lambda: _add((grad_q, grad_kv), hop(keys)), lambda: (grad_q, grad_kv))

    keys = Keys(k, v, key)
    grad_q, own = hop(keys)
    grad_q, from_others = _tour(ring, keys, grad_q, jax.tree.map(jnp.zeros_like, own), visit)
    grad_kv = _add(own, from_others)
    grads = (x.astype(like.dtype) for x, like in zip((grad_q, *grad_kv), (q, k, v), strict=True))
    return *grads, None, None


attend.defvjp(_forward_and_save, _backward)


def _tour(
    ring: Ring, own: Keys, state: Any, blank: Any, visit: Callable[[Any, Keys, Any], tuple[Any, Any]]
) -> tuple[Any, Any]:
    """Takes every other shard's keys past this one: visit(state, keys, cargo) -> (state, cargo), once for each.

    The cargo belongs to the keys: blank at their first visit, it follows them one exchange behind, and in the end it
    goes home. Returns the last state, and what came home to this shard's own keys, summed over the streams.

    Exchanges stand before the computation that does not wait for them, so that the two overlap.
    """
    if not ring.streams:
        return state, blank
    shortest = ring.streams[-1].exchanges
    has_cargo = bool(jax.tree.leaves(blank))

    def exchange(of_streams: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(_send(x, s.direction, ring) for x, s in zip(of_streams, ring.streams, strict=True))

    def visit_all(state: Any, flying: tuple[Keys, ...], cargo: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        grown = []
        for keys, load in zip(flying, cargo, strict=True):
            state, load = visit(state, keys, load)
            grown.append(load)
        return state, tuple(grown)

    def step(carry: tuple[Any, ...], _: None) -> tuple[tuple[Any, ...], None]:
        flying, state, cargo = carry
        coming, arrived = exchange(flying), exchange(cargo)
        return (coming, *visit_all(state, flying, arrived)), None

    flying = exchange((own,) * len(ring.streams))
    cargo = (blank,) * len(ring.streams)
    steps = shortest - 1
    if has_cargo and steps:  # a blank cargo is not worth sending
        coming = exchange(flying)
        state, cargo = visit_all(state, flying, cargo)
        flying, steps = coming, steps - 1
    (flying, state, cargo), _ = lax.scan(step, (flying, state, cargo), length=steps)
    if shortest > 1:
        cargo = exchange(cargo)
    ahead = _send(flying[0], 1, ring) if ring.streams[0].exchanges > shortest else None
    state, cargo = visit_all(state, flying, cargo)
    if ahead is not None:
        state, grown = visit(state, ahead, _send(cargo[0], 1, ring))
        cargo = (grown, *cargo[1:])
    home = [_send(x, -s.direction * s.exchanges, ring) for x, s in zip(cargo, ring.streams, strict=True)]
    return state, home[0] if len(home) == 1 else _add(*home)


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def _merge(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Attention over two disjoint sets of keys from attention over each."""
    (out_a, lse_a), (out_b, lse_b) = a, b
    lse = jnp.logaddexp(lse_a, lse_b)
    return out_a * jnp.exp(lse_a - lse)[..., None] + out_b * jnp.exp(lse_b - lse)[..., None], lse


def _send(arrays: Any, ranks: int, ring: Ring) -> Any:
    """Every shard hands its arrays `ranks` ranks on, and receives those of the one as far behind."""
    assert ring.axis_name is not None
    to = [(rank, (rank + ranks) % ring.size) for rank in range(ring.size)]
    return jax.tree.map(lambda x: lax.ppermute(x, ring.axis_name, to), arrays)
