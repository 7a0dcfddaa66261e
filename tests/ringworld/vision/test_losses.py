"""What reconstructions cost, against NumPy, and the judge of patches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.errors import UserError
from ringworld.vision.judge import JudgeConfig, abstract_judge, bind_judge, init_judge
from ringworld.vision.losses import (
    PixelWeights,
    adaptive_weight,
    edge_loss,
    judged_loss,
    pixel_loss,
    psnr,
    spectral_loss,
)

RANDOM = np.random.default_rng(0)
MADE, WANTED = RANDOM.random((2, 3, 6, 8, 3)).astype(np.float32)


@pytest.mark.parametrize("width", [8, 7])
def test_frequencies_are_weighed_by_how_wrong_they_are(width):
    made, wanted = MADE[:, :, :width], WANTED[:, :, :width]
    size = np.abs(np.fft.fft2(made.astype(np.float64) - wanted, axes=(1, 2), norm="ortho"))
    expected = np.mean(size / size.max((1, 2), keepdims=True) * size**2)
    assert float(spectral_loss(made, wanted)) == pytest.approx(expected, rel=1e-5)
    # One wrong frequency counts as its square error does: its weight is 1.
    wave = 0.1 * np.cos(2 * np.pi * np.arange(8) / 8)[:, None].repeat(3, -1)[None, None].repeat(6, 1)
    assert float(spectral_loss(jnp.asarray(wave), jnp.zeros_like(wave))) == pytest.approx(np.mean(wave**2), rel=1e-5)


def test_edges_are_differences_between_neighbours():
    error = MADE.astype(np.float64) - WANTED
    expected = np.mean(np.abs(np.diff(error, axis=1))) + np.mean(np.abs(np.diff(error, axis=2)))
    assert float(edge_loss(MADE, WANTED)) == pytest.approx(expected, rel=1e-5)
    assert float(edge_loss(WANTED + 0.2, WANTED)) == pytest.approx(0, abs=1e-6)  # brighter, and as sharp


def test_the_loss_is_the_weighted_sum_of_its_parts():
    weights = PixelWeights(l1=0.5, l2=2.0, edge=3.0, spectral=0.25)
    total, parts = pixel_loss(weights, jnp.asarray(MADE), jnp.asarray(WANTED))
    error = MADE.astype(np.float64) - WANTED
    assert float(parts["l1"]) == pytest.approx(np.abs(error).mean(), rel=1e-5)
    assert float(parts["l2"]) == pytest.approx(np.square(error).mean(), rel=1e-5)
    expected = sum(getattr(weights, name) * float(part) for name, part in parts.items())
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert float(pixel_loss(weights, jnp.asarray(MADE), jnp.asarray(MADE))[0]) == 0


def test_psnr_is_of_each_picture_and_of_clipped_pixels():
    made = np.stack([WANTED[0] + 0.1, WANTED[1], np.full_like(WANTED[2], 7.0)])
    found = psnr(jnp.asarray(made), jnp.stack([*WANTED[:2], jnp.ones_like(WANTED[2])]))
    error = np.mean(np.square(np.minimum(made[0], 1) - WANTED[0]))
    np.testing.assert_allclose(found, [-10 * np.log10(error), 100, 100], rtol=1e-4)


def test_the_judge_is_paid_by_hinges_and_weighed_by_gradients():
    assert float(judged_loss(jnp.array([2.0, 0.5]), jnp.array([-3.0, 0.0]))) == pytest.approx(0.5 * (0.25 + 0.5))
    ten, five = jnp.full((2, 2), 5.0), jnp.full((2, 2), 2.5)
    assert float(adaptive_weight(ten, five)) == pytest.approx(2, rel=1e-5)
    assert float(adaptive_weight(ten, 0 * five)) == 1e4


def test_a_judge_scores_patches_of_each_picture_alone():
    config = JudgeConfig(4, 2)
    params = init_judge(config, 0)
    assert set(params) == set(abstract_judge(config))
    score = jax.jit(lambda params, pixels: bind_judge(config, params)(pixels))
    pixels = jnp.asarray(RANDOM.random((2, 16, 16, 3)), jnp.float32)
    scores = score(params, pixels)
    side = config.patches(16)
    assert scores.shape == (2, side, side, 1)
    np.testing.assert_allclose(score(params, pixels.at[0].set(0.0))[1], scores[1], atol=1e-6)
    assert not np.allclose(score(params, pixels.at[0].set(0.0))[0], scores[0])


@pytest.mark.parametrize(
    "made", [lambda: PixelWeights(l1=-1), lambda: PixelWeights(l1=0, l2=0), lambda: JudgeConfig(3)]
)
def test_weights_and_sizes_that_are_none_are_refused(made):
    with pytest.raises(UserError):
        made()
