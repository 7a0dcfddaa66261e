"""The optimizer's update of all weights: at once, or a layer at a time while its moments wait in host memory.

AdamW is elementwise, and the clipping norm is known before, so the order changes no bit. By layers, only one layer's
moments are on the device at any moment: two more copies of the weights would not fit beside weights and gradients where
a whole model lies on one chip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ringworld.model.llama import Params

_DEVICE, _HOST = jax.memory.Space.Device, jax.memory.Space.Host


def clipped(gradients: Params, norm: jax.Array, limit: float) -> Params:
    """Gradients of global norm `norm`, scaled down to `limit` where it is larger."""
    factor = jnp.minimum(1.0, limit / norm)
    return jax.tree.map(lambda gradient: gradient * factor, gradients)


def update(
    optimizer: optax.GradientTransformation, gradients: Params, moments: Any, params: Params
) -> tuple[Params, Any]:
    """(params, moments) after the update."""
    updates, moments = optimizer.update(gradients, moments, params)
    return cast(Params, optax.apply_updates(params, updates)), moments


def update_by_layers(
    optimizer: optax.GradientTransformation, gradients: Params, moments: Any, params: Params
) -> tuple[Params, Any]:
    """As `update`, with moments that come from host memory and return to it.

    The optimizer may not mix weights, and keeps its state as trees like the weights', with scalars beside them.
    """
    layers = params["layers"]

    def one(index: jax.Array, carry: tuple[Params, Any]) -> tuple[Params, Any]:
        params, waiting = carry
        here = _map_weights(lambda stack: jax.device_put(_at(stack, index), _DEVICE), waiting)
        changed, here = update(optimizer, _at(gradients["layers"], index), here, _at(params, index))
        back = _map_weights(lambda layer: jax.device_put(layer, _HOST), here)
        return _put(params, changed, index), _put_weights(waiting, back, index)

    depth = jax.tree.leaves(layers)[0].shape[0]
    # In a loop's carry the stacks are changed in place, on the host as well.
    layers, waiting = lax.fori_loop(0, depth, one, (layers, _map_weights(lambda weights: weights["layers"], moments)))

    def others(weights: Params) -> Params:
        return {name: leaf for name, leaf in weights.items() if name != "layers"}

    here = _map_weights(lambda weights: jax.device_put(others(weights), _DEVICE), moments)
    rest, here = update(optimizer, others(gradients), here, others(params))
    # Counters come from here; the loop has left its own as they were.
    stacks = iter(_weights(waiting))
    moments = _map_weights(lambda weights: {**jax.device_put(weights, _HOST), "layers": next(stacks)}, here)
    return {**rest, "layers": layers}, moments


def _is_weights(node: Any) -> bool:
    # Optax keeps its own state in tuples; a dict is a tree like the weights'.
    return isinstance(node, dict)


def _weights(state: Any) -> list[Params]:
    return [node for node in jax.tree.leaves(state, is_leaf=_is_weights) if _is_weights(node)]


def _map_weights(function: Callable[[Params], Params], state: Any) -> Any:
    return jax.tree.map(lambda node: function(node) if _is_weights(node) else node, state, is_leaf=_is_weights)


def _at(stack: Params, index: jax.Array) -> Params:
    """One layer of stacked weights."""
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, index, 0, keepdims=False), stack)


def _put(stack: Params, layer: Params, index: jax.Array) -> Params:
    return jax.tree.map(lambda leaf, new: lax.dynamic_update_index_in_dim(leaf, new, index, 0), stack, layer)


def _put_weights(state: Any, layer: Any, index: jax.Array) -> Any:
    changed = iter(_weights(layer))
    return _map_weights(lambda stack: _put(stack, next(changed), index), state)
