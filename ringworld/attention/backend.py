"""What every block backend shares: how scores are made, how a shard is cut, and the two functions it offers.

A backend is a module with `default_blocks`, `forward` and `backward` as `BlockBackend` states them. Arrays are
heads-major, so that a block of one head is contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import jax

from ringworld.attention.mask import EVERYTHING, Rule, Tokens

# Stands for the logarithm of zero: finite, so that differences of two of them are not NaN.
NOTHING = -1e30


@dataclass(frozen=True)
class Scoring:
    """How a score is made of a query and a key that sees it.

    scale: what the product of the two is multiplied by, positive.
    soft_cap: scores are squeezed to soft_cap * tanh(score / soft_cap) (Gemma 2, arXiv:2408.00118); None: they are not.
    rule: which keys count.
    """

    scale: float
    soft_cap: float | None = None
    rule: Rule = EVERYTHING


@dataclass(frozen=True)
class Blocks:
    """How a shard is cut: tokens in a block of queries and of keys, and the key heads that one step computes."""

    queries: int
    keys: int
    heads: int = 1


class BlockBackend(Protocol):
    """Attention of a shard of queries over a shard of keys, and its gradient. b batch, h heads, n kv_heads, t query
    tokens, s key tokens, d head_dim; h is a multiple of n."""

    def default_blocks(
        self, *, queries: int, keys: int, heads: int, kv_heads: int, head_dim: int, itemsize: int
    ) -> Blocks:
        """Good blocks for shards of so many tokens, never larger than they are. itemsize: bytes of an input number."""
        ...

    def forward(
        self,
        q_bhtd: jax.Array,
        k_bnsd: jax.Array,
        v_bnsd: jax.Array,
        query: Tokens,
        key: Tokens,
        *,
        scoring: Scoring,
        blocks: Blocks,
    ) -> tuple[jax.Array, jax.Array]:
        """Attention over these keys alone.

        q [b, h, t, d], k and v [b, n, s, d] of one float dtype; query [b, t], key [b, s].
        Returns out float32 [b, h, t, d] and the natural log-sum-exp of the visible scores, float32 [b, h, t]. A query
        that sees no key has out 0 and log-sum-exp NOTHING.
        """
        ...

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
        scoring: Scoring,
        blocks: Blocks,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """These keys' share of the gradient: float32 grad_q [b, h, t, d], grad_k and grad_v [b, n, s, d].

        log_sum_exp and delta = sum(out * grad_out) are float32 [b, h, t], both over **all** keys of the sequence,
        wherever they are; grad_out has q's shape and dtype. With these a shard's share of the gradient is exact on its
        own (FlashAttention-2, arXiv:2307.08691, section 3.1), and a ring adds up shares.
        """
        ...
