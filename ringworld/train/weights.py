"""Weights to start from, wherever they are: those of another stage, or a Hugging Face folder."""

from __future__ import annotations

from dataclasses import replace

import jax
from jax.sharding import Mesh

from ringworld.data.files import exists, join
from ringworld.errors import UserError
from ringworld.huggingface.read import load_folder
from ringworld.huggingface.vision import vision_vocabulary
from ringworld.model.config import ModelConfig
from ringworld.model.init import init_params
from ringworld.model.llama import Params
from ringworld.model.sharding import param_shardings, placed_params
from ringworld.train.checkpoint import load_params, stored_names


def load_weights(
    path: str, config: ModelConfig, mesh: Mesh, new_rows: int | None = None, sequence: int | None = None
) -> Params:
    """Float32 weights of `config` on the mesh, from a folder with a config.json (Hugging Face) or a `params` artifact.

    new_rows: the seed of the rows of vision tokens, where the weights are of a text model and `config` sees; all other
    weights stay as they are, bit for bit. sequence: tokens of the longest rows that the model is to see; of a Hugging
    Face folder, its context if left out. UserError where nothing is there, or the weights are of another model.
    """
    from_huggingface = exists(join(path, "config.json"))
    if from_huggingface:
        sees = vision_vocabulary(path) > 0
    else:
        sees = "vision" in {name.partition(".")[0] for name in stored_names(path)}
    grows = config.vision_vocabulary > 0 and not sees
    if grows and new_rows is None:
        raise UserError(f"{path} has no rows for vision tokens: it is a text model, and cannot be given pictures")
    found = replace(config, vision_vocabulary=0) if grows else config
    wanted = placed_params(found, mesh)
    params = load_folder(path, found, wanted, sequence) if from_huggingface else load_params(path, wanted)
    if grows and new_rows is not None:
        shardings = param_shardings(config, mesh)["vision"]
        fresh = jax.jit(lambda key: init_params(config, key)["vision"], out_shardings=shardings)
        params = {**params, "vision": fresh(jax.random.key(new_rows))}
    return params
