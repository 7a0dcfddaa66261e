"""Random models as folders, weight by weight as transformers lays them, by the library's own writer."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

from ringworld.huggingface.families import INDEX
from ringworld.mesh import make_mesh, parse_mesh
from ringworld.model.config import ModelConfig
from ringworld.model.init import init_params

LLAMA = ModelConfig(96, 2, 32, 4, 2, 8, 48)
CONFIGS = {
    "llama": LLAMA,
    "llama, tied": replace(LLAMA, tied_embeddings=True),
    "mistral": replace(LLAMA, embed_dim=24, num_heads=5, num_kv_heads=5),  # heads that do not divide the width
    "qwen2": replace(LLAMA, qkv_biases=True, norm_epsilon=1e-6),
    "qwen3": replace(LLAMA, head_norms=True, head_dim=16),
}


def random_params(config: ModelConfig, seed: int = 3):
    """Weights of which no two are the same, biases and norms among them."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (np.asarray(leaf) + rng.normal(0, 0.1, leaf.shape)).astype(np.float32),
        init_params(config, jax.random.key(seed)),
    )


def mesh_of(text: str):
    spec = parse_mesh(f"fsdp=1,{text}" if "fsdp" not in text else text)
    return make_mesh(spec, jax.devices()[: int(np.prod(list(spec.sizes().values())))])


def by_hand(params, config: ModelConfig) -> dict[str, np.ndarray]:
    """The tensors of a folder, written out here and not by the tables under test."""
    layers, weights = params["layers"], {}
    for n in range(config.num_layers):
        attention, mlp, at = layers["attention"], layers["mlp"], f"model.layers.{n}."
        for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v")):
            weights[f"{at}self_attn.{theirs}_proj.weight"] = attention[ours][n].reshape(config.embed_dim, -1).T
            if config.qkv_biases:
                weights[f"{at}self_attn.{theirs}_proj.bias"] = attention[f"{ours}_bias"][n].reshape(-1)
        if config.head_norms:
            weights[f"{at}self_attn.q_norm.weight"] = attention["query_norm"][n]
            weights[f"{at}self_attn.k_norm.weight"] = attention["key_norm"][n]
        weights[f"{at}self_attn.o_proj.weight"] = attention["output"][n].reshape(-1, config.embed_dim).T
        weights[f"{at}input_layernorm.weight"] = attention["norm"][n]
        weights[f"{at}post_attention_layernorm.weight"] = mlp["norm"][n]
        for name in ("gate", "up", "down"):
            weights[f"{at}mlp.{name}_proj.weight"] = mlp[name][n].T
    weights |= {"model.embed_tokens.weight": params["embedding"], "model.norm.weight": params["norm"]}
    if not config.tied_embeddings:
        weights["lm_head.weight"] = params["head"].T
    return {name: np.ascontiguousarray(weight) for name, weight in weights.items()}


STATED = {
    "model_type": "llama", "vocab_size": 96, "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
    "max_position_embeddings": 512,
}  # fmt: skip
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def llama_folder(folder: Path, params, config: ModelConfig = LLAMA, **changes) -> Path:
    """A Llama in two shards with their index. changes: of config.json."""
    weights, where = by_hand(params, config), {}
    names = sorted(weights)
    for name, part in zip(SHARDS, (names[:9], names[9:]), strict=True):
        save_file({weight: weights[weight] for weight in part}, folder / name)
        where |= dict.fromkeys(part, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    told = STATED | {"tie_word_embeddings": config.tied_embeddings} | changes
    (folder / "config.json").write_text(json.dumps(told))
    return folder
