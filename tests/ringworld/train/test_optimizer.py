"""The schedule and what is decayed."""

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.errors import UserError
from ringworld.train.optimizer import learning_rate, make_optimizer
from ringworld.train.recipe import OptimizerConfig


def rates(config, steps):
    schedule = learning_rate(config, steps)
    return [float(np.asarray(schedule(step))) for step in range(steps + 1)]


def test_a_constant_rate_warms_up_in_equal_steps_and_stays():
    np.testing.assert_allclose(
        rates(OptimizerConfig(0.4, warmup_steps=4), 5), [0.1, 0.2, 0.3, 0.4, 0.4, 0.4], rtol=1e-6
    )
    assert rates(OptimizerConfig(0.4), 1) == pytest.approx([0.4, 0.4])


def test_a_cosine_falls_from_the_rate_to_the_minimum():
    run = rates(OptimizerConfig(1.0, schedule="cosine", warmup_steps=10, minimum_rate=0.1), 100)
    assert run[10] == pytest.approx(1.0)
    assert run[100] == pytest.approx(0.1)
    assert run[55] == pytest.approx(0.55, abs=1e-6)
    assert all(a >= b for a, b in itertools.pairwise(run[10:]))


def test_norms_are_not_decayed_and_weights_are():
    params = {
        "embedding": jnp.ones(4),
        "layers": {"mlp": {"norm": jnp.ones(4), "up": jnp.ones(4)}},
        "norm": jnp.ones(4),
    }
    optimizer = make_optimizer(OptimizerConfig(0.1, weight_decay=0.5), 10)
    zero = {
        "embedding": jnp.zeros(4),
        "layers": {"mlp": {"norm": jnp.zeros(4), "up": jnp.zeros(4)}},
        "norm": jnp.zeros(4),
    }
    updates: Any
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    assert updates["norm"][0] == 0
    assert updates["layers"]["mlp"]["norm"][0] == 0
    assert updates["layers"]["mlp"]["up"][0] == pytest.approx(-0.05)
    assert updates["embedding"][0] == pytest.approx(-0.05)


@pytest.mark.parametrize(
    "change", [{"learning_rate": 0.0}, {"minimum_rate": 2.0}, {"warmup_steps": -1}, {"clip_norm": 0.0}], ids=str
)
def test_an_optimizer_that_cannot_be_is_refused(change):
    with pytest.raises(UserError):
        OptimizerConfig(**{"learning_rate": 1.0, **change})
