"""The chunked loss against the whole logits in float64, on one device and on sharded vocabularies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.mesh import make_mesh, parse_mesh
from ringworld.train.loss import cross_entropy, score_tokens

B, S, D, V = 4, 24, 16, 40
MESHES = ["fsdp=1", "tensor=2,ring=2", "fsdp=2,ring=2,ulysses=2", "data=2,tensor=4"]


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
        return 3.0 * cross_entropy(hidden, head, targets, weights, mesh=sharded(mesh), chunk=chunk)

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
    scores = score_tokens(jnp.asarray(case[0]), jnp.asarray(case[1]), jnp.asarray(targets), mesh=sharded(mesh), chunk=7)
    np.testing.assert_allclose(scores.loss, losses, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(scores.hit, targets == best)


def test_a_tie_is_no_hit():
    hidden, head = jnp.zeros((1, 2, 4)), jnp.zeros((4, 8))
    scores = score_tokens(hidden, head, jnp.zeros((1, 2), jnp.int32), mesh=sharded("fsdp=1"))
    assert not scores.hit.any()


def test_the_logits_of_a_whole_row_never_exist(case):
    hidden, head, targets, weights = map(jnp.asarray, case)
    text = str(
        jax.make_jaxpr(jax.grad(lambda h: cross_entropy(h, head, targets, weights, mesh=sharded("fsdp=1"), chunk=8)))(
            hidden
        )
    )
    assert f"[8,{V}]" in text
    assert f"[{B * S},{V}]" not in text
    assert f"[{B},{S},{V}]" not in text
