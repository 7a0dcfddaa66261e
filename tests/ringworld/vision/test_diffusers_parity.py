"""Codes and pixels equal those of diffusers' `VQModel`, by folders written on either side. Needs the `parity` extra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.vision.codec import Codec
from ringworld.vision.config import VQConfig
from ringworld.vision.vqgan import CODES, bind
from ringworld.vision.vqgan_import import read_vqgan, write_vqgan
from tests.ringworld.vision.vqgans import random_params

torch = pytest.importorskip("torch", reason="pip install .[parity]")
diffusers = pytest.importorskip("diffusers", reason="pip install .[parity]")

# Channels and sides for which convolutions are filtered, one level as it is; as many blocks as aMUSEd has.
CONFIG = VQConfig(64, (16, 64, 256), blocks=2, latent=12, code_dim=8, codebook=128, groups=8)


def theirs(config: VQConfig):
    """A random VQModel whose codes lie as far apart as latents do."""
    torch.manual_seed(0)
    levels = len(config.channels)
    model = diffusers.VQModel(
        block_out_channels=config.channels, layers_per_block=config.blocks, latent_channels=config.latent,
        vq_embed_dim=config.code_dim, num_vq_embeddings=config.codebook, norm_num_groups=config.groups,
        sample_size=config.resolution, down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels, mid_block_add_attention=False, lookup_from_codebook=True,
    ).eval()  # fmt: skip
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            torch.nn.init.normal_(weight, float("norm" in name and "weight" in name), 0.3)
    with torch.inference_mode():
        latents = model.encode(pixels_of(blocks(0))).latents.permute(0, 2, 3, 1).reshape(-1, config.code_dim)
    drawn = latents[torch.randperm(len(latents))[: config.codebook]]
    model.quantize.embedding.weight.data = drawn + 0.1 * drawn.std() * torch.randn(drawn.shape)
    return model


def blocks(seed: int) -> np.ndarray:
    """uint8 [3, 64, 64, 3] of many colours, with edges in every code's part of the picture."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 200, (3, 16, 16, 3)).repeat(4, axis=1).repeat(4, axis=2)
    return (coarse + random.integers(0, 56, (3, 64, 64, 3))).astype(np.uint8)


def pixels_of(given: np.ndarray):
    return torch.tensor(given / np.float32(255)).permute(0, 3, 1, 2)


def check_same(config, params, model) -> None:
    given = blocks(1)
    codec = Codec(config, params, batch=3)
    codes = codec.encode(given)
    with torch.inference_mode():
        latents = model.encode(pixels_of(given)).latents
        expected = model.quantize(latents)[2][2].reshape(codes.shape)
        made = model.decode(
            expected.reshape(-1), force_not_quantize=True, shape=(*codes.shape, config.code_dim)
        ).sample.permute(0, 2, 3, 1)
    np.testing.assert_array_equal(codes, expected.numpy())
    assert len(np.unique(codes)) > 16
    pixels = jax.jit(lambda params, codes: bind(config, params).decode(codes))(params, jnp.asarray(codes))
    assert float(made.std()) > 0.05
    np.testing.assert_allclose(pixels, made.numpy(), atol=1e-3)


def test_a_folder_of_theirs_is_read(tmp_path):
    model = theirs(CONFIG)
    model.save_pretrained(tmp_path)
    config, params = read_vqgan(str(tmp_path))
    assert config == CONFIG
    check_same(config, params, model)


def test_a_folder_of_ours_is_read(tmp_path):
    params = random_params(CONFIG)
    latents = jax.jit(lambda params, pixels: bind(CONFIG, params).latents(pixels))(params, blocks(0) / np.float32(255))
    params[CODES] = jax.random.permutation(jax.random.key(0), latents.reshape(-1, CONFIG.code_dim))[: CONFIG.codebook]
    write_vqgan(str(tmp_path), CONFIG, params)
    model = diffusers.VQModel.from_pretrained(tmp_path).eval()
    check_same(CONFIG, params, model)
