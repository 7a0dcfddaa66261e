"""The families whose folders are read and written, as data: what they are called, and how their weights lie.

All are Llama's computation with two switches, biases of queries, keys and values and norms of heads. A family here is
therefore its names in config.json and these switches; the names of weights and how each lies are one table for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ringworld.errors import UserError
from ringworld.model.config import ModelConfig

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Family:
    """model_type and architecture: what config.json calls it.

    window: tokens of its sliding window where config.json says nothing; None: it then has none.
    window_switch: the key that turns the window on, where there is one.
    """

    model_type: str
    architecture: str
    qkv_biases: bool = False
    head_norms: bool = False
    window: int | None = None
    window_switch: str | None = None


FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (
        Family("llama", "LlamaForCausalLM"),
        Family("mistral", "MistralForCausalLM", window=4096),
        Family("qwen2", "Qwen2ForCausalLM", qkv_biases=True, window_switch="use_sliding_window"),
        Family("qwen3", "Qwen3ForCausalLM", head_norms=True, window_switch="use_sliding_window"),
    )
}

# Our weight -> (their name, how theirs lies). Theirs are [out, in]; `heads_out` is [heads * head_dim, embed],
# `heads_in` [embed, heads * head_dim], `heads` [heads * head_dim].
_LAYER = "model.layers.{layer}."
_LAYOUT: Mapping[str, tuple[str, str]] = {
    "embedding": ("model.embed_tokens.weight", "plain"),
    "norm": ("model.norm.weight", "plain"),
    "head": ("lm_head.weight", "transposed"),
    "layers.attention.norm": (_LAYER + "input_layernorm.weight", "plain"),
    "layers.attention.query": (_LAYER + "self_attn.q_proj.weight", "heads_out"),
    "layers.attention.key": (_LAYER + "self_attn.k_proj.weight", "heads_out"),
    "layers.attention.value": (_LAYER + "self_attn.v_proj.weight", "heads_out"),
    "layers.attention.query_bias": (_LAYER + "self_attn.q_proj.bias", "heads"),
    "layers.attention.key_bias": (_LAYER + "self_attn.k_proj.bias", "heads"),
    "layers.attention.value_bias": (_LAYER + "self_attn.v_proj.bias", "heads"),
    "layers.attention.query_norm": (_LAYER + "self_attn.q_norm.weight", "plain"),
    "layers.attention.key_norm": (_LAYER + "self_attn.k_norm.weight", "plain"),
    "layers.attention.output": (_LAYER + "self_attn.o_proj.weight", "heads_in"),
    "layers.mlp.norm": (_LAYER + "post_attention_layernorm.weight", "plain"),
    "layers.mlp.gate": (_LAYER + "mlp.gate_proj.weight", "transposed"),
    "layers.mlp.up": (_LAYER + "mlp.up_proj.weight", "transposed"),
    "layers.mlp.down": (_LAYER + "mlp.down_proj.weight", "transposed"),
}


@dataclass(frozen=True)
class Place:
    """Where a weight of ours is found in a folder: the name there, by layer where `stacked`, and how it lies."""

    template: str
    lies: str
    stacked: bool

    def name(self, layer: int = 0) -> str:
        return self.template.format(layer=layer)

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Theirs, of one layer, for ours of one layer."""
        if self.lies == "transposed":
            return ours[::-1]
        if self.lies == "heads_out":
            return (ours[1] * ours[2], ours[0])
        if self.lies == "heads_in":
            return (ours[2], ours[0] * ours[1])
        return (ours[0] * ours[1],) if self.lies == "heads" else ours

    def spans(self, ours: tuple[slice, ...], head_dim: int) -> tuple[slice, ...]:
        """Which part of theirs holds this part of ours; of heads, all dimensions."""
        if self.lies == "transposed":
            return ours[::-1]
        if self.lies == "heads_out":
            return (_flat(ours[1], head_dim), ours[0])
        if self.lies == "heads_in":
            return (ours[2], _flat(ours[0], head_dim))
        return (_flat(ours[0], head_dim),) if self.lies == "heads" else ours

    def ours(self, theirs: np.ndarray, head_dim: int) -> np.ndarray:
        """A part of theirs, whole heads, as ours lies: a view."""
        if self.lies == "transposed":
            return theirs.T
        if self.lies == "heads_out":
            return theirs.reshape(-1, head_dim, theirs.shape[1]).transpose(2, 0, 1)
        if self.lies == "heads_in":
            return theirs.reshape(theirs.shape[0], -1, head_dim).transpose(1, 2, 0)
        return theirs.reshape(-1, head_dim) if self.lies == "heads" else theirs

    def theirs(self, ours: np.ndarray) -> np.ndarray:
        """The inverse of `ours`, of a whole weight of one layer."""
        if self.lies == "transposed":
            return ours.T
        if self.lies == "heads_out":
            return ours.transpose(1, 2, 0).reshape(-1, ours.shape[0])
        if self.lies == "heads_in":
            return ours.transpose(2, 0, 1).reshape(ours.shape[2], -1)
        return ours.reshape(-1) if self.lies == "heads" else ours


def place_of(name: str) -> Place:
    """Where our weight `name`, such as `layers.mlp.gate`, is found. KeyError for vision: it has a file of its own."""
    template, lies = _LAYOUT[name]
    return Place(template, lies, name.startswith("layers."))


def family_of(config: ModelConfig) -> Family:
    """The family that a model is written as. UserError where none computes it."""
    switches = (config.qkv_biases, config.head_norms)
    if switches == (True, True):
        raise UserError("model.qkv_biases with model.head_norms: no family of transformers has both")
    if switches == (False, False):
        # transformers refuses a Llama whose width its heads do not divide; Mistral is the same computation.
        return FAMILIES["llama" if config.embed_dim % config.num_heads == 0 else "mistral"]
    return FAMILIES["qwen2" if config.qkv_biases else "qwen3"]


def _flat(heads: slice, head_dim: int) -> slice:
    return slice(heads.start * head_dim, heads.stop * head_dim)
