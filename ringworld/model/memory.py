"""What a forward pass keeps for the backward pass, and where: the memory ladder. No rung changes a loss or a gradient.

From fast to small:

    remat=none        everything is kept
    remat=attention   of each layer its input, and attention's output, so that attention is not computed twice
    remat=layer       of each layer its input
    every=k           of every k-th layer its input; those between are made again, once more than other layers
    offload=share     that share of the kept inputs waits in host memory; its way there and back hides behind the layers
    chunk=n           norms, projections and feed-forward see n tokens of a shard at a time
    head_groups=n     heads attend in n parts, one after another
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from ringworld.attention import SAVED
from ringworld.errors import UserError

Remat = Literal["none", "attention", "layer"]
_HOST = "layer_input_on_host"
_DEVICE = "layer_input"


@dataclass(frozen=True)
class Memory:
    """The rungs above. `every` and `offload` need remat=attention or layer; offload is a share from 0 to 1."""

    remat: Remat = "none"
    every: int = 1
    offload: float = 0.0
    chunk: int = 0
    head_groups: int = 1

    def __post_init__(self) -> None:
        if self.every < 1 or self.head_groups < 1 or self.chunk < 0:
            raise UserError(
                f"memory: every={self.every} and head_groups={self.head_groups} must be 1 or more, "
                f"chunk={self.chunk} must be 0 or more"
            )
        if not 0 <= self.offload <= 1:
            raise UserError(f"memory: offload={self.offload} is a share of the kept inputs, from 0 to 1")
        if self.remat == "none" and (self.every > 1 or self.offload > 0):
            raise UserError(
                f"memory: every={self.every}, offload={self.offload} with remat=none keep everything all the same; "
                f"use remat=layer or remat=attention"
            )


def scan_layers(layer: Callable[[jax.Array, Any], jax.Array], x: jax.Array, weights: Any, memory: Memory) -> jax.Array:
    """x after all layers, layer(x, weights of one) -> x; the leaves of weights are stacked [layers, ...].

    `memory.every` divides the layers, as `ringworld.model.sharding.check_memory` sees to.
    """
    if memory.remat == "none":
        return lax.scan(lambda x, w: (layer(x, w), None), x, weights)[0]
    within = jax.checkpoint(layer, policy=_policy(memory.remat, offload=0.0))
    if memory.every == 1:
        kept = jax.checkpoint(_named(layer, memory.offload), policy=_policy(memory.remat, memory.offload))
        return lax.scan(lambda x, w: (kept(x, w), None), x, weights)[0]

    def several(x: jax.Array, weights: Any) -> jax.Array:
        return lax.scan(lambda x, w: (within(x, w), None), x, weights)[0]

    grouped = jax.tree.map(lambda leaf: leaf.reshape(-1, memory.every, *leaf.shape[1:]), weights)
    kept = jax.checkpoint(_named(several, memory.offload), policy=_policy("layer", memory.offload))
    return lax.scan(lambda x, w: (kept(x, w), None), x, grouped)[0]


def _named(layer: Callable[[jax.Array, Any], jax.Array], offload: float) -> Callable[[jax.Array, Any], jax.Array]:
    """The layer with its input's two parts named: the one that stays and the one that goes to the host."""
    if offload == 0:
        return layer

    def named(x: jax.Array, weights: Any) -> jax.Array:
        # Cut along the embedding, which no mesh axis splits.
        moved = round(x.shape[-1] * offload)
        parts = [checkpoint_name(x[..., :moved], _HOST)] if moved else []
        if moved < x.shape[-1]:
            parts.append(checkpoint_name(x[..., moved:], _DEVICE))
        return layer(parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1), weights)

    return named


def _policy(remat: Remat, offload: float) -> Callable[..., Any]:
    saved = [SAVED] if remat == "attention" else []
    if offload == 0:
        return jax.checkpoint_policies.save_only_these_names(*saved)
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[*saved, _DEVICE],
        names_which_can_be_offloaded=[_HOST],
        offload_src="device",
        offload_dst="pinned_host",
    )
