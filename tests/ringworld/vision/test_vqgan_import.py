"""Folders of weights: what is written is read again bit by bit; what cannot be computed here is refused by name."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ringworld.errors import UserError
from ringworld.vision.vqgan import CODES
from ringworld.vision.vqgan_import import CONFIG, WEIGHTS, read_vqgan, read_vqgan_config, weights_sha256, write_vqgan
from tests.ringworld.vision.vqgans import SMALL, random_params


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_vqgan(str(tmp_path), SMALL, random_params())
    return tmp_path


def restate(folder: Path, **fields: object) -> None:
    stated = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**stated, **fields}))


def reweigh(folder: Path, change) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)


def test_what_is_written_is_read_again(folder, tmp_path):
    config, params = read_vqgan(str(folder))
    assert config == SMALL
    expected = random_params()
    assert params.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(params[name], value)
    assert load_file(folder / WEIGHTS)["encoder.conv_in.weight"].shape == (8, 3, 3, 3)  # [out, in, height, width]
    digest = weights_sha256(str(folder))
    write_vqgan(str(tmp_path / "again"), config, params)
    assert weights_sha256(str(tmp_path / "again")) == digest
    write_vqgan(str(tmp_path / "other"), SMALL, random_params(seed=1))
    assert weights_sha256(str(tmp_path / "other")) != digest


def test_half_precision_another_file_name_and_another_resolution_are_read(folder):
    import jax.numpy as jnp
    from safetensors.flax import save_file as save_flax

    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    save_flax({name: jnp.asarray(value, jnp.bfloat16) for name, value in weights.items()}, folder / "x.safetensors")
    config, params = read_vqgan(str(folder), resolution=64)
    assert config.resolution == 64
    assert params[CODES].dtype == np.float32
    np.testing.assert_allclose(params[CODES], weights[CODES], rtol=1e-2)


def test_fields_that_diffusers_leaves_out_or_writes_anyway_change_nothing(folder):
    restate(folder, vq_embed_dim=None, _diffusers_version="9.9", scaling_factor=0.18, _name_or_path="x")
    assert read_vqgan_config(str(folder)).code_dim == SMALL.latent


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mid_block_add_attention": True}, "mid_block_add_attention=True; only False is computed"),
        ({"norm_type": "spatial"}, "norm_type='spatial'"),
        ({"act_fn": "gelu"}, "act_fn='gelu'"),
        ({"use_tiling": 1}, "unknown field use_tiling=1"),
        ({"_class_name": "AutoencoderKL"}, "_class_name='AutoencoderKL'; only VQModel"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, "expected DownEncoderBlock2D, 2 times"),
        ({"latent_channels": "64"}, "latent_channels='64'; expected a whole number"),
        ({"norm_num_groups": 3}, "8 is not a multiple of groups=3"),
        ({"num_vq_embeddings": 31}, r"a codebook of 32 x 6, but config\.json says 31 codes of 6 dimensions"),
        ({"vq_embed_dim": 7}, r"a codebook of 32 x 6, but config\.json says 32 codes of 7"),
        (
            {"latent_channels": 9},
            r"decoder\.conv_in\.weight is \[16, 8, 3, 3\], but config\.json makes it \[16, 9, 3, 3\]",
        ),
        ({"layers_per_block": 2}, r"lacks .*resnets\.2\..*, 32 of 137 weights"),
    ],
)
def test_what_is_not_computed_here_is_refused_by_its_name(folder, fields, message):
    restate(folder, **fields)
    with pytest.raises(UserError, match=message):
        read_vqgan(str(folder))


def test_files_that_are_not_whole_are_refused(folder):
    reweigh(folder, lambda weights: weights.pop("quant_conv.bias"))
    with pytest.raises(UserError, match=r"lacks quant_conv\.bias, 1 of \d+ weights"):
        read_vqgan(str(folder))
    reweigh(folder, lambda weights: weights.update({"quant_conv.bias": np.ones(6, np.float32), "x.y": np.ones(1)}))
    with pytest.raises(UserError, match=r"has the unknown x\.y"):
        read_vqgan(str(folder))
    reweigh(folder, lambda weights: weights.update({"quant_conv.bias": np.ones(6, np.int8)}))
    with pytest.raises(UserError, match=r"quant_conv\.bias is of I8; expected F64, F32, F16, BF16"):
        read_vqgan(str(folder))
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_vqgan(str(folder))
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"no \.safetensors file .*\.bin weights are never read"):
        read_vqgan(str(folder))
    (folder / CONFIG).write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_vqgan(str(folder))
    (folder / CONFIG).unlink()
    with pytest.raises(UserError, match=r"no config\.json"):
        read_vqgan(str(folder))
