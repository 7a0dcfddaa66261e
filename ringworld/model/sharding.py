"""Where a model's weights lie on a mesh, and which meshes cannot hold it.

A dimension whose size the axes do not divide is refused before anything is compiled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
from jax.sharding import Mesh, NamedSharding

from ringworld.errors import UserError
from ringworld.model.config import ModelConfig
from ringworld.model.layout import DIMENSION_AXES, specs_of
from ringworld.model.llama import Params, abstract_params, parameter_dims
from ringworld.model.memory import Memory


def param_shardings(config: ModelConfig, mesh: Mesh) -> Params:
    """NamedSharding of every weight of a model, by the table of dimension names."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs_of(parameter_dims(config)))


def placed_params(config: ModelConfig, mesh: Mesh) -> Params:
    """Every weight as a float32 jax.ShapeDtypeStruct with its sharding: what a loader fills."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract_params(config),
        param_shardings(config, mesh),
    )


def check(config: ModelConfig, sizes: Mapping[str, int]) -> None:
    """Raise UserError, naming the size and what would work, where a mesh of these axis sizes cannot hold the model."""
    shards = math.prod(sizes[axis] for axis in DIMENSION_AXES["embed"])
    for name, size, parts, axis in (
        ("vocabulary", config.vocabulary, sizes["tensor"], "tensor"),
        ("vision_vocabulary", config.vision_vocabulary, sizes["tensor"], "tensor"),
        ("num_heads", config.num_heads, sizes["tensor"], "tensor"),
        ("num_kv_heads", config.num_kv_heads, sizes["tensor"], "tensor"),
        ("mlp_dim", config.mlp_dim, sizes["tensor"], "tensor"),
        ("embed_dim", config.embed_dim, shards, "fsdp x ring x ulysses"),
    ):
        if size % parts:
            fits = [n for n in range(1, parts + 1) if size % n == 0]
            raise UserError(
                f"mesh {axis}={parts} does not divide model.{name}={size}; the nearest that does is {fits[-1]}"
            )
    if config.num_heads // sizes["tensor"] % sizes["ulysses"]:
        raise UserError(
            f"mesh ulysses={sizes['ulysses']} does not divide the {config.num_heads // sizes['tensor']} heads that "
            f"tensor={sizes['tensor']} leaves on a device; use ring for the rest of the sequence"
        )


def check_memory(config: ModelConfig, memory: Memory, sizes: Mapping[str, int]) -> None:
    """Raise UserError, naming the choices, where a rung of the memory ladder does not divide the model."""
    kv_heads = config.num_kv_heads // sizes["tensor"]
    for name, parts, whole, what in (
        ("every", memory.every, config.num_layers, "layers"),
        ("head_groups", memory.head_groups, kv_heads, f"key heads that tensor={sizes['tensor']} leaves on a device"),
    ):
        if whole % parts:
            fits = [n for n in range(1, whole + 1) if whole % n == 0]
            raise UserError(f"memory: {name}={parts} does not divide the {whole} {what}; use one of {fits}")
    if config.num_heads // sizes["tensor"] // memory.head_groups % sizes["ulysses"]:
        raise UserError(
            f"memory: head_groups={memory.head_groups} leaves "
            f"{config.num_heads // sizes['tensor'] // memory.head_groups} heads at a time, which "
            f"ulysses={sizes['ulysses']} does not divide; use fewer groups"
        )
