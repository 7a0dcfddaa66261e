"""Rotary positions against the formulas written out, and what each scaling promises."""

import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.errors import UserError
from ringworld.model.config import RopeConfig
from ringworld.model.rope import make_rope, rotate

HEAD_DIM = 64


def frequencies(config: RopeConfig) -> np.ndarray:
    return np.asarray(make_rope(config, HEAD_DIM).frequencies)


def test_a_rotation_turns_each_pair_by_position_times_frequency():
    x = np.random.default_rng(0).standard_normal((1, 3, 2, HEAD_DIM)).astype(np.float32)
    positions = np.array([[0, 5, 100_003]], np.int32)
    rotated = np.asarray(rotate(jnp.asarray(x), jnp.asarray(positions), make_rope(RopeConfig(1e6), HEAD_DIM)))
    as_complex = x[..., : HEAD_DIM // 2] + 1j * x[..., HEAD_DIM // 2 :]
    angle = positions[0][:, None, None] * 1e6 ** -(np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    expected = as_complex * np.exp(1j * angle)
    # 100,003 radians in float32 are known to about 0.004.
    np.testing.assert_allclose(rotated[..., : HEAD_DIM // 2], expected.real, atol=2e-2)
    np.testing.assert_allclose(rotated[..., HEAD_DIM // 2 :], expected.imag, atol=2e-2)
    np.testing.assert_allclose(rotated[:, 0], x[:, 0])


def test_scores_depend_on_distance_alone():
    rng = np.random.default_rng(1)
    q, k = (jnp.asarray(rng.standard_normal((1, 1, 1, HEAD_DIM)), jnp.float32) for _ in range(2))
    rope = make_rope(RopeConfig(1e4), HEAD_DIM)

    def score(query_position: int, key_position: int) -> float:
        turned = [rotate(x, jnp.full((1, 1), p, jnp.int32), rope) for x, p in ((q, query_position), (k, key_position))]
        return float((turned[0] * turned[1]).sum())

    assert score(17, 5) == pytest.approx(score(512, 500), abs=1e-3)


def test_linear_scaling_slows_every_pair_alike():
    np.testing.assert_allclose(frequencies(RopeConfig(1e4, "linear", 8.0)) * 8, frequencies(RopeConfig(1e4)), rtol=1e-6)


def test_ntk_keeps_the_fastest_pair_and_stretches_the_slowest_by_the_factor():
    plain, scaled = frequencies(RopeConfig(1e4)), frequencies(RopeConfig(1e4, "ntk", 8.0))
    assert scaled[0] == plain[0]
    assert plain[-1] / scaled[-1] == pytest.approx(8.0, rel=1e-5)


def test_yarn_keeps_fast_pairs_and_stretches_slow_ones():
    plain, scaled = frequencies(RopeConfig(1e4)), frequencies(RopeConfig(1e4, "yarn", 8.0, 2048))
    assert scaled[0] == plain[0]
    assert plain[-1] / scaled[-1] == pytest.approx(8.0, rel=1e-5)
    assert np.all(np.diff(plain / scaled) >= -1e-6)
    assert float(make_rope(RopeConfig(1e4, "yarn", 8.0, 2048), HEAD_DIM).magnitude) == pytest.approx(
        0.1 * np.log(8) + 1
    )


@pytest.mark.parametrize("arguments", [(1.0,), (1e4, "none", 2.0), (1e4, "linear", 0.5), (1e4, "yarn", 4.0)], ids=str)
def test_a_scaling_that_cannot_be_is_refused(arguments):
    with pytest.raises(UserError):
        RopeConfig(*arguments)
