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
    """The frequencies of a config, with d = head_dim, f = factor and w_i = theta^(-2i / d), i = 0 .. d/2 - 1:

    none      w_i (Su et al. 2021, arXiv 2104.09864)
    linear    w_i / f: positions interpolated (Chen et al. 2023, arXiv 2306.15595)
    ntk       w_i of base theta f^(d / (d - 2)) (bloc97 2023; eq. 16 of arXiv 2309.00071). One base for every length:
              what `dynamic` scaling has at a length of f times the first. A model that is trained or compared at one
              length has no use for a base that changes while it reads.
    yarn      NTK by parts, and a temperature: eq. 17-23 of arXiv 2309.00071, see `_yarn`
    llama3    by parts, blended in the number of turns: section 3.4.1 of arXiv 2407.21783, see `_llama3`
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    theta, magnitude = config.theta, 1.0
    if config.scaling == "ntk":
        theta = ntk_base(config, head_dim)
    frequencies = theta**-exponents
    if config.scaling == "linear":
        frequencies = frequencies / config.factor
    if config.scaling == "yarn":
        frequencies = _yarn(frequencies, config, head_dim)
        magnitude = config.attention_factor or 0.1 * math.log(config.factor) + 1.0
    if config.scaling == "llama3":
        frequencies = _llama3(frequencies, config)
    return Rope(jnp.asarray(frequencies, jnp.float32), jnp.asarray(magnitude, jnp.float32))


def ntk_base(config: RopeConfig, head_dim: int) -> float:
    """The base with which the slowest pair is stretched by factor and the fastest not at all."""
    return config.theta * config.factor ** (head_dim / (head_dim - 2))


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


def _llama3(frequencies: np.ndarray, config: RopeConfig) -> np.ndarray:
    """Pairs with at most `low_frequency_factor` turns in the first context are slowed by factor, those with at least
    `high_frequency_factor` stay, and those between are blended by their turns."""
    turns = config.original_length * frequencies / (2 * math.pi)
    low, high = config.low_frequency_factor, config.high_frequency_factor
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return frequencies * (kept + (1 - kept) / config.factor)
