"""The network: shapes, its own names and sizes, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.errors import UserError
from ringworld.vision.codebook import nearest
from ringworld.vision.config import VQConfig, preset
from ringworld.vision.vqgan import CODES, Norm, abstract_params, bind, init_params
from tests.ringworld.vision.vqgans import SMALL, random_params


@jax.jit
def both_ways(params, pixels):
    model = bind(SMALL, params)
    latents, codes = model.latents(pixels), model.encode(pixels)
    return latents, codes, model.codes, model.decode(codes), model.decode(codes, jnp.bfloat16)


def test_pictures_become_a_grid_of_codes_and_codes_pictures():
    params = random_params()
    for height, width in ((16, 16), (8, 24)):
        pixels = jnp.asarray(np.random.default_rng(0).random((2, height, width, 3)), jnp.float32)
        latents, codes, vectors, made, half = both_ways(params, pixels)
        assert codes.shape == (2, height // 2, width // 2)
        assert codes.dtype == jnp.int32
        np.testing.assert_array_equal(codes, nearest(latents, vectors))
        assert made.shape == pixels.shape
        assert (made.dtype, half.dtype) == (jnp.float32, jnp.bfloat16)
        assert 0 < float(jnp.abs(made - half).mean()) < 0.05 * float(made.std())
        # A picture is its own affair: beside another one, it is encoded and decoded as before.
        other = both_ways(params, pixels.at[0].set(0.1))
        np.testing.assert_array_equal(other[1][1], codes[1])
        np.testing.assert_allclose(other[3][1], made[1], atol=1e-5)


def test_every_weight_takes_part():
    pixels = jnp.asarray(np.random.default_rng(0).random((1, 16, 16, 3)), jnp.float32)

    @jax.jit
    @jax.grad
    def gradient(params):
        model = bind(SMALL, params)
        z = model.latents(pixels)
        e = model.codes[nearest(z, model.codes)]
        return jnp.square(model.decoder.conv_out(model.features(e + z))).sum()

    found = gradient(random_params())
    assert set(found) == set(abstract_params(SMALL))
    assert all(np.abs(value).max() > 0 for value in found.values())


def test_a_norm_is_of_groups_of_channels_of_a_picture_alone():
    x = np.random.default_rng(0).normal(3, 2, (2, 4, 5, 12)).astype(np.float32)
    made = Norm(12, groups=3)(jnp.asarray(x))
    groups = x.astype(np.float64).reshape(2, 4, 5, 3, 4)
    mean, variance = (take(groups, axis=(1, 2, 4), keepdims=True) for take in (np.mean, np.var))
    normed = ((groups - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape)
    np.testing.assert_allclose(made, normed / (1 + np.exp(-normed)), atol=1e-5)


def test_fresh_weights_take_pixels_and_make_pixels_of_their_scale():
    @jax.jit
    def fresh():
        model = bind(SMALL, init_params(SMALL, 0))
        grey = model.encoder.conv_in(jnp.full((1, 16, 16, 3), 0.5))
        return grey, model.decode(jnp.zeros((1, 8, 8), jnp.int32)), model.codes

    grey, made, codes = fresh()
    assert np.abs(grey[:, 1:-1, 1:-1]).max() < 1e-5
    assert abs(float(made.mean()) - 0.5) < 0.3
    assert 0.01 < float(made.std()) < 2
    assert float(jnp.abs(codes).max()) <= 1 / SMALL.codebook


def test_presets_have_the_sizes_that_they_are_known_by():
    amused = preset("amused")
    assert (amused.factor, amused.grid, amused.codebook) == (16, 16, 8192)
    assert abstract_params(amused)[CODES].shape == (8192, 64)
    tiny = preset("tiny")
    assert (tiny.resolution, tiny.factor, tiny.grid) == (64, 16, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 17}, "resolution=17 is not a multiple of 2"),
        ({"channels": ()}, "channels=\\[\\]"),
        ({"channels": (8, 10)}, "10 is not a multiple of groups=4"),
        ({"codebook": 1}, "codebook=1"),
        ({"latent": 0}, "latent=0"),
    ],
)
def test_sizes_that_are_none_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        VQConfig(**vars(SMALL) | changes)


def test_pictures_of_other_sides_and_unknown_presets_are_refused():
    model = bind(SMALL, random_params())
    with pytest.raises(UserError, match="multiples of 2"):
        model.encode(jnp.zeros((1, 16, 17, 3)))
    with pytest.raises(UserError, match=r"'large': there are amused, tiny"):
        preset("large")
