"""What other tokens would have cost at a slot is what they cost there as the target, on a mesh that splits all."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np

from ringworld.evaluate.scorer import Choices, Rows, Scorer
from ringworld.mesh import make_mesh, parse_mesh
from ringworld.model.config import ModelConfig, RopeConfig
from ringworld.model.init import init_params
from ringworld.model.sharding import param_shardings

MODEL = ModelConfig(64, 1, 16, 2, 2, 8, 32, vision_vocabulary=16)


def test_a_choice_costs_what_it_would_cost_as_the_target():
    devices = make_mesh(parse_mesh("fsdp=2,ring=2,tensor=2"), jax.devices()[:8])
    rng = np.random.default_rng(0)
    tokens, targets = (rng.integers(80, size=(3, 32)).astype(np.int32) for _ in range(2))
    rows = Rows(tokens, targets, np.ones_like(tokens), np.tile(np.arange(32, dtype=np.int32), (3, 1)))
    slots = rng.permuted(np.tile(np.arange(32, dtype=np.int32), (3, 1)), axis=1)[:, :5]
    choices = Choices(slots, rng.integers(64, size=(3, 5, 4)).astype(np.int32))
    params = jax.tree.map(lambda leaf: leaf * 8, init_params(MODEL, jax.random.key(0)))
    params = jax.device_put(params, param_shardings(MODEL, devices))
    scorer = Scorer(MODEL, devices, "float32", 16, (5, 4))
    found = scorer.score(params, RopeConfig(1e4), rows, choices=choices)
    for number in range(4):
        changed = targets.copy()
        np.put_along_axis(changed, slots, choices.ids[..., number], 1)
        wanted = scorer.score(params, RopeConfig(1e4), replace(rows, targets=changed))
        np.testing.assert_allclose(
            found.chosen[..., number], np.take_along_axis(wanted.loss, slots, 1), rtol=1e-5, atol=1e-5
        )
        same = changed == targets
        np.testing.assert_array_equal(wanted.loss[same], found.loss[same])
    assert found.chosen.std() > 0.1
