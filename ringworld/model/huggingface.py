"""Weights of a Hugging Face Llama folder (config.json and safetensors), read sharded.

Each device's part of each weight is read from the files by itself, so no host holds the whole model. Nothing is
unpickled: a folder with only .bin files is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import safe_open

from ringworld.errors import UserError
from ringworld.model.config import ModelConfig, RopeConfig
from ringworld.model.llama import Params

# Our weight -> (their name, how theirs lies). Theirs are [out, in]; `heads_out` is [heads * head_dim, embed],
# `heads_in` is [embed, heads * head_dim].
_LAYER = "model.layers.{layer}."
_NAMES: Mapping[str, tuple[str, str]] = {
    "embedding": ("model.embed_tokens.weight", "plain"),
    "norm": ("model.norm.weight", "plain"),
    "head": ("lm_head.weight", "transposed"),
    "layers.attention.norm": (_LAYER + "input_layernorm.weight", "plain"),
    "layers.attention.query": (_LAYER + "self_attn.q_proj.weight", "heads_out"),
    "layers.attention.key": (_LAYER + "self_attn.k_proj.weight", "heads_out"),
    "layers.attention.value": (_LAYER + "self_attn.v_proj.weight", "heads_out"),
    "layers.attention.output": (_LAYER + "self_attn.o_proj.weight", "heads_in"),
    "layers.mlp.norm": (_LAYER + "post_attention_layernorm.weight", "plain"),
    "layers.mlp.gate": (_LAYER + "mlp.gate_proj.weight", "transposed"),
    "layers.mlp.up": (_LAYER + "mlp.up_proj.weight", "transposed"),
    "layers.mlp.down": (_LAYER + "mlp.down_proj.weight", "transposed"),
}


def read_config(folder: str) -> ModelConfig:
    """The ModelConfig that a folder's config.json states. UserError for a model that is not a Llama."""
    try:
        stated = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: no config.json; give the folder of a Hugging Face model") from None
    if stated.get("model_type") != "llama":
        raise UserError(f"{folder}: model_type={stated.get('model_type')!r}; only llama folders can be read")
    heads, embed_dim = stated["num_attention_heads"], stated["hidden_size"]
    rope = stated.get("rope_parameters") or {}
    return ModelConfig(
        vocabulary=stated["vocab_size"],
        num_layers=stated["num_hidden_layers"],
        embed_dim=embed_dim,
        num_heads=heads,
        num_kv_heads=stated.get("num_key_value_heads", heads),
        head_dim=stated.get("head_dim") or embed_dim // heads,
        mlp_dim=stated["intermediate_size"],
        tied_embeddings=stated.get("tie_word_embeddings", False),
        norm_epsilon=stated["rms_norm_eps"],
        rope=RopeConfig(theta=float(stated.get("rope_theta") or rope.get("rope_theta", 10_000.0))),
    )


def load_llama(folder: str, config: ModelConfig, abstract_params: Params) -> Params:
    """Weights of a folder as float32, sharded as `abstract_params` says; theta is the recipe's, not the folder's.

    UserError where the folder is of other sizes, or lacks a weight.
    """
    stated = read_config(folder)
    for name in ModelConfig.__dataclass_fields__:
        if name != "rope" and getattr(stated, name) != getattr(config, name):
            raise UserError(f"model.{name}={getattr(config, name)}, but {folder} has {getattr(stated, name)}")
    files = _Files(folder)

    def build(path: Any, wanted: Any) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        theirs, lies = _NAMES[name]
        stacked = name.startswith("layers.")

        def part(index: Any) -> np.ndarray:
            spans = tuple(slice(*piece.indices(size)[:2]) for piece, size in zip(index, wanted.shape, strict=True))
            if not stacked:
                return _read(files, theirs, lies, spans, config.head_dim)
            layers = range(spans[0].start, spans[0].stop)
            return np.stack([_read(files, theirs.format(layer=n), lies, spans[1:], config.head_dim) for n in layers])

        return jax.make_array_from_callback(wanted.shape, wanted.sharding, part)

    return jax.tree_util.tree_map_with_path(build, abstract_params)


def _read(files: _Files, name: str, lies: str, spans: tuple[slice, ...], head_dim: int) -> np.ndarray:
    if lies == "plain":
        return files.read(name, spans)
    if lies == "transposed":
        return files.read(name, spans[::-1]).T
    if lies == "heads_out":  # ours [embed, heads, head_dim]
        embed, heads, dims = spans
        rows = files.read(name, (_flat(heads, head_dim), embed))
        return rows.reshape(-1, head_dim, rows.shape[1])[:, dims].transpose(2, 0, 1)
    heads, dims, embed = spans  # heads_in: ours [heads, head_dim, embed]
    columns = files.read(name, (embed, _flat(heads, head_dim)))
    return columns.reshape(columns.shape[0], -1, head_dim)[:, :, dims].transpose(1, 2, 0)


def _flat(heads: slice, head_dim: int) -> slice:
    return slice(heads.start * head_dim, heads.stop * head_dim)


class _Files:
    """The safetensors files of a folder as one table of weights."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        names = sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))
        if not names:
            raise UserError(
                f"{folder}: no .safetensors files (pickled .bin weights are never read; convert them first)"
            )
        self._open = [safe_open(os.path.join(folder, name), framework="flax") for name in names]
        self._where = {key: handle for handle in self._open for key in handle.keys()}  # noqa: SIM118 (not a mapping)

    def read(self, name: str, spans: tuple[slice, ...]) -> np.ndarray:
        if name not in self._where:
            raise UserError(f"{self._folder}: weight {name} is in none of its safetensors files; is a shard missing?")
        return np.asarray(self._where[name].get_slice(name)[spans]).astype(np.float32)
