"""Folders written by hand, weight by weight, are read on any mesh; damaged and foreign ones are refused by name."""

import json
import shutil
import struct
from dataclasses import replace

import fsspec
import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ringworld.distributed import join
from ringworld.errors import UserError
from ringworld.huggingface.families import INDEX
from ringworld.huggingface.read import check_folder
from ringworld.mesh import make_mesh, parse_mesh
from ringworld.train.weights import load_weights
from tests.ringworld.huggingface.folders import LLAMA, SHARDS, STATED, by_hand, llama_folder, mesh_of, random_params
from tests.ringworld.ranks import await_all, start_two


@pytest.fixture(scope="module")
def params():
    return random_params(LLAMA)


@pytest.fixture
def folder(tmp_path, params):
    return llama_folder(tmp_path, params)


def same(loaded, params):
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, loaded), params)


@pytest.mark.parametrize("mesh", ["fsdp=1", "fsdp=2,tensor=2", "tensor=2,ring=4"])
def test_every_weight_is_read_as_it_was_written(folder, params, mesh):
    same(load_weights(str(folder), LLAMA, mesh_of(mesh)), params)


def one_of_two(rank: int, coordinator: str, folder: str, written: str):
    """A process of a job: its own device has half of what is split, and every bit of it is right."""
    join(coordinator, 2, rank, "")
    loaded = load_weights(folder, LLAMA, make_mesh(parse_mesh("fsdp=2")))
    split = 0
    with np.load(written) as wholes:
        for mine, name in zip(jax.tree.leaves(loaded), wholes, strict=True):
            (shard,) = mine.addressable_shards
            split += shard.data.size < wholes[name].size
            np.testing.assert_array_equal(np.asarray(shard.data), wholes[name][shard.index])
    assert split > 5


def test_two_processes_read_a_folder_together(folder, params):
    np.savez(folder / "written.npz", *jax.tree.leaves(params))
    script = "from tests.ringworld.huggingface.test_read import one_of_two; one_of_two({}, {!r}, {!r}, {!r})"
    given = str(folder), str(folder / "written.npz")
    ended = await_all(start_two(lambda rank, coordinator: ["-c", script.format(rank, coordinator, *given)]))
    assert [code for code, _ in ended] == [0, 0], ended


def test_a_folder_is_read_from_a_url_without_an_index_and_in_16_bits(tmp_path, params):
    memory = fsspec.filesystem("memory")
    for dtype, half in (("BF16", ml_dtypes.bfloat16), ("F16", np.float16)):
        weights = {name: weight.astype(half) for name, weight in by_hand(params, LLAMA).items()}
        _save(tmp_path / "model.safetensors", weights, dtype)
        (tmp_path / "config.json").write_text(json.dumps(_stated()))
        memory.put(str(tmp_path), f"/{dtype}", recursive=True)
        rounded = jax.tree.map(lambda leaf, half=half: leaf.astype(half).astype(np.float32), params)
        same(load_weights(f"memory://{dtype}", LLAMA, mesh_of("fsdp=2,tensor=2")), rounded)


def test_a_head_that_is_the_embedding_is_tied_whether_it_is_in_the_files_or_not(tmp_path):
    config = replace(LLAMA, tied_embeddings=True)
    tied = random_params(config)
    folder = llama_folder(tmp_path, tied, config)
    same(load_weights(str(folder), config, mesh_of("fsdp=1")), tied)
    weights = load_file(folder / SHARDS[0])
    _again(folder, weights | {"lm_head.weight": tied["embedding"]})
    same(load_weights(str(folder), config, mesh_of("fsdp=1")), tied)
    _again(folder, weights | {"lm_head.weight": tied["embedding"] + 1})
    with pytest.raises(UserError, match=r"tie_word_embeddings=true .* is not the embedding"):
        check_folder(str(folder))


def _again(folder, weights):
    save_file(weights, folder / SHARDS[0])
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= dict.fromkeys(weights, SHARDS[0])
    (folder / INDEX).write_text(json.dumps(index))


def _stated(**changes):
    return STATED | changes


def _save(file, weights, dtype):
    """A safetensors file of any dtype, byte by byte."""
    header, data = {}, b""
    for name, weight in weights.items():
        raw = weight.tobytes()
        header[name] = {"dtype": dtype, "shape": list(weight.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def _without_shard(folder):
    (folder / SHARDS[0]).unlink()


def _cut_short(folder):
    data = (folder / SHARDS[1]).read_bytes()
    (folder / SHARDS[1]).write_bytes(data[:-100])


def _no_safetensors(folder):
    (folder / SHARDS[0]).write_bytes(b"<html>not found</html>")


def _absent(folder):
    weights = load_file(folder / SHARDS[0])
    weights.pop(sorted(weights)[0])
    save_file(weights, folder / SHARDS[0])


def _leaves(folder):
    shutil.copy(folder / SHARDS[0], folder.parent / "elsewhere.safetensors")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = "../elsewhere.safetensors"
    (folder / INDEX).write_text(json.dumps(index))


def _leaves_by_root(folder):
    shutil.copy(folder / SHARDS[0], folder.parent / "elsewhere.safetensors")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = str(folder.parent / "elsewhere.safetensors")
    (folder / INDEX).write_text(json.dumps(index))


def _pickled(folder):
    for name in (*SHARDS, INDEX):
        (folder / name).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


def _eight_bits(folder):
    weights = load_file(folder / SHARDS[0])
    _save(folder / SHARDS[0], {name: np.zeros(weight.shape, np.uint8) for name, weight in weights.items()}, "F8_E4M3")


def _said(**changes):
    def change(folder):
        told = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(told | changes))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_shard, "00001-of-00002.safetensors is not there; is a shard missing"),
        (_cut_short, "cut short"),
        (_no_safetensors, "no safetensors file"),
        (_absent, "says that .* is in model-00001"),
        (_leaves, r"names '\.\./elsewhere.safetensors': weights are .safetensors files of the folder itself"),
        (_leaves_by_root, r"weights are \.safetensors files of the folder itself"),
        (_pickled, "never read"),
        (_eight_bits, "is F8_E4M3; only F32, F16, BF16 are read"),
        (_said(model_type="gpt2"), "model_type='gpt2'; known: llama, mistral, qwen2, qwen3"),
        (_said(intermediate_size=50), r"has shape \[.*48.*\], by config.json it has"),
        (_said(num_hidden_layers=1), "no part of the model"),
        (_said(num_hidden_layers=3), "is a shard missing"),
        (_said(num_key_value_heads=4), "by config.json it has"),
        (_said(tie_word_embeddings=True), "is not the embedding"),
        (_said(attention_bias=True), "attention_bias=True is not computed here"),
        (_said(hidden_act="gelu"), "hidden_act='gelu'"),
        (_said(quantization_config={"quant_method": "fp8"}), "quantization_config"),
        (_said(vocab_size="many"), "vocab_size='many'; expected a whole number"),
        (_said(rope_scaling={"rope_type": "longrope", "factor": 2.0}), "rope_type='longrope' is not computed"),
        (_said(rope_scaling={"rope_type": "dynamic", "factor": 2.0}), "dynamic changes its base"),
        (_said(rope_scaling={"rope_type": "llama3", "factor": 2.0}), "lacks 'low_freq_factor'"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message):
        check_folder(str(folder))


def test_an_untied_config_without_a_head_is_refused(tmp_path):
    config = replace(LLAMA, tied_embeddings=True)
    folder = llama_folder(tmp_path, random_params(config), config, tie_word_embeddings=False)
    with pytest.raises(UserError, match=r"tie_word_embeddings=False in config\.json, and no lm_head"):
        check_folder(str(folder))


def test_a_recipe_of_other_sizes_is_refused(folder):
    with pytest.raises(UserError, match=r"mlp_dim=50, but .* has 48"):
        load_weights(str(folder), replace(LLAMA, mlp_dim=50), mesh_of("fsdp=1"))


def test_a_sliding_window_is_refused_where_rows_are_longer(tmp_path, params):
    changed = {"model_type": "mistral", "sliding_window": 128}
    folder = str(llama_folder(tmp_path, params, **changed))
    same(load_weights(folder, LLAMA, mesh_of("fsdp=1"), sequence=128), params)
    for sequence in (129, None):  # None: the folder's own 512
        with pytest.raises(UserError, match="sliding_window=128"):
            load_weights(folder, LLAMA, mesh_of("fsdp=1"), sequence=sequence)
    _said(sliding_window=None)(tmp_path)
    same(load_weights(folder, LLAMA, mesh_of("fsdp=1")), params)
