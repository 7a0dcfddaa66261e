"""3 x 3 convolutions with half to a third of the products, for processors, whose time goes into products.

Winograd's minimal filtering F(r, 3) (Lavin and Gray 2015, arXiv 1509.09308), as the Cook-Toom algorithm makes it: r
neighbouring results of r + 2 products instead of 3 r. Along the width r is 4: a picture becomes six pictures of a
quarter of the width, which are convolved along the height alone and put together again. Where there are many channels,
r is 2 along the height, and what is left are products of matrices; with few, those would be too small for full speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

FEW = 64  # channels, below which a convolution as it is takes less time
MANY = 256  # channels, from which the height is filtered too


@dataclass(frozen=True)
class Filtering:
    """F(r, 3): out [r] = results [r, p] @ ((weights [p, 3] @ w [3]) * (inputs [p, p] @ x [p])), with p = r + 2."""

    inputs: np.ndarray
    weights: np.ndarray
    results: np.ndarray


def filtering(points: Sequence[float]) -> Filtering:
    """The filtering that evaluates polynomials at these r + 1 points and at infinity."""
    at = np.array(points)
    size, count = len(at) - 1, len(at) + 1
    inputs, weights = np.zeros((count, count)), np.zeros((count, 3))
    for n, point in enumerate(at):
        others = np.delete(at, n)
        inputs[n, :-1] = np.poly(others)[::-1]
        weights[n] = point ** np.arange(3) / np.prod(point - others)
    inputs[-1], weights[-1, 2] = np.poly(at)[::-1], 1.0
    results = np.concatenate([at ** np.arange(size)[:, None], np.eye(size)[:, -1:]], axis=1)
    # Powers of two from the inputs to the weights: nothing is rounded, and what is multiplied is of one magnitude.
    scale = 2.0 ** np.round(np.log2(np.abs(inputs).sum(1)))[:, None]
    return Filtering(inputs / scale, weights * scale, results)


# With the usual points 0, 1, -1, 2, -2 the rounding errors of WIDTH would be twice as large.
WIDTH = filtering((0.0, 0.625, -0.625, 1.5, -1.5))
HEIGHT = filtering((0.0, 1.0, -1.0))
# Of a picture of twice the width, the six inputs of a filtering are only four columns: 1, 2, 2, 1 times.
_INPUTS_TWICE = WIDTH.inputs @ np.repeat(np.eye(4), (1, 2, 2, 1), axis=0)


def applies(x: jax.Array, weight: jax.Array) -> bool:
    """Whether it can filter [n, h, w, in] by this weight, and gains by it."""
    _, height, width, _ = x.shape
    fits = weight.shape[:2] == (3, 3) and x.dtype == jnp.float32 and width % 4 == 0 and height % 2 == 0
    return fits and height * width >= 256 and min(weight.shape[2:]) >= FEW


def convolve_winograd(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """[n, h, w, in] by [3, 3, in, out] with zeros around, and [out]: [n, h, w, out]; where it `applies`."""
    n, height, width, inputs = x.shape
    tiles = jnp.pad(x, ((0, 0), (0, 0), (1, 3), (0, 0))).reshape(n, height, -1, 4, inputs)
    columns = [tiles[:, :, :-1, k] for k in range(4)] + [tiles[:, :, 1:, k] for k in range(2)]
    by_height = _filtered_by_height if min(weight.shape[2:]) >= MANY else _convolved_by_height
    found = [
        by_height(picture, taps)
        for picture, taps in zip(_combined(WIDTH.inputs, columns), _by_width(weight), strict=True)
    ]
    return jnp.stack(_combined(WIDTH.results, found), axis=3).reshape(n, height, width, -1) + bias


def convolve_twice_winograd(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """`convolve_winograd` of x with every pixel four times: [n, h, w, in] to [n, 2 h, 2 w, out].

    Two of the three rows under a filter are the same row, so their weights are added up beforehand: a third of the
    larger picture's products is left.
    """
    n, height, width, inputs = x.shape
    tiles = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0))).reshape(n, height, -1, 2, inputs)
    columns = [tiles[:, :, part, k] for part in (slice(None, -1), slice(1, None)) for k in range(2)]
    pictures = _combined(_INPUTS_TWICE, columns)
    rows = []
    for merge, padding in ((((1, 0, 0), (0, 1, 1)), (1, 0)), (((1, 1, 0), (0, 0, 1)), (0, 1))):
        merged = [jnp.stack(_combined(np.array(merge), list(taps))) for taps in _by_width(weight)]
        found = [_convolved_by_height(*pair, padding) for pair in zip(pictures, merged, strict=True)]
        rows.append(jnp.stack(_combined(WIDTH.results, found), axis=3))
    return jnp.stack(rows, axis=2).reshape(n, 2 * height, 2 * width, -1) + bias


def _by_width(weight: jax.Array) -> list[jax.Array]:
    """[3, 3, in, out] to six of [3, in, out]."""
    return _combined(WIDTH.weights, [weight[:, j] for j in range(3)])


def _convolved_by_height(x: jax.Array, taps: jax.Array, padding: tuple[int, int] = (1, 1)) -> jax.Array:
    return lax.conv_general_dilated(
        x, taps[:, None], (1, 1), (padding, (0, 0)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _filtered_by_height(x: jax.Array, taps: jax.Array) -> jax.Array:
    n, height, width, inputs = x.shape
    pairs = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0))).reshape(n, -1, 2, width, inputs)
    rows = [pairs[:, part, k] for part in (slice(None, -1), slice(1, None)) for k in range(2)]
    found = [
        (row.reshape(-1, inputs) @ matrix).reshape(n, height // 2, width, -1)
        for row, matrix in zip(_combined(HEIGHT.inputs, rows), _combined(HEIGHT.weights, list(taps)), strict=True)
    ]
    return jnp.stack(_combined(HEIGHT.results, found), axis=2).reshape(n, height, width, -1)


def _combined(matrix: np.ndarray, parts: list[jax.Array]) -> list[jax.Array]:
    """The sums of parts that the rows of a matrix ask for."""
    rows = []
    for row in matrix:
        terms = [np.float32(factor) * part for factor, part in zip(row, parts, strict=True) if abs(factor) > 1e-12]
        rows.append(sum(terms[1:], terms[0]))
    return rows
