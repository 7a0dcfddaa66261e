"""Logits to tokens, on the device: temperature, top-k, top-p and min-p, each row by its own knobs and its own seed.

The random number of a row is a function of its seed and of the position of the token it draws, so a request's output
does not depend on its neighbours, its slot or when it came. Top-k and top-p need the value at which a sorted row would
be cut, not the sorted row: it is found bit by bit, in 32 counts over the row, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ringworld.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How a request draws its tokens.

    temperature  what logits are divided by; 0 is greedy
    top_k        only the k likeliest tokens; 0: all
    top_p        only the likeliest tokens that together have this probability; at least one (Holtzman et al. 2019)
    min_p        only tokens with this share of the likeliest one's probability (Nguyen et al. 2024, arXiv:2407.01082)
    seed         any 64-bit integer

    Tokens that are equally likely are kept or dropped together.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and 0 <= self.temperature <= 100):
            raise UserError(f"temperature={self.temperature}: from 0 (greedy) to 100")
        if not 0 <= self.top_k < 2**31:
            raise UserError(f"top_k={self.top_k}: 0 (all tokens) or a number of tokens")
        if not 0 <= self.top_p <= 1:
            raise UserError(f"top_p={self.top_p}: a probability from 0 to 1 (all tokens)")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p={self.min_p}: a share from 0 (all tokens) to 1")
        if not -(2**63) <= self.seed < 2**64:
            raise UserError(f"seed={self.seed}: an integer of at most 64 bits")


GREEDY = Sampling(temperature=0.0)


class Knobs(NamedTuple):
    """The Sampling of each row: float32 or int32 [rows]; seed uint32 [rows, 2]."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    seed: jax.Array


def knobs_of(rows: Sequence[Sampling]) -> Knobs:
    """The knobs of so many requests, as numpy arrays."""
    seeds = [row.seed % 2**64 for row in rows]
    return Knobs(
        np.array([row.temperature for row in rows], np.float32),  # type: ignore[arg-type]
        np.array([row.top_k for row in rows], np.int32),  # type: ignore[arg-type]
        np.array([row.top_p for row in rows], np.float32),  # type: ignore[arg-type]
        np.array([row.min_p for row in rows], np.float32),  # type: ignore[arg-type]
        np.array([(seed >> 32, seed & 0xFFFFFFFF) for seed in seeds], np.uint32),  # type: ignore[arg-type]
    )


def draw(logits: jax.Array, positions: jax.Array, knobs: Knobs) -> jax.Array:
    """One token a row, int32 [rows]: logits float32 [rows, vocabulary], positions int32 [rows] of the tokens drawn."""
    likeliest = jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def drawn() -> jax.Array:
        kept = lax.cond(
            _narrows(knobs), lambda: _narrowed(_scaled(logits, knobs), knobs), lambda: _scaled(logits, knobs)
        )
        noise = jax.vmap(_gumbel, in_axes=(0, 0, None))(knobs.seed, positions, logits.shape[-1])
        return jnp.where(knobs.temperature > 0, jnp.argmax(kept + noise, axis=-1).astype(jnp.int32), likeliest)

    return lax.cond((knobs.temperature > 0).any(), drawn, lambda: likeliest)


class Likelihoods(NamedTuple):
    """Of each row: the natural log-probability of one token, and the likeliest tokens with theirs, best first.

    Of the model's own distribution, at temperature 1. logprob float32 [rows], top_ids int32 and top_logprobs float32
    [rows, most].
    """

    logprob: jax.Array
    top_ids: jax.Array
    top_logprobs: jax.Array


def likelihoods(logits: jax.Array, tokens: jax.Array, most: int) -> Likelihoods:
    """How likely tokens [rows] were under logits [rows, vocabulary], and the `most` likeliest."""
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    top, ids = lax.top_k(logprobs, min(most, logits.shape[-1]))
    of_token = jnp.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]
    return Likelihoods(of_token, ids.astype(jnp.int32), top)


def _narrows(knobs: Knobs) -> jax.Array:
    return ((knobs.temperature > 0) & ((knobs.top_k > 0) | (knobs.top_p < 1) | (knobs.min_p > 0))).any()


def _scaled(logits: jax.Array, knobs: Knobs) -> jax.Array:
    return logits / jnp.where(knobs.temperature > 0, knobs.temperature, 1)[:, None]


def _narrowed(logits: jax.Array, knobs: Knobs) -> jax.Array:
    """Logits with -inf for the tokens that top-k, then top-p, then min-p leave out."""
    vocabulary = logits.shape[-1]
    rank = _ordered(logits)
    k = jnp.where(knobs.top_k > 0, jnp.minimum(knobs.top_k, vocabulary), vocabulary)
    kept = rank >= _cut(rank, lambda these: these.sum(-1, dtype=jnp.int32) >= k)[:, None]
    p = jax.nn.softmax(jnp.where(kept, logits, -jnp.inf), axis=-1)
    # The sum of all may fall short of 1 by rounding: then the cut is at 0, where it belongs.
    within = rank >= _cut(rank, lambda these: jnp.where(these, p, 0).sum(-1) >= knobs.top_p)[:, None]
    likeliest = rank == rank.max(-1, keepdims=True)
    kept &= within | (knobs.top_p >= 1)[:, None]
    kept &= p >= knobs.min_p[:, None] * p.max(-1, keepdims=True)
    return jnp.where(kept | likeliest, logits, -jnp.inf)


def _cut(rank: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The greatest uint32 c of each row for which the entries with rank >= c are enough; 0 where none is."""

    def step(n: jax.Array, cut: jax.Array) -> jax.Array:
        higher = cut | (jnp.uint32(1) << (31 - n).astype(jnp.uint32))
        return jnp.where(enough(rank >= higher[:, None]), higher, cut)

    return lax.fori_loop(0, 32, step, jnp.zeros(rank.shape[0], jnp.uint32))


def _ordered(x: jax.Array) -> jax.Array:
    """uint32 in the order of float32 x."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31, ~bits, bits | jnp.uint32(1 << 31))


def _gumbel(seed: jax.Array, position: jax.Array, vocabulary: int) -> jax.Array:
    key = jax.random.wrap_key_data(seed, impl="threefry2x32")
    return jax.random.gumbel(jax.random.fold_in(key, position), (vocabulary,), jnp.float32)
