"""The codebook: the nearest code, gradients past it, how much of it is used, and new vectors for codes that are not.

Usage is counted in units of an equal share: a code that is chosen as often as the average has usage 1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def nearest(latents: jax.Array, codes: jax.Array) -> jax.Array:
    """The code at the least Euclidean distance from each vector of [..., dim], int32 [...]; the first of equals.

    |z - e|^2 = |z|^2 + |e|^2 - 2 z e, of which the first term is the same for all codes. In float32.
    """
    z = latents.reshape(-1, latents.shape[-1]).astype(jnp.float32)
    product = jnp.matmul(z, codes.T, precision=lax.Precision.HIGHEST)
    distance = jnp.square(codes).sum(-1) - 2.0 * product
    return jnp.argmin(distance, axis=-1).astype(jnp.int32).reshape(latents.shape[:-1])


def straight_through(latents: jax.Array, codes: jax.Array, chosen: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The chosen codes' vectors, like latents, whose gradient goes to the latents as it is; and two losses, float32.

    The first moves codes to the latents that chose them, the second latents to their codes: mean squared distances
    (van den Oord et al. 2017, arXiv 1711.00937, equation 3).
    """
    z, e = latents.astype(jnp.float32), codes[chosen]
    codebook = jnp.mean(jnp.square(lax.stop_gradient(z) - e))
    commitment = jnp.mean(jnp.square(z - lax.stop_gradient(e)))
    return (z + lax.stop_gradient(e - z)).astype(latents.dtype), codebook, commitment


def usage_of(chosen: jax.Array, size: int) -> jax.Array:
    """How often each of `size` codes was chosen, in equal shares: float32 [size] of mean 1."""
    counts = jnp.zeros(size, jnp.float32).at[chosen.reshape(-1)].add(1.0)
    return counts * (size / chosen.size)


def perplexity(usage: jax.Array) -> jax.Array:
    """The number of codes that, chosen equally often, would have the entropy of this usage: 1 to its size."""
    share = usage / jnp.maximum(usage.sum(), 1e-12)
    return jnp.exp(-jnp.sum(share * jnp.log(jnp.maximum(share, 1e-12))))


def restarted(key: jax.Array, codes: jax.Array, dead: jax.Array, latents: jax.Array) -> jax.Array:
    """The codes [size, dim], where dead [size] with the vectors of latents [..., dim] drawn at random instead (Dhariwal
    et al. 2020, arXiv 2005.00341).

    A hundredth of the latents' spread is added as noise, so that codes that drew the same latent part ways.
    """
    draw, shake = jax.random.split(key)
    z = latents.reshape(-1, latents.shape[-1]).astype(jnp.float32)
    drawn = z[jax.random.randint(draw, codes.shape[:1], 0, len(z))]
    drawn += 0.01 * z.std(0) * jax.random.normal(shake, drawn.shape)
    return jnp.where(dead[:, None], drawn, codes)
