"""AdamW with warm-up and a schedule, from Optax. `ringworld.train.update` clips and applies."""

from __future__ import annotations

from typing import Any

import jax
import optax

from ringworld.train.recipe import OptimizerConfig


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Rate by step: a linear warm-up from 0, then constant, or a cosine down to `minimum_rate` at `steps`."""
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            init_value=0.0,
            peak_value=config.learning_rate,
            warmup_steps=config.warmup_steps,
            decay_steps=max(steps, config.warmup_steps + 1),
            end_value=config.minimum_rate,
        )
    if config.warmup_steps == 0:
        return optax.constant_schedule(config.learning_rate)
    # The first step already moves the weights: its rate is 1/warmup of the full one, not 0.
    return optax.linear_schedule(
        config.learning_rate / config.warmup_steps, config.learning_rate, max(config.warmup_steps - 1, 1)
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW. Norm scales (stacked vectors) and biases are not decayed, as in Llama's training."""
    return optax.adamw(
        learning_rate(config, steps),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=_decayed,
    )


def _decayed(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: not path[-1].key.endswith(("norm", "bias")), params)
