"""A Llama folder written by hand, weight by weight, is read back on any mesh."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from ringworld.errors import UserError
from ringworld.mesh import make_mesh, parse_mesh
from ringworld.model.config import ModelConfig
from ringworld.model.llama import init_params
from ringworld.train.weights import load_weights

CONFIG = ModelConfig(96, 2, 32, 4, 2, 8, 48)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(np.asarray, init_params(CONFIG, jax.random.key(3)))


@pytest.fixture
def folder(tmp_path, params):
    layers, weights = params["layers"], {}
    for n in range(2):
        attention, mlp, at = layers["attention"], layers["mlp"], f"model.layers.{n}."
        for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v")):
            weights[f"{at}self_attn.{theirs}_proj.weight"] = attention[ours][n].reshape(32, -1).T
        weights[f"{at}self_attn.o_proj.weight"] = attention["output"][n].reshape(-1, 32).T
        weights[f"{at}input_layernorm.weight"] = attention["norm"][n]
        weights[f"{at}post_attention_layernorm.weight"] = mlp["norm"][n]
        for name in ("gate", "up", "down"):
            weights[f"{at}mlp.{name}_proj.weight"] = mlp[name][n].T
    weights |= {"model.embed_tokens.weight": params["embedding"], "model.norm.weight": params["norm"]}
    weights["lm_head.weight"] = params["head"].T
    names = sorted(weights)
    for number, part in enumerate((names[:9], names[9:])):
        arrays = {name: np.ascontiguousarray(weights[name]) for name in part}
        save_file(arrays, tmp_path / f"model-{number}.safetensors")
    stated = {
        "model_type": "llama", "vocab_size": 96, "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 48, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(stated))
    return tmp_path


@pytest.mark.parametrize("mesh", ["fsdp=1", "fsdp=2,tensor=2", "tensor=2,ring=4"])
def test_every_weight_is_read_as_it_was_written(folder, params, mesh):
    spec = parse_mesh(f"fsdp=1,{mesh}" if "fsdp" not in mesh else mesh)
    count = int(np.prod(list(spec.sizes().values())))
    loaded = load_weights(str(folder), CONFIG, make_mesh(spec, jax.devices()[:count]))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, loaded), params)


def test_a_missing_shard_other_sizes_and_pickles_are_refused(folder):
    mesh = make_mesh(parse_mesh("fsdp=1"), jax.devices()[:1])
    (folder / "model-0.safetensors").unlink()
    with pytest.raises(UserError, match="is a shard missing"):
        load_weights(str(folder), CONFIG, mesh)
    (folder / "model-1.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="never read"):
        load_weights(str(folder), CONFIG, mesh)
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stated | {"intermediate_size": 50}))
    with pytest.raises(UserError, match=r"mlp_dim=48, but .* has 50"):
        load_weights(str(folder), CONFIG, mesh)
