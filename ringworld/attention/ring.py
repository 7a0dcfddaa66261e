"""The ring: each shard's queries stay, the keys and values go round with their positions and segments.

At every hop a shard attends to the keys at hand while the next ones are on their way; what it has so far is the pair
(out, log-sum-exp), and two such pairs over different keys merge exactly. After `size - 1` exchanges every query has
met every key; there is no further exchange to bring the keys home.

The gradient is a ring too (Ring Attention, arXiv:2310.01889): it needs only the final log-sum-exp and delta of each
query. The gradients of keys and values travel with their keys, in float32 and one hop behind: a shard sends on what
arrived and grew at the last hop while it computes this one, and one last exchange delivers them home: `size`
exchanges.

Nothing here knows of layouts: a hop that the bounds prove empty is skipped, whatever put it there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from ringworld.attention.mask import Tokens, any_visible
from ringworld.attention.xla import NOTHING, Blocks

# The name under which a remat policy can keep out and log-sum-exp, so that a layer's second forward skips attention:
# jax.checkpoint_policies.save_only_these_names(SAVED).
SAVED = "ring_attention"


class BlockBackend(Protocol):
    """Attention of one shard over another, and its gradient; ringworld.attention.xla states shapes and dtypes."""

    def forward(
        self,
        q_bhtd: jax.Array,
        k_bnsd: jax.Array,
        v_bnsd: jax.Array,
        query: Tokens,
        key: Tokens,
        *,
        scale: float,
        blocks: Blocks,
    ) -> tuple[jax.Array, jax.Array]: ...

    def backward(
        self,
        q_bhtd: jax.Array,
        k_bnsd: jax.Array,
        v_bnsd: jax.Array,
        query: Tokens,
        key: Tokens,
        log_sum_exp: jax.Array,
        delta: jax.Array,
        grad_out: jax.Array,
        *,
        scale: float,
        blocks: Blocks,
    ) -> tuple[jax.Array, jax.Array, jax.Array]: ...


@dataclass(frozen=True)
class Ring:
    """What is static about a call: the mesh axis (None: no ring), and how a hop computes."""

    axis_name: str | None
    scale: float
    blocks: Blocks
    backend: BlockBackend

    @property
    def size(self) -> int:
        return 1 if self.axis_name is None else lax.axis_size(self.axis_name)


class Keys(NamedTuple):
    """What goes round: k and v [b, n, s, d] in the input's dtype, and the tokens [b, s] that say who may see them."""

    k: jax.Array
    v: jax.Array
    tokens: Tokens


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(ring: Ring, q: jax.Array, k: jax.Array, v: jax.Array, query: Tokens, key: Tokens) -> jax.Array:
    """Attention of this shard's queries over the whole ring's keys: q and out [b, t, h, d], k and v [b, s, n, d]."""
    return _forward(ring, q, k, v, query, key)[0]


def _forward(
    ring: Ring, q: jax.Array, k: jax.Array, v: jax.Array, query: Tokens, key: Tokens
) -> tuple[jax.Array, jax.Array]:
    q_bhtd = _heads_major(q)
    size = ring.size

    def hop(keys: Keys) -> tuple[jax.Array, jax.Array]:
        return ring.backend.forward(q_bhtd, keys.k, keys.v, query, keys.tokens, scale=ring.scale, blocks=ring.blocks)

    def add_hop(state: tuple[jax.Array, jax.Array], keys: Keys) -> tuple[jax.Array, jax.Array]:
        return lax.cond(any_visible(query, keys.tokens), lambda: _merge(state, hop(keys)), lambda: state)

    def exchange_and_add(carry, _):
        keys, state = carry
        coming = _send_on(keys, ring)  # before the computation, which does not wait for it
        return (coming, add_hop(state, keys)), None

    keys = Keys(_heads_major(k), _heads_major(v), key)
    if size == 1:
        out, lse = hop(keys)
    else:
        state = jnp.zeros(q_bhtd.shape, jnp.float32), jnp.full(q_bhtd.shape[:-1], NOTHING, jnp.float32)
        (keys, state), _ = lax.scan(exchange_and_add, (keys, state), length=size - 1)
        out, lse = add_hop(state, keys)
    return _heads_major(out).astype(q.dtype), lse


def _forward_and_save(ring: Ring, q: jax.Array, k: jax.Array, v: jax.Array, query: Tokens, key: Tokens):
    out, lse = (checkpoint_name(x, SAVED) for x in _forward(ring, q, k, v, query, key))
    return out, (q, k, v, query, key, out, lse)


def _backward(ring: Ring, saved, grad_out: jax.Array):
    q, k, v, query, key, out, lse = saved
    delta = (out.astype(jnp.float32) * grad_out.astype(jnp.float32)).sum(-1).swapaxes(1, 2)
    q_bhtd, g_bhtd = _heads_major(q), _heads_major(grad_out)
    size = ring.size

    def hop(keys: Keys):
        grad_q, *grad_kv = ring.backend.backward(
            q_bhtd, keys.k, keys.v, query, keys.tokens, lse, delta, g_bhtd, scale=ring.scale, blocks=ring.blocks
        )
        return grad_q, tuple(grad_kv)

    def add_hop(grad_q, grad_kv, keys: Keys):
        def add():
            more_q, more_kv = hop(keys)
            return grad_q + more_q, jax.tree.map(jnp.add, grad_kv, more_kv)

        return lax.cond(any_visible(query, keys.tokens), add, lambda: (grad_q, grad_kv))

    def exchange_and_add(carry, _):
        keys, grad_q, grad_kv = carry
        coming, arrived = _send_on(keys, ring), _send_on(grad_kv, ring)
        return (coming, *add_hop(grad_q, arrived, keys)), None

    keys = Keys(_heads_major(k), _heads_major(v), key)
    if size == 1:
        grad_q, grad_kv = hop(keys)
    else:
        coming = _send_on(keys, ring)
        grad_q, grad_kv = hop(keys)
        (keys, grad_q, grad_kv), _ = lax.scan(exchange_and_add, (coming, grad_q, grad_kv), length=size - 2)
        grad_q, grad_kv = add_hop(grad_q, _send_on(grad_kv, ring), keys)
        grad_kv = _send_on(grad_kv, ring)
    grads = (_heads_major(x).astype(like.dtype) for x, like in zip((grad_q, *grad_kv), (q, k, v), strict=True))
    return *grads, None, None


attend.defvjp(_forward_and_save, _backward)


def _merge(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Attention over two disjoint sets of keys from attention over each."""
    (out_a, lse_a), (out_b, lse_b) = a, b
    lse = jnp.logaddexp(lse_a, lse_b)
    return out_a * jnp.exp(lse_a - lse)[..., None] + out_b * jnp.exp(lse_b - lse)[..., None], lse


def _send_on(arrays, ring: Ring):
    """Every shard hands its arrays to the next in the ring and receives those of the one before."""
    assert ring.axis_name is not None
    next_of = [(rank, (rank + 1) % ring.size) for rank in range(ring.size)]
    return jax.tree.map(lambda x: lax.ppermute(x, ring.axis_name, next_of), arrays)


def _heads_major(x: jax.Array) -> jax.Array:
    """[b, tokens, heads, d] <-> [b, heads, tokens, d]."""
    return x.swapaxes(1, 2)
