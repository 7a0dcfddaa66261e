"""Rotary positions: a vector of frequencies computed from a RopeConfig, and the rotation of queries and keys.

The frequencies are an argument of the model, not a part of it: the same weights run under another theta without another
compilation, which is how a stage is compared with the one before it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ringworld.model.config import RopeConfig


class Rope(NamedTuple):
    """frequencies: float32 [head_dim / 2], radians per token. magnitude: float32 scalar on cosines and sines (yarn)."""

    frequencies: jax.Array
    magnitude: jax.Array


def make_rope(config: RopeConfig, head_dim: int) -> Rope:
    """The frequencies of a config: theta^(-2i / head_dim), stretched as `config.scaling` says."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    theta, magnitude = config.theta, 1.0
    if config.scaling == "ntk":
        # One base for all pairs, so that the slowest pair is stretched by factor and the fastest not at all.
        theta *= config.factor ** (head_dim / (head_dim - 2))
    frequencies = theta**-exponents
    if config.scaling == "linear":
        frequencies = frequencies / config.factor
    if config.scaling == "yarn":
        frequencies = _yarn(frequencies, config, head_dim)
        magnitude = 0.1 * math.log(config.factor) + 1.0
    return Rope(jnp.asarray(frequencies, jnp.float32), jnp.asarray(magnitude, jnp.float32))


def rotate(x: jax.Array, positions: jax.Array, rope: Rope) -> jax.Array:
    """Rotate the halves of the last axis of x [batch, tokens, heads, head_dim] by positions [batch, tokens].

    Angles are float32 whatever x is: at position 1M a bf16 angle is off by whole turns. The pairing is (i, i + half),
    the one of Llama in transformers.
    """
    angles = positions.astype(jnp.float32)[..., None] * rope.frequencies
    cosine = (jnp.cos(angles) * rope.magnitude)[:, :, None]
    sine = (jnp.sin(angles) * rope.magnitude)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1).astype(x.dtype)


def _yarn(frequencies: np.ndarray, config: RopeConfig, head_dim: int) -> np.ndarray:
    """YaRN's blend (eq. 17-23): pairs that turn often in the first context stay as they are, slow ones stretch."""

    def pair_of(turns: float) -> float:
        return head_dim * math.log(config.original_length / (turns * 2 * math.pi)) / (2 * math.log(config.theta))

    low = max(math.floor(pair_of(config.beta_fast)), 0)
    high = min(math.ceil(pair_of(config.beta_slow)), head_dim - 1)
    stretched = np.clip((np.arange(head_dim // 2) - low) / max(high - low, 1e-3), 0, 1)
    return frequencies * (1 - stretched) + frequencies / config.factor * stretched
