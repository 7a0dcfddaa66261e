"""The codebook: the nearest code, the gradient past it, usage, restarts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.vision.codebook import nearest, perplexity, restarted, straight_through, usage_of

CODES = jnp.asarray(np.random.default_rng(0).normal(size=(20, 5)), jnp.float32)
LATENTS = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 4, 5)), jnp.float32)


def test_the_nearest_code_is_the_one_at_the_least_distance():
    distances = np.linalg.norm(np.asarray(LATENTS)[..., None, :] - np.asarray(CODES), axis=-1)
    chosen = nearest(LATENTS, CODES)
    assert chosen.dtype == jnp.int32
    np.testing.assert_array_equal(chosen, distances.argmin(-1))
    equal = jnp.concatenate([CODES, CODES])
    np.testing.assert_array_equal(nearest(LATENTS, equal), chosen)  # the first of equals
    np.testing.assert_array_equal(nearest(CODES.astype(jnp.bfloat16), CODES), np.arange(20))


def test_the_gradient_goes_past_the_codebook_as_it_is():
    chosen = nearest(LATENTS, CODES)
    vectors, pull = jax.vjp(lambda z, e: straight_through(z, e, chosen)[0], LATENTS, CODES)
    np.testing.assert_allclose(vectors, CODES[chosen], atol=1e-6)
    g = jnp.arange(LATENTS.size, dtype=jnp.float32).reshape(LATENTS.shape)
    to_latents, to_codes = pull(g)
    np.testing.assert_array_equal(to_latents, g)
    assert not to_codes.any()


def test_one_loss_moves_the_codes_and_the_other_the_latents():
    chosen = nearest(LATENTS, CODES)

    def losses(z, e):
        return straight_through(z, e, chosen)[1:]

    (codebook, commitment), ((z1, e1), (z2, e2)) = losses(LATENTS, CODES), jax.jacobian(losses, (0, 1))(LATENTS, CODES)
    expected = np.mean(np.square(np.asarray(LATENTS) - np.asarray(CODES)[chosen]))
    assert float(codebook) == float(commitment) == pytest.approx(expected, rel=1e-5)
    assert not z1.any()
    assert not e2.any()
    difference = np.asarray(LATENTS - CODES[chosen])
    np.testing.assert_allclose(z2, 2 * difference / LATENTS.size, rtol=1e-5)
    pulled = np.zeros((20, 5))
    np.add.at(pulled, np.asarray(chosen).ravel(), -2 * difference.reshape(-1, 5) / LATENTS.size)
    np.testing.assert_allclose(e1, pulled, atol=1e-6)


def test_usage_is_in_equal_shares_and_perplexity_counts_codes():
    usage = usage_of(jnp.array([[0, 0], [3, 0]]), 4)
    np.testing.assert_allclose(usage, [3, 0, 0, 1])
    assert float(perplexity(usage)) == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))), rel=1e-5)
    assert float(perplexity(jnp.ones(512))) == pytest.approx(512, rel=1e-4)
    assert float(perplexity(jnp.zeros(7).at[2].set(5.0))) == pytest.approx(1)


def test_dead_codes_become_latents_and_others_stay():
    dead = jnp.arange(20) % 3 == 0
    new = restarted(jax.random.key(0), CODES, dead, LATENTS)
    np.testing.assert_array_equal(new[~dead], CODES[~dead])
    flat = np.asarray(LATENTS).reshape(-1, 5)
    away = np.linalg.norm(np.asarray(new)[np.asarray(dead), None] - flat, axis=-1).min(-1)
    assert (away < 0.1).all()
    assert len(np.unique(np.asarray(new), axis=0)) == 20  # those that drew one latent are not one code
    other = restarted(jax.random.key(1), CODES, dead, LATENTS)
    assert not np.array_equal(new, other)
