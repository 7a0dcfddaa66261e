"""import(export(x)) == x, bit for bit, for every family; the files are those that safetensors itself reads."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors import safe_open

from ringworld.errors import UserError
from ringworld.huggingface.config_json import config_json, read_config
from ringworld.huggingface.families import INDEX, family_of
from ringworld.huggingface.read import check_folder
from ringworld.huggingface.vision import VISION, Codes, write_vision
from ringworld.huggingface.write import SHARD_BYTES, write_weights
from ringworld.model.config import ModelConfig, RopeConfig
from ringworld.model.rope import make_rope
from ringworld.train.weights import load_weights
from tests.ringworld.huggingface.folders import CONFIGS, LLAMA, by_hand, mesh_of, random_params

ROPES = {
    "theta": RopeConfig(5e5),
    "linear": RopeConfig(1e4, "linear", 4.0),
    "yarn": RopeConfig(1e6, "yarn", 4.0, 2048),
    "yarn, cooler": RopeConfig(1e6, "yarn", 4.0, 2048, 16.0, 2.0, attention_factor=1.25),
    "llama3": RopeConfig(5e5, "llama3", 8.0, 8192, low_frequency_factor=2.0, high_frequency_factor=5.0),
}


def leaf_of(params, name):
    for key in name.split("."):
        params = params[key]
    return params


def written(folder, config: ModelConfig, params, dtype="F32", limit=SHARD_BYTES, at_once=1 << 30) -> None:
    def read(name, start, stop):
        leaf = leaf_of(params, name)
        return leaf[start:stop] if stop else leaf

    write_weights(str(folder), config, read, dtype, limit, at_once)
    if config.vision_vocabulary:
        write_vision(str(folder), config, lambda name: leaf_of(params, name), Codes(20, "ab" * 32), dtype)
    told = config_json(config, 512, "float32", None, [2])
    (folder / "config.json").write_text(json.dumps(told))


@pytest.mark.parametrize("name", list(CONFIGS))
def test_what_is_exported_comes_back_bit_for_bit(tmp_path, name):
    config = CONFIGS[name]
    params = random_params(config)
    written(tmp_path, config, params, limit=20_000, at_once=3_000)
    assert family_of(config).model_type == name.partition(",")[0]
    assert read_config(str(tmp_path)) == config
    mesh = mesh_of("fsdp=2,tensor=2" if config.num_kv_heads % 2 == 0 else "fsdp=2")
    loaded = load_weights(str(tmp_path), config, mesh)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, loaded), params)


def test_the_files_are_those_that_the_library_reads(tmp_path):
    params = random_params(LLAMA)
    written(tmp_path, LLAMA, params, limit=20_000, at_once=1)
    index = json.loads((tmp_path / INDEX).read_text())
    expected, found = by_hand(params, LLAMA), {}
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [file.name for file in files] == sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    for file in files:
        assert file.stat().st_size < 22_000
        with safe_open(file, framework="numpy") as opened:
            assert opened.metadata() == {"format": "pt"}
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
            assert all(index["weight_map"][name] == file.name for name in opened.keys())  # noqa: SIM118
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        np.testing.assert_array_equal(found[name], weight)
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in expected.values())


def test_half_as_large_is_rounded_once(tmp_path):
    params = random_params(LLAMA)
    written(tmp_path, LLAMA, params, dtype="BF16")
    loaded = load_weights(str(tmp_path), LLAMA, mesh_of("fsdp=1"))
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, np.asarray(b).astype(jax.numpy.bfloat16)), loaded, params
    )


@pytest.mark.parametrize("name", list(ROPES))
def test_positions_come_back_as_they_were(tmp_path, name):
    config = replace(LLAMA, rope=ROPES[name])
    (tmp_path / "config.json").write_text(json.dumps(config_json(config, 32_768, "float32", None, [2])))
    assert read_config(str(tmp_path)).rope == ROPES[name]


def test_a_base_stretched_by_ntk_comes_back_as_that_base(tmp_path):
    config = replace(LLAMA, rope=RopeConfig(1e4, "ntk", 8.0))
    (tmp_path / "config.json").write_text(json.dumps(config_json(config, 4096, "float32", None, [2])))
    found = read_config(str(tmp_path)).rope
    assert found.scaling == "none"
    np.testing.assert_array_equal(make_rope(found, 8).frequencies, make_rope(config.rope, 8).frequencies)


def test_biases_with_norms_of_heads_are_no_family():
    with pytest.raises(UserError, match="no family of transformers has both"):
        family_of(replace(LLAMA, qkv_biases=True, head_norms=True))


def test_a_model_that_sees_comes_back_whole_and_reads_as_its_text(tmp_path):
    config = replace(LLAMA, vision_vocabulary=24)
    params = random_params(config)
    written(tmp_path, config, params)
    assert read_config(str(tmp_path)) == config
    loaded = jax.tree.map(np.asarray, load_weights(str(tmp_path), config, mesh_of("fsdp=2,tensor=2")))
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    text = jax.tree.map(np.asarray, load_weights(str(tmp_path), LLAMA, mesh_of("fsdp=1")))
    assert "vision" not in text
    np.testing.assert_array_equal(text["embedding"], params["embedding"])
    with safe_open(tmp_path / VISION, framework="numpy") as opened:
        told = {"offset": "96", "vocabulary": "24", "codebook": "20", "eof": "116", "eov": "117", "vqgan": "ab" * 32}
        assert opened.metadata() == told | {"schema": "1", "format": "pt"}
        np.testing.assert_array_equal(opened.get_tensor("vision_head.weight"), params["vision"]["head"].T)
    stated = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(stated | {"vocab_size": 95}))
    with pytest.raises(UserError, match=r"by config.json it has \[95"):
        check_folder(str(tmp_path))
