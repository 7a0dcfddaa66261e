"""Filtered convolutions are the plain ones, computed with fewer products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.vision.convolution import convolve, convolve_half, convolve_twice
from ringworld.vision.winograd import FEW, MANY, applies, convolve_twice_winograd, convolve_winograd, filtering


def plain(x, weight, bias):
    """By the definition, in float64: zeros around, a sum over the nine places."""
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    _, height, width, _ = x.shape
    around = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    places = [around[:, i : i + height, j : j + width] @ weight[i, j] for i in range(3) for j in range(3)]
    return sum(places) + np.asarray(bias, np.float64)


def case(inputs, outputs, height=16, width=16, n=2):
    random = np.random.default_rng(inputs + outputs)
    x, bias = random.normal(size=(n, height, width, inputs)), random.normal(size=outputs)
    weight = random.normal(size=(3, 3, inputs, outputs)) * (9 * inputs) ** -0.5
    return [jnp.asarray(array, jnp.float32) for array in (x, weight, bias)]


# Few channels filter the width alone, many the height too; a height and a width that are no powers of two.
@pytest.mark.parametrize(("inputs", "outputs", "height", "width"), [(FEW, 80, 16, 16), (MANY, MANY, 18, 20)])
def test_a_filtered_convolution_is_the_plain_one(inputs, outputs, height, width):
    x, weight, bias = case(inputs, outputs, height, width)
    assert applies(x, weight)
    np.testing.assert_allclose(jax.jit(convolve_winograd)(x, weight, bias), plain(x, weight, bias), atol=2e-5)


def test_one_of_twice_the_sides_is_the_plain_one_of_pixels_four_times():
    x, weight, bias = case(FEW, FEW, 16, 20)
    larger = np.repeat(np.repeat(x, 2, axis=1), 2, axis=2)
    np.testing.assert_allclose(
        jax.jit(convolve_twice_winograd)(x, weight, bias), plain(larger, weight, bias), atol=2e-5
    )


def test_one_of_half_the_sides_is_every_second_row_and_column():
    x, weight, bias = case(5, 7, 8, 12)
    np.testing.assert_allclose(convolve_half(x, weight, bias), plain(x, weight, bias)[:, 1::2, 1::2], atol=2e-5)


# Where filtering does not apply: few channels, small pictures, odd widths. bfloat16 is not filtered either.
@pytest.mark.parametrize(("channels", "height", "width"), [(8, 16, 16), (FEW, 8, 8), (FEW, 16, 18)])
def test_every_size_and_gradient_is_that_of_the_plain_convolution(channels, height, width):
    x, weight, bias = case(channels, channels, height, width)
    assert not applies(x, weight)
    assert not applies(case(FEW, FEW)[0].astype(jnp.bfloat16), case(FEW, FEW)[1])
    np.testing.assert_allclose(convolve(x, weight, bias), plain(x, weight, bias), atol=2e-5)
    larger = np.repeat(np.repeat(x, 2, axis=1), 2, axis=2)
    np.testing.assert_allclose(convolve_twice(x, weight, bias), plain(larger, weight, bias), atol=2e-5)


@pytest.mark.parametrize("ours", [convolve, convolve_twice])
def test_gradients_of_a_filtered_convolution_are_those_of_its_sums(ours):
    """The convolution is linear in x and in the weight: <g, f(x, w)> = <df/dx g, x> = <df/dw g, w>, without a bias."""
    x, weight, bias = case(FEW, FEW, n=1)
    shape = jax.eval_shape(ours, x, weight, bias).shape
    g = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)

    @jax.jit
    def pulled(x, weight, bias):
        out, pull = jax.vjp(ours, x, weight, bias)
        return out, pull(g)

    out, (by_x, by_weight, by_bias) = pulled(x, weight, 0 * bias)
    expected = float(jnp.vdot(g, out))
    assert float(jnp.vdot(by_x, x)) == pytest.approx(expected, rel=1e-3)
    assert float(jnp.vdot(by_weight, weight)) == pytest.approx(expected, rel=1e-3)
    np.testing.assert_allclose(by_bias, g.sum((0, 1, 2)), rtol=1e-4)


def test_a_filtering_of_any_points_is_exact():
    for points in ((0.0, 1.0, -1.0), (0.0, 0.5, -0.5, 1.5, -1.5)):
        made, size = filtering(points), len(points) - 1
        random = np.random.default_rng(0)
        x, w = random.normal(size=size + 2), random.normal(size=3)
        assert made.inputs.shape == (size + 2, size + 2)
        np.testing.assert_allclose(
            made.results @ ((made.weights @ w) * (made.inputs @ x)), np.correlate(x, w, "valid"), atol=1e-12
        )
