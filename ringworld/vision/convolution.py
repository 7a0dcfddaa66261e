"""Convolutions of pictures [n, height, width, channels] with zeros around them, in the dtype of the picture."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from ringworld.vision.winograd import applies, convolve_twice_winograd, convolve_winograd


def convolve(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """[n, h, w, in] by a weight [side, side, in, out] of odd side, and a bias [out]: [n, h, w, out]."""
    if applies(x, weight):
        return lax.platform_dependent(x, weight, bias, cpu=convolve_winograd, default=_convolve)
    return _convolve(x, weight, bias)


def convolve_twice(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """`convolve` of x with every pixel four times: [n, h, w, in] to [n, 2 h, 2 w, out]."""
    if applies(x, weight):
        return lax.platform_dependent(x, weight, bias, cpu=convolve_twice_winograd, default=_convolve_twice)
    return _convolve_twice(x, weight, bias)


def convolve_half(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """Every second of the columns and rows of `convolve`, from the second: [n, h, w, in] of even sides by a weight
    [3, 3, in, out] to [n, h / 2, w / 2, out]."""
    return _strided(x, weight, bias, 2, ((0, 1), (0, 1)))


def _convolve(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    return _strided(x, weight, bias, 1, "SAME")


def _convolve_twice(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    n, height, width, channels = x.shape
    twice = jnp.broadcast_to(x[:, :, None, :, None], (n, height, 2, width, 2, channels))
    return _convolve(twice.reshape(n, 2 * height, 2 * width, channels), weight, bias)


def _strided(
    x: jax.Array, weight: jax.Array, bias: jax.Array, stride: int, padding: str | tuple[tuple[int, int], ...]
) -> jax.Array:
    out = lax.conv_general_dilated(
        x, weight.astype(x.dtype), (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return out + bias.astype(x.dtype)
