"""The device's draws against a plain sort in float64, and against the probabilities that they promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringworld.errors import UserError
from ringworld.generate.sampling import GREEDY, Sampling, _narrowed, draw, knobs_of, likelihoods

narrowed = jax.jit(_narrowed)


def kept_by_sorting(logits: np.ndarray, top_k: int, top_p: float, min_p: float) -> set[int]:
    """The tokens that remain, by the definitions: one at a time, likeliest first."""
    order = np.argsort(-logits, kind="stable")[: top_k or None]
    p = np.exp(logits[order].astype(np.float64) - logits.max())
    p /= p.sum()
    kept, mass = set(), 0.0
    for token, share in zip(order.tolist(), p, strict=True):
        if kept and mass >= top_p:
            break
        mass += share
        if share >= min_p * p[0]:
            kept.add(token)
    return kept


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**32),
    top_k=st.integers(0, 60),
    top_p=st.one_of(st.just(1.0), st.just(0.0), st.floats(0.01, 0.999)),
    min_p=st.one_of(st.just(0.0), st.floats(0.001, 1.0)),
)
def test_what_is_left_out_is_what_sorting_leaves_out(seed, top_k, top_p, min_p):
    logits = np.random.default_rng(seed).normal(0, 3, (1, 50)).astype(np.float32)
    got = narrowed(jnp.asarray(logits), knobs_of([Sampling(1.0, top_k, top_p, min_p)]))
    assert set(np.flatnonzero(np.isfinite(np.asarray(got[0]))).tolist()) == kept_by_sorting(
        logits[0], top_k, top_p, min_p
    )


def test_draws_have_the_promised_probabilities():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    count = 4000
    rows = [Sampling(temperature=2.0, top_k=3, seed=seed) for seed in range(count)]
    drawn = np.asarray(draw(jnp.tile(logits, (count, 1)), jnp.full(count, 7), knobs_of(rows)))
    expected = np.sqrt([0.5, 0.3, 0.15])
    expected /= expected.sum()
    shares = np.bincount(drawn, minlength=4) / count
    assert shares[3] == 0
    np.testing.assert_allclose(shares[:3], expected, atol=4 * 0.5 / count**0.5)


def test_a_row_depends_on_its_seed_and_its_position_alone():
    logits = jnp.zeros((3, 1000))
    rows = [Sampling(seed=1), Sampling(seed=1), Sampling(seed=2)]
    first = np.asarray(draw(logits, jnp.array([5, 5, 5]), knobs_of(rows)))
    assert first[0] == first[1] != first[2]
    mixed = np.asarray(draw(logits[:2], jnp.array([5, 6]), knobs_of([rows[0], rows[0]])))
    assert mixed[0] == first[0] != mixed[1]
    far = [Sampling(seed=1), Sampling(seed=1 + 2**32), Sampling(seed=-1)]
    assert len(set(np.asarray(draw(logits, jnp.array([5, 5, 5]), knobs_of(far))).tolist())) == 3


@pytest.mark.parametrize("narrow", [GREEDY, Sampling(1.0, top_k=1), Sampling(1.0, top_p=0.0), Sampling(1.0, min_p=1.0)])
def test_what_leaves_one_token_draws_the_likeliest(narrow):
    logits = np.random.default_rng(0).normal(size=(4, 300)).astype(np.float32)
    drawn = np.asarray(draw(jnp.asarray(logits), jnp.arange(4), knobs_of([narrow, Sampling(5.0), narrow, narrow])))
    assert drawn[[0, 2, 3]].tolist() == logits.argmax(-1)[[0, 2, 3]].tolist()


def test_likelihoods_are_those_of_the_unchanged_distribution():
    logits = np.random.default_rng(0).normal(size=(2, 30)).astype(np.float32)
    found = likelihoods(jnp.asarray(logits), jnp.array([3, 4]), 40)
    logprobs = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    np.testing.assert_allclose(found.logprob, logprobs[[0, 1], [3, 4]], atol=1e-5)
    assert np.asarray(found.top_ids)[:, :5].tolist() == np.argsort(-logprobs, axis=-1)[:, :5].tolist()


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 1.1}, {"min_p": 2}, {"seed": 2**64}],
)
def test_knobs_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Sampling(**wrong)
