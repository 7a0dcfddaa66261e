"""Weights of a folder into a sharded tree: checked whole before any is read, then a layer of a weight at a time.

A host holds its devices' parts of one weight, never the model. Folders are local or a URL. Pickled weights are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from ringworld.data.files import join, list_folder, read_json
from ringworld.errors import UserError
from ringworld.huggingface.config_json import Stated, read_stated
from ringworld.huggingface.families import INDEX, WEIGHTS, Place, place_of
from ringworld.huggingface.tensors import DTYPES, Reader, Tensor, read_header
from ringworld.huggingface.vision import VISION, vision_tensors
from ringworld.model.config import ModelConfig
from ringworld.model.llama import Params, abstract_params

_ENDING = ".safetensors"
_UNUSED = ".rotary_emb.inv_freq"  # in old Llama folders: what config.json's theta says
_ROWS = 4096  # of two tables that are compared at once


def load_folder(folder: str, config: ModelConfig, wanted: Params, sequence: int | None = None) -> Params:
    """Weights of a folder as float32, sharded as `wanted` says. Positions are the recipe's, not the folder's.

    sequence: tokens of the rows that the model is to see; the folder's own context if left out. A model of text takes
    the text of a folder that sees. UserError where the folder is of another model, or damaged; nothing is read then.
    """
    stated = read_stated(folder)
    _check_sizes(folder, config, stated)
    stated.check_context(folder, sequence)
    sources = _sources(folder, config)
    reader = Reader()

    def build(path: Any, leaf: Any) -> jax.Array:
        source = sources[jax.tree_util.keystr(path, simple=True, separator=".")]
        parts = _parts(leaf, source, reader, config.head_dim)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: parts[_key(index, leaf.shape)])

    return jax.tree_util.tree_map_with_path(build, wanted)


def check_folder(folder: str) -> Stated:
    """What a folder says of its model, after its files have been compared with it. UserError as of `load_folder`."""
    stated = read_stated(folder)
    _sources(folder, stated.model)
    return stated


@dataclass(frozen=True)
class _Source:
    """The tensors of one weight of ours, one for each layer where it is stacked, and how they lie."""

    place: Place
    tensors: tuple[Tensor, ...]


def _check_sizes(folder: str, config: ModelConfig, stated: Stated) -> None:
    for name in ModelConfig.__dataclass_fields__:
        ours, theirs = getattr(config, name), getattr(stated.model, name)
        if name == "vision_vocabulary" and not ours:
            continue
        if name != "rope" and ours != theirs:
            raise UserError(f"model.{name}={ours}, but {folder} has {theirs}")


def _sources(folder: str, config: ModelConfig) -> dict[str, _Source]:
    """Where every weight of a model lies in a folder. UserError for what is missing, misshapen or beyond the model."""
    held, sources = _held(folder), {}
    shapes = jax.tree_util.tree_leaves_with_path(abstract_params(replace(config, vision_vocabulary=0)))
    for path, leaf in shapes:
        ours = jax.tree_util.keystr(path, simple=True, separator=".")
        place = place_of(ours)
        shape = place.shape(leaf.shape[1:] if place.stacked else leaf.shape)
        names = [place.name(layer) for layer in range(config.num_layers if place.stacked else 1)]
        sources[ours] = _Source(place, tuple(_found(folder, held, name, shape, config) for name in names))
    used = {tensor.name for source in sources.values() for tensor in source.tensors}
    if config.tied_embeddings and "lm_head.weight" in held:
        _check_tied(folder, held["model.embed_tokens.weight"], held["lm_head.weight"])
        used.add("lm_head.weight")
    beyond = sorted(name for name in held if name not in used and not name.endswith(_UNUSED))
    if beyond:
        more = f" and {len(beyond) - 1} more" if len(beyond) > 1 else ""
        raise UserError(
            f"{folder}: {beyond[0]}{more}: no part of the model that config.json describes; is that of another model?"
        )
    if config.vision_vocabulary:
        for name, tensor in vision_tensors(folder, config).items():
            lies = "transposed" if name == "head" else "plain"
            sources[f"vision.{name}"] = _Source(Place(tensor.name, lies, stacked=False), (tensor,))
    for source in sources.values():
        for tensor in source.tensors:
            if tensor.dtype not in DTYPES:
                raise UserError(f"{tensor.file}: {tensor.name} is {tensor.dtype}; only {', '.join(DTYPES)} are read")
    return sources


def _found(folder: str, held: Mapping[str, Tensor], name: str, shape: tuple[int, ...], config: ModelConfig) -> Tensor:
    tensor = held.get(name)
    if tensor is None and name == "lm_head.weight":
        raise UserError(
            f"{folder}: tie_word_embeddings={config.tied_embeddings} in config.json, and no lm_head.weight in the "
            f"files; say tie_word_embeddings=true if the head is the embedding, else a shard is missing"
        )
    if tensor is None:
        raise UserError(f"{folder}: weight {name} is in none of its safetensors files; is a shard missing?")
    if tensor.shape != shape:
        raise UserError(f"{tensor.file}: {name} has shape {list(tensor.shape)}, by config.json it has {list(shape)}")
    return tensor


def _check_tied(folder: str, embedding: Tensor, head: Tensor) -> None:
    reader = Reader(), Reader()
    for start in range(0, embedding.shape[0], _ROWS):
        rows = (slice(start, start + _ROWS), slice(None))
        if head.shape != embedding.shape or not np.array_equal(
            reader[0].read(embedding, rows), reader[1].read(head, rows)
        ):
            raise UserError(
                f"{folder}: tie_word_embeddings=true in config.json, but lm_head.weight is not the embedding; say false"
            )


def _held(folder: str) -> dict[str, Tensor]:
    """Every tensor of the text model's files, by name."""
    names = list_folder(folder)
    files = [name for name in names if name.endswith(_ENDING) and name != VISION]
    if INDEX in names:
        return _by_index(folder, read_json(join(folder, INDEX)))
    if not files:
        raise UserError(
            f"{folder}: no .safetensors files (pickled .bin and .pth weights are never read; convert them first)"
        )
    held: dict[str, Tensor] = {}
    for name in [WEIGHTS] if WEIGHTS in files else files:
        found = read_header(join(folder, name)).tensors
        if twice := sorted(held.keys() & found.keys()):
            raise UserError(f"{folder}: {twice[0]} is in {name} and in {held[twice[0]].file}; keep one of the two")
        held |= found
    return held


def _by_index(folder: str, index: Any) -> dict[str, Tensor]:
    where = join(folder, INDEX)
    told = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(told, dict) or not all(isinstance(name, str) for name in told.values()):
        raise UserError(f"{where} has no weight_map from weights to files")
    held: dict[str, Tensor] = {}
    for name in sorted(set(told.values())):
        if "/" in name or "\\" in name or not name.endswith(_ENDING) or name.startswith("."):
            raise UserError(f"{where} names {name!r}: weights are .safetensors files of the folder itself")
        held |= read_header(join(folder, name)).tensors
    for weight, name in told.items():
        if weight not in held or not held[weight].file.endswith(f"/{name}"):
            raise UserError(f"{where} says that {weight} is in {name}, and it is not; copy the folder again")
    return held


def _parts(leaf: Any, source: _Source, reader: Reader, head_dim: int) -> dict[tuple[tuple[int, int], ...], np.ndarray]:
    """The parts of a weight that this host's devices hold, each once; layer after layer: each tensor is met once."""
    indices = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
    parts = {
        key: np.empty([stop - start for start, stop in key], np.float32)
        for key in {_key(i, leaf.shape) for i in indices}
    }
    for layer, tensor in enumerate(source.tensors):
        for key, part in parts.items():
            spans = tuple(slice(start, stop) for start, stop in key)
            if source.place.stacked and not spans[0].start <= layer < spans[0].stop:
                continue
            inner = spans[1:] if source.place.stacked else spans
            found = source.place.ours(reader.read(tensor, source.place.spans(inner, head_dim)), head_dim)
            if source.place.stacked:
                part[layer - spans[0].start] = found
            else:
                part[...] = found
    return parts


def _key(index: Any, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(piece.indices(size)[:2] for piece, size in zip(index, shape, strict=True))
