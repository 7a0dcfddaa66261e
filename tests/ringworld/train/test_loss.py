"""The chunked loss against the whole logits in float64, on one device and on sharded vocabularies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.mesh import make_mesh, parse_mesh
from ringworld.train import loss
from ringworld.train.loss import cross_entropy, score_tokens
from tests.thorough import thorough

B, S, D, V = 4, 24, 16, 40
MESHES = ["fsdp=1", "tensor=2,ring=2", thorough("fsdp=2,ring=2,ulysses=2"), thorough("data=2,tensor=4")]


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    hidden, head = rng.standard_normal((B, S, D)), rng.standard_normal((D, V))
    targets, weights = rng.integers(0, V, (B, S)), rng.random((B, S)) * (rng.random((B, S)) > 0.3)
    return tuple(np.asarray(a, t) for a, t in zip((hidden, head, targets, weights), "ffif", strict=True))


def by_hand(hidden, head, targets, weights):
    """Loss of each token, and the gradients of the weighted sum, in float64."""
    logits = hidden.astype(np.float64) @ head.astype(np.float64)
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    probability = shifted / shifted.sum(-1, keepdims=True)
    losses = -np.log(np.take_along_axis(probability, targets[..., None], -1)[..., 0])
    d_logits = (probability - np.eye(V)[targets]) * weights[..., None]
    return losses, d_logits @ head.T, np.einsum("bsd,bsv->dv", hidden, d_logits), logits


def sharded(text):
    count = int(np.prod([int(part.split("=")[1]) for part in text.split(",")]))
    return make_mesh(parse_mesh(text), jax.devices()[:count])


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("chunk", [5, 1024])
def test_loss_and_gradients_equal_those_of_the_whole_logits(case, mesh, chunk):
    losses, d_hidden, d_head, _ = by_hand(*case)
    hidden, head, targets, weights = map(jnp.asarray, case)

    def loss(hidden, head):
        return 3.0 * cross_entropy(hidden, (head,), targets, weights, mesh=sharded(mesh), chunk=chunk).sum()

    value, (got_hidden, got_head) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(hidden, head)
    np.testing.assert_allclose(value, 3 * (losses * case[3]).sum(), rtol=1e-5)
    np.testing.assert_allclose(got_hidden, 3 * d_hidden, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got_head, 3 * d_head, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mesh", MESHES)
def test_scores_are_each_tokens_loss_and_whether_it_is_the_likeliest(case, mesh):
    losses, _, _, logits = by_hand(*case)
    best = logits.argmax(-1)
    targets = np.where(np.arange(S) % 2, best, case[2]).astype(np.int32)
    losses = by_hand(case[0], case[1], targets, case[3])[0]
    hidden, head = map(jnp.asarray, case[:2])
    scores = score_tokens(hidden, (head,), jnp.asarray(targets), mesh=sharded(mesh), chunk=7)
    np.testing.assert_allclose(scores.loss, losses, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(scores.hit, targets == best)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_target_is_compared_with_its_own_vocabulary_alone(case, mesh):
    """Two vocabularies by hand: each target's loss over its own columns, its gradient in these alone."""
    hidden, head, targets, weights = case
    first = 24
    seen = targets >= first
    halves = (head[:, :first], head[:, first:])
    expected = np.zeros(2)
    d_hidden, d_heads = np.zeros(hidden.shape), []
    for which, (half, here) in enumerate(zip(halves, (~seen, seen), strict=True)):
        own = np.where(here, targets - which * first, 0)
        logits = hidden.astype(np.float64) @ half
        probability = np.exp(logits - logits.max(-1, keepdims=True))
        probability /= probability.sum(-1, keepdims=True)
        counted = np.where(here, weights, 0)[..., None]
        truth = np.eye(half.shape[1])[own]
        expected[which] = -(np.log((probability * truth).sum(-1, keepdims=True)) * counted).sum()
        d_logits = (probability - truth) * counted
        d_hidden += d_logits @ half.T
        d_heads.append(np.einsum("bsd,bsv->dv", hidden, d_logits))

    def loss(hidden, heads):
        parts = cross_entropy(hidden, heads, jnp.asarray(targets), jnp.asarray(weights), mesh=sharded(mesh), chunk=5)
        return parts.sum(), parts

    arrays = jnp.asarray(hidden), tuple(map(jnp.asarray, halves))
    (_, parts), (got_hidden, got_heads) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(*arrays)
    np.testing.assert_allclose(parts, expected, rtol=1e-5)
    np.testing.assert_allclose(got_hidden, d_hidden, rtol=1e-4, atol=1e-5)
    for got, d_head in zip(got_heads, d_heads, strict=True):
        np.testing.assert_allclose(got, d_head, rtol=1e-4, atol=1e-5)
    scores = score_tokens(*arrays, jnp.asarray(targets), mesh=sharded(mesh), chunk=7)
    np.testing.assert_allclose([(scores.loss * weights)[here].sum() for here in (~seen, seen)], expected, rtol=1e-5)


def test_chunks_of_which_nothing_counts_cost_no_product(case):
    """Whole rows of weight 0 with hidden states that would poison any product they took part in."""
    hidden, head, targets, weights = (np.array(array) for array in case)
    hidden[1:], weights[1:] = np.nan, 0
    arrays = tuple(map(jnp.asarray, (hidden, head, targets, weights)))

    def loss(hidden, head):
        return cross_entropy(hidden, (head,), *arrays[2:], mesh=sharded("fsdp=1"), chunk=S).sum()

    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*arrays[:2])
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("mesh", MESHES)
def test_what_is_not_asked_for_has_no_score(case, mesh):
    hidden, head, targets = map(jnp.asarray, case[:3])
    asked = np.broadcast_to(np.arange(S) < 2, targets.shape)
    whole = score_tokens(hidden, (head,), targets, mesh=sharded(mesh), chunk=4)
    scores = score_tokens(hidden, (head,), jnp.where(asked, targets, -1), mesh=sharded(mesh), chunk=4)
    np.testing.assert_allclose(scores.loss, np.where(asked, whole.loss, 0), rtol=1e-6)
    np.testing.assert_array_equal(scores.hit, np.where(asked, whole.hit, False))


def test_chunks_of_which_nothing_is_asked_cost_no_product(case, monkeypatch):
    hidden, head, targets = map(jnp.asarray, case[:3])
    made, logits = [], loss._logits

    def counted(x, head):
        jax.debug.callback(lambda: made.append(len(x)))
        return logits(x, head)

    monkeypatch.setattr(loss, "_logits", counted)
    asked = jnp.where(np.arange(S) < 2, targets, -1)
    score_tokens(hidden, (head,), asked, mesh=sharded("fsdp=1"), chunk=4)
    jax.effects_barrier()
    assert made == [4] * B  # a chunk of each row


def test_a_tie_is_no_hit():
    hidden, head = jnp.zeros((1, 2, 4)), jnp.zeros((4, 8))
    scores = score_tokens(hidden, (head,), jnp.zeros((1, 2), jnp.int32), mesh=sharded("fsdp=1"))
    assert not scores.hit.any()


def test_the_logits_of_a_whole_row_never_exist(case):
    hidden, head, targets, weights = map(jnp.asarray, case)

    def loss(hidden):
        return cross_entropy(hidden, (head,), targets, weights, mesh=sharded("fsdp=1"), chunk=8).sum()

    text = str(jax.make_jaxpr(jax.grad(loss))(hidden))
    assert f"[8,{V}]" in text
    assert f"[{B * S},{V}]" not in text
    assert f"[{B},{S},{V}]" not in text
