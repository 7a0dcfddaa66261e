"""Weights of a module as one flat dict, name -> array, named as PyTorch would name them: `conv_in.weight`."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

Params = dict[str, jax.Array]


def flat(state: nnx.State) -> dict[str, Any]:
    """The leaves of a module's state (arrays or their shapes) by name."""
    return {_name(path): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def filled(graph: Any, state: nnx.State, params: Params) -> Any:
    """The module of a graph with these weights; the state says which there are."""
    leaves = [(path, leaf.replace(params[_name(path)])) for path, leaf in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(leaves))


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))
