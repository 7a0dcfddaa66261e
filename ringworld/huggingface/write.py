"""A model's weights as the safetensors files of a folder, weight after weight: never the whole model in memory.

Which tensor goes into which file is decided from shapes alone. Tensors stand in the order of our weights (all layers of
one, then all of the next), because that is how they lie where they are read; a folder's index lets them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from ringworld.data.files import join, write_json
from ringworld.huggingface.families import INDEX, WEIGHTS, Place, place_of
from ringworld.huggingface.tensors import Planned, write_file
from ringworld.model.config import ModelConfig
from ringworld.model.llama import abstract_params

SHARD_BYTES = 5_000_000_000

# Our weight by name, of the layers from .. to (0, 0 where it is not stacked), as float32.
ReadWeight = Callable[[str, int, int], np.ndarray]


@dataclass(frozen=True)
class Piece:
    """A tensor to be written and where it comes from: our weight, and which layer of it."""

    planned: Planned
    ours: str
    place: Place
    layer: int


def pieces_of(config: ModelConfig, dtype: str) -> list[Piece]:
    """Every tensor of a model's text, in the order in which they are written."""
    pieces = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(replace(config, vision_vocabulary=0))):
        ours = jax.tree_util.keystr(path, simple=True, separator=".")
        place = place_of(ours)
        shape = place.shape(leaf.shape[1:] if place.stacked else leaf.shape)
        for layer in range(config.num_layers if place.stacked else 1):
            pieces.append(Piece(Planned(place.name(layer), shape, dtype), ours, place, layer))
    return pieces


def shards_of(pieces: Sequence[Piece], limit: int) -> list[list[Piece]]:
    """The pieces in files of at most `limit` bytes; one that is larger has a file of its own."""
    shards: list[list[Piece]] = [[]]
    size = 0
    for piece in pieces:
        if shards[-1] and size + piece.planned.bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(piece)
        size += piece.planned.bytes
    return shards


def write_weights(
    folder: str, config: ModelConfig, read: ReadWeight, dtype: str, limit: int = SHARD_BYTES, at_once: int = 1 << 30
) -> int:
    """Write the files and, where there are several, their index; the number of bytes of all tensors.

    at_once: bytes of a weight that are asked for at a time, in whole layers.
    """
    shards = shards_of(pieces_of(config, dtype), limit)
    arrays = _arrays(shards, read, at_once)
    names = [WEIGHTS] if len(shards) == 1 else _shard_names(len(shards))
    for name, shard in zip(names, shards, strict=True):
        write_file(join(folder, name), [piece.planned for piece in shard], (next(arrays) for _ in shard))
    total = sum(piece.planned.bytes for shard in shards for piece in shard)
    if len(shards) > 1:
        where = {piece.planned.name: name for name, shard in zip(names, shards, strict=True) for piece in shard}
        write_json(join(folder, INDEX), {"metadata": {"total_size": total}, "weight_map": where})
    return total


def _shard_names(count: int) -> list[str]:
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _arrays(shards: Sequence[Sequence[Piece]], read: ReadWeight, at_once: int) -> Iterator[np.ndarray]:
    """The tensors of all shards in their order, as theirs lie."""
    pieces = [piece for shard in shards for piece in shard]
    held, first, name = np.zeros(0), 0, ""
    for number, piece in enumerate(pieces):
        if not piece.place.stacked:
            yield piece.place.theirs(read(piece.ours, 0, 0))
            continue
        if name != piece.ours or piece.layer >= first + len(held):
            name, first = piece.ours, piece.layer
            elements = int(np.prod(piece.planned.shape))
            layers = max(1, at_once // (4 * elements))
            left = sum(other.ours == piece.ours for other in pieces[number:])
            held = np.zeros(0)  # let go of before the next is read
            held = read(name, first, first + min(layers, left))
        yield piece.place.theirs(held[piece.layer - first])
