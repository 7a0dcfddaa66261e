"""One chip's part of a training step, in counts: what the memory estimate and the roofline both start from.

Everything here follows from the recipe, the options and the mesh by the same rules as the trainer's: the table of
dimension names, the split of rows and sequence, chunks and head groups.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax

from ringworld.model.config import ModelConfig
from ringworld.model.layout import DIMENSION_AXES
from ringworld.model.llama import abstract_params, parameter_dims
from ringworld.model.shard import chunks_of
from ringworld.train.recipe import TrainOptions, TrainRecipe

_ITEMSIZE = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Shapes:
    """Counts of one chip. `tokens` are those whose hidden states it holds; a pass is over one microbatch.

    passes              microbatches of a step
    tokens              of a pass, split over every axis
    gathered            tokens of the tensor ranks together, whose heads and columns this chip computes
    chunk               of the gathered ones, those that products see at once
    attended            tokens of a pass that this chip attends from: those of its ring rank
    heads, kv_heads     that it attends with, after tensor and ulysses; copies of key heads included
    embed, head_dim, mlp, vocabulary    widths; mlp and vocabulary are this chip's columns
    layer_weights       matrix weights of one layer, whole over embed, this chip's columns
    table_weights       of the output head, likewise; tables: 1 where it is the embedding too, else 2
    state_weights       parameters that this chip keeps
    itemsize            bytes of an activation
    """

    passes: int
    tokens: int
    gathered: int
    chunk: int
    attended: int
    heads: int
    kv_heads: int
    embed: int
    head_dim: int
    mlp: int
    vocabulary: int
    layers: int
    layer_weights: int
    table_weights: int
    tables: int
    state_weights: int
    itemsize: int

    @property
    def hidden(self) -> int:
        """Elements of the hidden states of a pass."""
        return self.tokens * self.embed

    @property
    def queries(self) -> int:
        """Elements of a pass's queries, all head groups together; also those of attention's output."""
        return self.attended * self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Elements of a pass's keys (values are as many)."""
        return self.attended * self.kv_heads * self.head_dim


def shapes_of(recipe: TrainRecipe, options: TrainOptions, sizes: Mapping[str, int]) -> Shapes:
    """The counts for a mesh of these axis sizes, which passes the trainer's own checks."""
    model, tensor, ulysses = recipe.model, sizes["tensor"], sizes["ulysses"]
    at_once = options.microbatch_rows or recipe.rows
    attended = at_once * recipe.sequence // (sizes["data"] * sizes["fsdp"] * sizes["ring"])
    tokens = attended // (tensor * ulysses)
    kv_heads = model.num_kv_heads // tensor
    columns = model.mlp_dim // tensor
    vocabulary = (model.vocabulary + model.vision_vocabulary) // tensor
    attention = model.head_dim * 2 * (model.num_heads // tensor + kv_heads)
    return Shapes(
        passes=recipe.rows // at_once,
        tokens=tokens,
        gathered=tokens * tensor,
        chunk=tokens // chunks_of(tokens, options.memory.chunk) * tensor,
        attended=attended,
        heads=model.num_heads // (tensor * ulysses),
        kv_heads=math.lcm(kv_heads, ulysses) // ulysses,
        embed=model.embed_dim,
        head_dim=model.head_dim,
        mlp=columns,
        vocabulary=vocabulary,
        layers=model.num_layers,
        layer_weights=model.embed_dim * (attention + 3 * columns),
        table_weights=model.embed_dim * vocabulary,
        tables=1 if model.tied_embeddings else 2,
        state_weights=sum(
            -(-count // math.prod(sizes[axis] for axis in axes)) for axes, count in _weights_by_axes(model)
        ),
        itemsize=_ITEMSIZE[recipe.dtype],
    )


@functools.cache
def _weights_by_axes(model: ModelConfig) -> tuple[tuple[tuple[str, ...], int], ...]:
    """Parameters by the mesh axes that split them: ((axes, count), ...)."""
    counts: dict[tuple[str, ...], int] = {}
    dims = jax.tree.leaves(parameter_dims(model), is_leaf=lambda x: isinstance(x, tuple))
    for leaf, names in zip(jax.tree.leaves(abstract_params(model)), dims, strict=True):
        axes = tuple(axis for name in names for axis in DIMENSION_AXES[name])
        counts[axes] = counts.get(axes, 0) + int(leaf.size)
    return tuple(counts.items())
