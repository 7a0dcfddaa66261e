"""One step of a VQGAN's training: two compiled programs, without a judge and against one.

A step is a pure function of (recipe, state, pictures). The backward pass runs once: the pixels' loss and the judge meet
at the pixels, where their gradients are weighed against each other and added up, and go back from there together.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ringworld.vision.codebook import nearest, restarted, straight_through, usage_of
from ringworld.vision.judge import abstract_judge, bind_judge, init_judge
from ringworld.vision.losses import adaptive_weight, judged_loss, pixel_loss
from ringworld.vision.parameters import Params
from ringworld.vision.vqgan import CODES, abstract_params, bind, init_params
from ringworld.vision.vqgan_recipe import VQTrainRecipe

OUTPUT = "decoder.conv_out.weight"  # the decoder's last weights


class State(NamedTuple):
    """All that a step changes. usage: float32 [codebook], the moving average, in equal shares."""

    step: jax.Array
    params: Params
    optimizer: Any
    judge: Params
    judge_optimizer: Any
    usage: jax.Array


class Step(NamedTuple):
    """What a step makes. losses: float32 scalars by name, before weighing. usage: of its codes, as in `State`."""

    state: State
    losses: dict[str, jax.Array]
    usage: jax.Array


def init_state(recipe: VQTrainRecipe) -> State:
    """The state before the first step. Its codes count as unused: the first restart makes latents of all."""
    weights, judging = np.random.SeedSequence(recipe.seed).generate_state(2).tolist()
    return _begun(recipe, init_params(recipe.model, weights), init_judge(recipe.adversary.judge, judging))


def abstract_state(recipe: VQTrainRecipe) -> State:
    """Shapes of the state."""
    params, judge = abstract_params(recipe.model), abstract_judge(recipe.adversary.judge)
    return jax.eval_shape(functools.partial(_begun, recipe), params, judge)


@functools.partial(jax.jit, static_argnums=0)
def _begun(recipe: VQTrainRecipe, params: Params, judge: Params) -> State:
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        optimizer=_optimizer(recipe).init(params),
        judge=judge,
        judge_optimizer=_judge_optimizer(recipe).init(judge),
        usage=jnp.zeros(recipe.model.codebook, jnp.float32),
    )


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def step_alone(recipe: VQTrainRecipe, state: State, pictures: jax.Array) -> Step:
    """A step without a judge on pictures uint8 [n, h, w, 3]. The given state is used up."""
    made = _Made(recipe, state.params, pictures)
    return Step(_updated(recipe, state, made, made.pixel_gradient), made.losses, made.usage)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def step_judged(recipe: VQTrainRecipe, state: State, pictures: jax.Array) -> Step:
    """A step against the judge, which then learns from the same pictures."""
    made = _Made(recipe, state.params, pictures)
    config = recipe.adversary.judge

    def displeasure(pixels: jax.Array) -> jax.Array:
        return -jnp.mean(bind_judge(config, state.judge)(pixels))

    def judging(judge: Params) -> jax.Array:
        module = bind_judge(config, judge)
        return judged_loss(module(made.wanted), module(made.pixels))

    displeased, judge_gradient = jax.value_and_grad(displeasure)(made.pixels)
    weight = adaptive_weight(made.at_output(made.pixel_gradient), made.at_output(judge_gradient))
    judged, gradient = jax.value_and_grad(judging)(state.judge)
    changes, judge_optimizer = _judge_optimizer(recipe).update(gradient, state.judge_optimizer)
    state = state._replace(judge=optax.apply_updates(state.judge, changes), judge_optimizer=judge_optimizer)
    losses = made.losses | {"adversarial": displeased, "judge": judged, "adaptive_weight": weight}
    pull = made.pixel_gradient + recipe.adversary.weight * weight * judge_gradient
    return Step(_updated(recipe, state, made, pull), losses, made.usage)


class _Made:
    """A forward pass: what was made of the pictures, and how a gradient at its pixels becomes one of the weights."""

    def __init__(self, recipe: VQTrainRecipe, params: Params, pictures: jax.Array) -> None:
        self.wanted = pictures.astype(jnp.float32) / 255.0
        dtype = jnp.dtype(recipe.dtype)

        def forward(params: Params) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
            model = bind(recipe.model, params)
            latents = model.latents(self.wanted.astype(dtype))
            chosen = nearest(latents, model.codes)
            vectors, codebook, commitment = straight_through(latents, model.codes, chosen)
            features = model.features(vectors)
            pixels = model.decoder.conv_out(features).astype(jnp.float32)
            loss = recipe.codebook * codebook + recipe.commitment * commitment
            return (pixels, loss), (latents, chosen, features, codebook, commitment)

        (self.pixels, _), self._pull, (self.latents, self.chosen, features, codebook, commitment) = jax.vjp(
            forward, params, has_aux=True
        )
        (loss, parts), self.pixel_gradient = jax.value_and_grad(pixel_loss, argnums=1, has_aux=True)(
            recipe.pixels, self.pixels, self.wanted
        )

        def last(weight: jax.Array) -> jax.Array:
            return bind(recipe.model, params | {OUTPUT: weight}).decoder.conv_out(features).astype(jnp.float32)

        self._pull_last = jax.vjp(last, params[OUTPUT])[1]
        self.usage = usage_of(self.chosen, recipe.model.codebook)
        self.losses = parts | {"pixels": loss, "codebook": codebook, "commitment": commitment}

    def gradient(self, at_pixels: jax.Array) -> Params:
        """Of all weights, from a gradient at the pixels; the codebook's losses are in it."""
        return self._pull((at_pixels, jnp.float32(1.0)))[0]

    def at_output(self, at_pixels: jax.Array) -> jax.Array:
        """Of the decoder's last weights alone."""
        return self._pull_last(at_pixels)[0]


def _updated(recipe: VQTrainRecipe, state: State, made: _Made, at_pixels: jax.Array) -> State:
    changes, optimizer = _optimizer(recipe).update(made.gradient(at_pixels), state.optimizer)
    params = optax.apply_updates(state.params, changes)
    decay = recipe.restart.decay
    usage = decay * state.usage + (1 - decay) * made.usage
    state = state._replace(step=state.step + 1, params=params, optimizer=optimizer, usage=usage)
    if recipe.restart.every == 0:
        return state
    due = (state.step - 1) % recipe.restart.every == 0
    return jax.lax.cond(due, functools.partial(_restart, recipe), lambda state, _: state, state, made.latents)


def _restart(recipe: VQTrainRecipe, state: State, latents: jax.Array) -> State:
    """Dead codes begin anew, and so do the optimizer's averages of them."""
    key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
    dead = state.usage < recipe.restart.below
    codes = restarted(key, state.params[CODES], dead, latents)
    averages = {}
    for name in ("mu", "nu"):
        tree = optax.tree_utils.tree_get(state.optimizer, name)
        averages[name] = tree | {CODES: jnp.where(dead[:, None], 0.0, tree[CODES])}
    return state._replace(
        params=state.params | {CODES: codes},
        optimizer=optax.tree_utils.tree_set(state.optimizer, **averages),
        usage=jnp.where(dead, 1.0, state.usage),
    )


def _optimizer(recipe: VQTrainRecipe) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(
        init_value=recipe.learning_rate / (recipe.warmup_steps + 1),
        peak_value=recipe.learning_rate,
        warmup_steps=recipe.warmup_steps,
        decay_steps=max(recipe.steps, recipe.warmup_steps + 1),
        end_value=recipe.minimum_rate,
    )
    return optax.chain(optax.clip_by_global_norm(recipe.clip_norm), optax.adam(rate, recipe.beta1, recipe.beta2))


def _judge_optimizer(recipe: VQTrainRecipe) -> optax.GradientTransformation:
    return optax.adam(recipe.adversary.learning_rate, 0.5, 0.9)
