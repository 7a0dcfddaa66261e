"""Weights to start from, wherever they are: those of another stage, or a Hugging Face folder."""

from __future__ import annotations

import os

from jax.sharding import Mesh

from ringworld.model.config import ModelConfig
from ringworld.model.huggingface import load_llama
from ringworld.model.llama import Params
from ringworld.model.sharding import placed_params
from ringworld.train.checkpoint import load_params


def load_weights(path: str, config: ModelConfig, mesh: Mesh) -> Params:
    """Float32 weights of `config` on the mesh, from a folder with a config.json (Hugging Face) or a `params` artifact.

    UserError where nothing is there, or the weights are of another model.
    """
    wanted = placed_params(config, mesh)
    if os.path.isfile(os.path.join(path, "config.json")):
        return load_llama(path, config, wanted)
    return load_params(path, wanted)
