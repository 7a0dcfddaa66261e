"""A VQGAN as a folder: config.json and one safetensors file, both as diffusers' `VQModel` writes and reads them.

What `write_vqgan` writes, `VQModel.from_pretrained` reads, and the other way round: weights have the same names here as
there, and a convolution's lies [out, in, height, width] in the file. Nothing is unpickled: a folder with only .bin
files is refused. A field of config.json that would change what the network computes, and that we do not compute, is
refused by its name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from ringworld.data.files import join, list_files, read_bytes, write_bytes
from ringworld.errors import UserError
from ringworld.vision.config import VQConfig
from ringworld.vision.parameters import Params
from ringworld.vision.vqgan import CODES, abstract_params

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
# Fields that say nothing of what encode and decode compute.
_ANY = {"lookup_from_codebook", "scaling_factor", "force_upcast"}
# Fields of which one value is computed here: (what is allowed, what diffusers takes where the field is missing).
_FIXED: Mapping[str, tuple[Any, Any]] = {
    "in_channels": (3, 3),
    "out_channels": (3, 3),
    "act_fn": ("silu", "silu"),
    "norm_type": ("group", "group"),
    "mid_block_add_attention": (False, True),
}
# By the names of safetensors, whose own reader for NumPy knows no bfloat16.
_TYPES: Mapping[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
_SIZES = {
    "block_out_channels", "layers_per_block", "latent_channels", "vq_embed_dim", "num_vq_embeddings",
    "norm_num_groups", "sample_size", "down_block_types", "up_block_types",
}  # fmt: skip


def read_vqgan_config(folder: str, resolution: int | None = None) -> VQConfig:
    """The sizes that a folder's config.json states. UserError for what is missing, unknown or not computed here.

    resolution: pixels of a side, instead of `sample_size`; that of aMUSEd's folders is 32 for a model of 256 pixels.
    """
    stated = _stated(folder)

    def size(name: str, least: int = 1) -> int:
        value = stated.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(f"{folder}/{CONFIG}: {name}={value!r}; expected a whole number, {least} or more")
        return value

    channels = stated.get("block_out_channels")
    if not isinstance(channels, list) or not all(type(item) is int for item in channels):
        raise UserError(f"{folder}/{CONFIG}: block_out_channels={channels!r}; expected a list of whole numbers")
    for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if stated.get(name) != [kind] * len(channels):
            raise UserError(f"{folder}/{CONFIG}: {name}={stated.get(name)!r}; expected {kind}, {len(channels)} times")
    try:
        return VQConfig(
            resolution=resolution or size("sample_size"),
            channels=tuple(channels),
            blocks=size("layers_per_block"),
            latent=size("latent_channels"),
            code_dim=size("latent_channels" if stated.get("vq_embed_dim") is None else "vq_embed_dim"),
            codebook=size("num_vq_embeddings"),
            groups=size("norm_num_groups"),
        )
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None


def read_vqgan(folder: str, resolution: int | None = None) -> tuple[VQConfig, Params]:
    """Sizes and float32 weights of a folder; `resolution` as in `read_vqgan_config`. UserError as there, and where
    weights are missing, too many or of other shapes than the sizes say."""
    config = read_vqgan_config(folder, resolution)
    path = _weights_file(folder)
    wanted = abstract_params(config)
    try:
        found = {name: _array(path, name, tensor) for name, tensor in deserialize(read_bytes(path))}
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); fetch it again") from None
    _check_names(path, wanted, set(found))
    for name in sorted(wanted, key=lambda name: name != CODES):  # a wrong codebook is told as such
        shape, expected = list(found[name].shape), _shape_in_file(wanted[name].shape)
        if shape != expected and name == CODES:
            raise UserError(
                f"{path}: a codebook of {' x '.join(map(str, shape))}, but {CONFIG} says {config.codebook} codes of "
                f"{config.code_dim} dimensions"
            )
        if shape != expected:
            raise UserError(f"{path}: {name} is {shape}, but {CONFIG} makes it {expected}")
    return config, {name: jnp.asarray(_ours(np.asarray(found.pop(name), np.float32))) for name in wanted}


def write_vqgan(folder: str, config: VQConfig, params: Params) -> None:
    """Write config.json and the weights as float32; config.json last, so that a folder with one is whole."""
    arrays = {name: _theirs(np.asarray(value, np.float32)) for name, value in params.items()}
    write_bytes(join(folder, WEIGHTS), save(arrays, metadata={"format": "pt"}))
    levels = len(config.channels)
    stated = {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "block_out_channels": list(config.channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": 3,
        "latent_channels": config.latent,
        "layers_per_block": config.blocks,
        "lookup_from_codebook": True,
        "mid_block_add_attention": False,
        "norm_num_groups": config.groups,
        "norm_type": "group",
        "num_vq_embeddings": config.codebook,
        "out_channels": 3,
        "sample_size": config.resolution,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "vq_embed_dim": config.code_dim,
    }
    write_bytes(join(folder, CONFIG), (json.dumps(stated, indent=2) + "\n").encode())


def weights_sha256(folder: str) -> str:
    """Of the weights file: what codes of this VQGAN are known by."""
    return hashlib.sha256(read_bytes(_weights_file(folder))).hexdigest()


def _stated(folder: str) -> Mapping[str, Any]:
    path = join(folder, CONFIG)
    try:
        stated = json.loads(read_bytes(path))
    except FileNotFoundError:
        raise UserError(f"{folder}: no {CONFIG}; give the folder of a VQModel, such as aMUSEd's `vqvae`") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(stated, dict) or stated.get("_class_name") != "VQModel":
        found = stated.get("_class_name") if isinstance(stated, dict) else stated
        raise UserError(f"{path}: _class_name={found!r}; only VQModel folders can be read")
    for name, value in stated.items():
        if name not in _ANY | _SIZES | _FIXED.keys() and not name.startswith("_"):
            raise UserError(f"{path}: unknown field {name}={value!r}; this VQModel may compute something else")
    for name, (allowed, missing) in _FIXED.items():
        if stated.get(name, missing) != allowed:
            raise UserError(f"{path}: {name}={stated.get(name, missing)!r}; only {allowed!r} is computed here")
    return stated


def _weights_file(folder: str) -> str:
    names = [name for name in list_files(folder) if name.endswith(".safetensors")]
    if WEIGHTS in names or len(names) == 1:
        return join(folder, WEIGHTS if WEIGHTS in names else names[0])
    if names:
        raise UserError(f"{folder}: {', '.join(names)}; rename the one to read to {WEIGHTS}")
    raise UserError(f"{folder}: no .safetensors file (pickled .bin weights are never read; convert them first)")


def _check_names(path: str, wanted: Mapping[str, Any], found: set[str]) -> None:
    for what, names in (("lacks", wanted.keys() - found), ("has the unknown", found - wanted.keys())):
        if names:
            first = ", ".join(sorted(names)[:3])
            raise UserError(
                f"{path} {what} {first}{' and more' if len(names) > 3 else ''}, {len(names)} of {len(wanted)} weights "
                f"that {CONFIG} asks for"
            )


def _array(path: str, name: str, tensor: Mapping[str, Any]) -> np.ndarray:
    if tensor["dtype"] not in _TYPES:
        raise UserError(f"{path}: {name} is of {tensor['dtype']}; expected {', '.join(_TYPES)}")
    return np.frombuffer(tensor["data"], _TYPES[tensor["dtype"]]).reshape(tensor["shape"])


def _shape_in_file(shape: tuple[int, ...]) -> list[int]:
    return [shape[n] for n in (3, 2, 0, 1)] if len(shape) == 4 else list(shape)


def _ours(value: np.ndarray) -> np.ndarray:
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value


def _theirs(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value)
