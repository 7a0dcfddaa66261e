"""What a reconstruction costs: differences of pixels, edges and frequencies, and what a judge of patches says.

No network that was trained elsewhere takes part; edges and frequencies stand where others use one's features. Pictures
are float32 [n, height, width, 3] in 0..1; every loss is a float32 scalar.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ringworld.errors import UserError


@dataclass(frozen=True)
class PixelWeights:
    """How much each difference of pictures counts. With `spectral` and `edge` at 0, a plain VQ-VAE's loss is left."""

    l1: float = 1.0
    l2: float = 1.0
    edge: float = 1.0
    spectral: float = 1.0

    def __post_init__(self) -> None:
        if min(self.l1, self.l2, self.edge, self.spectral) < 0 or self.l1 + self.l2 <= 0:
            raise UserError(f"{self}: weights are 0 or more, and l1 or l2 is above 0")


def pixel_loss(weights: PixelWeights, made: jax.Array, wanted: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum, and its parts before weighing."""
    parts = {
        "l1": jnp.mean(jnp.abs(made - wanted)),
        "l2": jnp.mean(jnp.square(made - wanted)),
        "edge": edge_loss(made, wanted),
        "spectral": spectral_loss(made, wanted),
    }
    total = jnp.float32(0.0)
    for name, part in parts.items():
        total += getattr(weights, name) * part
    return total, parts


def edge_loss(made: jax.Array, wanted: jax.Array) -> jax.Array:
    """mean |d(made) - d(wanted)| of the differences d between neighbouring pixels, down and across.

    Blur costs it more than a change of brightness, which l1 and l2 weigh the other way. The gradient difference loss of
    Mathieu et al. 2015 (arXiv 1511.05440), with the signs of the differences, so that an edge the wrong way counts.
    """
    error = made - wanted
    return jnp.mean(jnp.abs(jnp.diff(error, axis=1))) + jnp.mean(jnp.abs(jnp.diff(error, axis=2)))


def spectral_loss(made: jax.Array, wanted: jax.Array) -> jax.Array:
    """mean w |F(made) - F(wanted)|^2 over frequencies of the orthonormal Fourier transform of each picture and channel.

    w is |F(made) - F(wanted)| over its largest value in the picture and channel, without gradient: the frequencies that
    are worst count most (focal frequency loss, Jiang et al. 2020, arXiv 2012.12821, with alpha 1).
    """
    difference = jnp.fft.rfft2(made - wanted, axes=(1, 2), norm="ortho")
    squared = jnp.square(difference.real) + jnp.square(difference.imag)
    size = jnp.sqrt(jax.lax.stop_gradient(squared))
    weight = size / jnp.maximum(size.max(axis=(1, 2), keepdims=True), 1e-12)
    # A real picture's spectrum is its own mirror: the columns left out are those between the first and the last again.
    width = made.shape[2]
    times = jnp.full(width // 2 + 1, 2.0).at[0].set(1.0)
    times = times.at[-1].set(1.0) if width % 2 == 0 else times
    return jnp.sum(weight * squared * times[:, None]) / made.size


def judged_loss(real: jax.Array, made: jax.Array) -> jax.Array:
    """The judge's hinge loss of its scores of real and of made patches (Lim and Ye 2017, arXiv 1705.02894)."""
    return 0.5 * (jnp.mean(jax.nn.relu(1.0 - real)) + jnp.mean(jax.nn.relu(1.0 + made)))


def adaptive_weight(pixel_gradient: jax.Array, judge_gradient: jax.Array) -> jax.Array:
    """|pixel gradient| / |judge's gradient| at the decoder's last weights, at most 1e4 (Esser et al. 2021, eq. 7)."""
    return jnp.clip(jnp.linalg.norm(pixel_gradient) / (jnp.linalg.norm(judge_gradient) + 1e-6), 0.0, 1e4)


def psnr(made: jax.Array, wanted: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio of each picture in dB, float32 [n], of pixels clipped to 0..1."""
    error = jnp.mean(jnp.square(jnp.clip(made, 0.0, 1.0) - wanted), axis=(1, 2, 3))
    return -10.0 * jnp.log10(jnp.maximum(error, 1e-10))
