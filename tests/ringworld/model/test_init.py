"""Fresh weights: normal ones, and mimetic ones, from which copying is learned in a few steps."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.mesh import MeshSpec, make_mesh
from ringworld.model.config import ModelConfig, RopeConfig
from ringworld.model.init import MARGIN, init_params, look_back
from ringworld.model.llama import abstract_params
from ringworld.model.rope import make_rope, rotate
from ringworld.train.recipe import OptimizerConfig, TrainOptions, TrainRecipe
from ringworld.train.step import Arrays, TrainStep

MIMETIC = ModelConfig(64, 2, 128, 4, 4, 32, 64, tied_embeddings=True, qkv_biases=True, init="mimetic")
KEY = jax.random.key(3)


def test_normal_weights_have_the_deviation_of_gpt_2():
    config = replace(MIMETIC, init="normal", num_layers=8)
    params = init_params(config, KEY)
    assert np.std(params["embedding"]) == pytest.approx(0.02, rel=0.05)
    assert np.std(params["layers"]["attention"]["query"]) == pytest.approx(0.02, rel=0.05)
    assert np.std(params["layers"]["attention"]["output"]) == pytest.approx(0.02 / 4, rel=0.05)
    assert not np.any(params["layers"]["attention"]["query_bias"])


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("biases", [True, False])
def test_mimetic_weights_hand_on_what_they_attend_to_and_attend_to_their_like(kv_heads, biases):
    config = replace(MIMETIC, num_layers=3, num_kv_heads=kv_heads, qkv_biases=biases, head_norms=biases)
    params = init_params(config, KEY)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract_params(config))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == shapes
    weights = {name: np.asarray(leaf, np.float64) for name, leaf in params["layers"]["attention"].items()}
    group = 4 // kv_heads
    for layer in range(3):
        value = weights["value"][layer].reshape(128, -1)
        np.testing.assert_allclose(value.T @ value, np.eye(value.shape[1]), atol=1e-5)
        handed = sum(weights["value"][layer][:, h // group] @ weights["output"][layer][h] for h in range(4))
        np.testing.assert_allclose(handed, value @ value.T, atol=1e-5)  # a projection: what is attended to, itself
        alike = [np.array_equal(weights["query"][layer][:, h], weights["key"][layer][:, h // group]) for h in range(4)]
        assert alike == [layer > 0] * 4


def test_what_embeds_has_the_size_of_a_unit_vector_and_heads_are_small():
    config = replace(MIMETIC, tied_embeddings=False, vision_vocabulary=80)
    params = init_params(config, KEY)
    for part in (params, params["vision"]):
        assert np.std(part["embedding"]) == pytest.approx(128**-0.5, rel=0.05)
        assert np.std(part["head"]) == pytest.approx(0.02, rel=0.05)


def test_heads_of_more_columns_than_the_model_has_dimensions_have_orthonormal_rows():
    value = init_params(replace(MIMETIC, embed_dim=96), KEY)["layers"]["attention"]["value"][0].reshape(96, 128)
    np.testing.assert_allclose(value @ value.T, np.eye(96), atol=1e-5)


@pytest.mark.parametrize("theta", [1e4, 2.5e6])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_half_of_the_heads_look_back(theta, kv_heads):
    config = replace(MIMETIC, num_kv_heads=kv_heads, rope=RopeConfig(theta))
    queries, keys = look_back(config)
    positions, rope = jnp.arange(64)[None], make_rope(config.rope, 32)
    q, k = (rotate(jnp.broadcast_to(bias, (1, 64, *bias.shape)), positions, rope)[0] for bias in (queries, keys))
    group = 4 // kv_heads
    backwards = max(1, kv_heads // 2) * group
    for head in range(4):
        scores = np.asarray(q[-1, head] @ k[:, head // group].T) / np.sqrt(32)  # of the last token, to all before
        if head >= backwards:
            assert not scores.any()
            continue
        best = 63 - (head + 1)
        assert scores.argmax() == best
        np.testing.assert_allclose(scores[best] - scores[[best - 1, best + 1]], MARGIN, rtol=1e-3)


def loss_after(steps: int, config: ModelConfig) -> float:
    """Nats a token on the second half of rows that say 16 random tokens twice, after so many steps on such rows."""
    recipe = TrainRecipe(config, 32, 512, steps, OptimizerConfig(1e-2, warmup_steps=5))
    training = TrainStep(recipe, TrainOptions(), make_mesh(MeshSpec(), jax.devices()[:1]))
    state, step, rng = training.init(KEY), training.compiled(), np.random.default_rng(0)
    weight = np.zeros((16, 32), np.float32)
    weight[:, 16:-1] = 1 / (15 * 16)
    for _ in range(steps):
        tokens = np.tile(rng.integers(64, size=(16, 16)), 2)
        targets, positions = np.roll(tokens, -1, axis=1), np.broadcast_to(np.arange(32), (16, 32))
        rows = Arrays(*map(jnp.asarray, (tokens, targets, np.ones_like(tokens), positions, weight)))  # type: ignore
        state, metrics = step(state, rows)
    return float(metrics.loss)


def test_mimetic_weights_learn_to_copy_in_a_few_steps():
    config = ModelConfig(64, 2, 64, 4, 4, 16, 64, tied_embeddings=True, qkv_biases=True, init="mimetic")
    assert loss_after(50, config) < 1 < 2.5 < loss_after(50, replace(config, init="normal"))
