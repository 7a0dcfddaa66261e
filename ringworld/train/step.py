"""The compiled training step, and the state that it moves.

`TrainStep` holds pure functions over one mesh: `init` makes a state, `step` consumes a state and a batch and gives the
next state and its metrics (the old state's memory is reused). The state is a plain tree, sharded by the model's table:
`{"params": ..., "optimizer": ..., "step": int32}`. The planner lowers the very same `step` for hardware that is not
here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ringworld.errors import UserError
from ringworld.mesh import ROWS
from ringworld.model.init import init_params
from ringworld.model.layout import Layout
from ringworld.model.llama import Params, abstract_params, bind
from ringworld.model.rope import make_rope
from ringworld.model.sharding import check, check_memory, param_shardings
from ringworld.train.loss import cross_entropy, weight_by_vocabulary
from ringworld.train.optimizer import learning_rate, make_optimizer
from ringworld.train.recipe import TrainOptions, TrainRecipe
from ringworld.train.update import clipped, update, update_by_layers

State = dict[str, Any]


class Arrays(NamedTuple):
    """A batch on the mesh: arrays [rows, sequence]; loss_weight is float32, the others int32."""

    tokens: jax.Array
    targets: jax.Array
    segments: jax.Array
    positions: jax.Array
    loss_weight: jax.Array


class Metrics(NamedTuple):
    """float32 of one step. loss: the weighted loss before its update. losses [vocabularies]: the weighted mean over
    each one's own targets, NaN where there are none. gradient_norm: of all gradients. learning_rate."""

    loss: jax.Array
    gradient_norm: jax.Array
    learning_rate: jax.Array
    losses: jax.Array


class Parts(NamedTuple):
    """A loss by vocabulary, float32 [vocabularies]: the sum of weight * loss over its targets, and of their weights."""

    loss: jax.Array
    weight: jax.Array


@dataclass(frozen=True)
class TrainStep:
    """The step of one recipe on one mesh. Raises UserError where the mesh cannot hold the model or the batch."""

    recipe: TrainRecipe
    options: TrainOptions
    mesh: Mesh

    def __post_init__(self) -> None:
        check(self.recipe.model, self.mesh.shape)
        check_memory(self.recipe.model, self.options.memory, self.mesh.shape)
        check_batch(self.recipe, self.options, self.mesh.shape)

    def init(self, key: jax.Array) -> State:
        """A fresh state, made sharded: no device ever holds the whole model."""
        params = jax.jit(lambda key: init_params(self.recipe.model, key), out_shardings=self._param_shardings())(key)
        return self.start_from(params)

    def start_from(self, params: Params) -> State:
        """The state at step 0 of given weights: a fresh optimizer, as every stage of LWM begins."""
        optimizer = self._optimizer()
        shardings = self.state_shardings()["optimizer"]
        return {
            "params": params,
            "optimizer": jax.jit(optimizer.init, out_shardings=shardings)(params),
            "step": jax.device_put(jnp.int32(0), NamedSharding(self.mesh, PartitionSpec())),
        }

    def abstract_state(self) -> State:
        """The state as jax.ShapeDtypeStruct with shardings: what a checkpoint is restored into."""
        params = abstract_params(self.recipe.model)
        state = {
            "params": params,
            "optimizer": jax.eval_shape(self._optimizer().init, params),
            "step": jax.ShapeDtypeStruct((), jnp.int32),
        }
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            state,
            self.state_shardings(),
        )

    def abstract_batch(self) -> Arrays:
        """A batch as jax.ShapeDtypeStruct with shardings."""
        shape, sharding = (self.recipe.rows, self.recipe.sequence), NamedSharding(self.mesh, ROWS)

        def array(name: str) -> Any:
            dtype = jnp.float32 if name == "loss_weight" else jnp.int32
            return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

        return Arrays(*map(array, Arrays._fields))

    def state_shardings(self) -> State:
        """NamedSharding of every leaf of the state; the optimizer's moments lie as their weights do."""
        replicated = NamedSharding(self.mesh, PartitionSpec())
        optimizer = self._optimizer()
        moments = jax.eval_shape(optimizer.init, abstract_params(self.recipe.model))
        shardings = optax.tree_utils.tree_map_params(
            optimizer,
            lambda _, sharding: sharding,
            moments,
            self._param_shardings(),
            transform_non_params=lambda _: replicated,
        )
        if self.options.optimizer_on == "host":
            shardings = optax.tree_utils.tree_map_params(
                optimizer, lambda sharding: sharding.with_memory_kind("pinned_host"), shardings
            )
        return {"params": self._param_shardings(), "optimizer": shardings, "step": replicated}

    def compiled(self) -> Any:
        """`step(state, batch: Arrays) -> (state, Metrics)`, jitted; the given state is consumed."""
        return jax.jit(
            self._step,
            donate_argnums=0,
            out_shardings=(self.state_shardings(), None),
            compiler_options=dict(self.options.compiler) or None,
        )

    def _step(self, state: State, batch: Arrays) -> tuple[State, Metrics]:
        (loss, parts), gradients = self._accumulated(state["params"], batch)
        norm = optax.tree.norm(gradients)
        metrics = Metrics(
            loss=loss,
            gradient_norm=norm,
            learning_rate=jnp.float32(learning_rate(self.recipe.optimizer, self.recipe.steps)(state["step"])),
            losses=parts.loss / parts.weight,
        )
        gradients = clipped(gradients, norm, self.recipe.optimizer.clip_norm)
        apply = update_by_layers if self.options.optimizer_on == "host" else update
        params, optimizer = apply(self._optimizer(), gradients, state["optimizer"], state["params"])
        return {"params": params, "optimizer": optimizer, "step": state["step"] + 1}, metrics

    def _accumulated(self, params: Params, batch: Arrays) -> tuple[tuple[jax.Array, Parts], Params]:
        """Loss, its parts, and gradients. Loss weights already count the whole batch, so microbatches simply add."""
        rows = self.options.microbatch_rows or self.recipe.rows
        if rows == self.recipe.rows:
            return jax.value_and_grad(self._loss, has_aux=True)(params, batch)
        pieces = jax.tree.map(lambda array: array.reshape(-1, rows, array.shape[1]), batch)
        sharding = NamedSharding(self.mesh, PartitionSpec(None, *ROWS))
        pieces = jax.lax.with_sharding_constraint(pieces, sharding)

        def add(total: Any, piece: Arrays) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, jax.value_and_grad(self._loss, has_aux=True)(params, piece)), None

        none = jnp.zeros(2 if self.recipe.model.vision_vocabulary else 1)
        zero = ((jnp.float32(0), Parts(none, none)), jax.tree.map(jnp.zeros_like, params))
        return jax.lax.scan(add, zero, pieces)[0]

    def _loss(self, params: Params, batch: Arrays) -> tuple[jax.Array, Parts]:
        config = self.recipe.model
        model = bind(config, params)
        hidden = model(
            batch.tokens,
            batch.positions,
            batch.segments,
            make_rope(config.rope, config.head_dim),
            Layout(self.mesh, jnp.dtype(self.recipe.dtype), self.options.memory, self.options.attention),
        )
        heads, targets, weights = model.output_weights(), batch.targets, batch.loss_weight
        losses = cross_entropy(hidden, heads, targets, weights, mesh=self.mesh, chunk=self.options.loss_chunk)
        return losses.sum(), Parts(losses, weight_by_vocabulary(heads, targets, weights))

    def _optimizer(self) -> optax.GradientTransformation:
        return make_optimizer(self.recipe.optimizer, self.recipe.steps)

    def _param_shardings(self) -> Params:
        return param_shardings(self.recipe.model, self.mesh)


def check_batch(recipe: TrainRecipe, options: TrainOptions, sizes: Mapping[str, int]) -> None:
    """Raise UserError where the mesh does not divide the sequence or the rows of a (micro)batch."""
    sequence_shards = sizes["ring"] * sizes["ulysses"] * sizes["tensor"]
    batch_shards = sizes["data"] * sizes["fsdp"]
    if recipe.sequence % sequence_shards:
        fits = max(n for n in range(1, sequence_shards + 1) if recipe.sequence % n == 0)
        raise UserError(
            f"mesh ring x ulysses x tensor={sequence_shards} does not divide sequence={recipe.sequence}; "
            f"the nearest is {fits}"
        )
    rows = options.microbatch_rows or recipe.rows
    if rows % batch_shards:
        fits = max(n for n in range(1, batch_shards + 1) if rows % n == 0)
        raise UserError(
            f"mesh data x fsdp={batch_shards} does not divide {rows} rows at a time; the nearest is {fits} "
            f"(put the other devices on ring or tensor, or raise batch_tokens)"
        )
