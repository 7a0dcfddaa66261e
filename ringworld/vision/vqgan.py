"""The VQGAN of aMUSEd in Flax NNX: pixels to a grid of codes, and codes to pixels.

Modules and weights have the names that diffusers' `VQModel` gives them. Weights leave this file as one flat dict,
name -> float32 array (`init_params`, `bind`); a convolution's lies [height, width, in, out]. A forward pass computes in
the dtype it is given, statistics of norms and distances to codes in float32. Pictures are [n, height, width, channels].
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ringworld.errors import UserError
from ringworld.vision.codebook import nearest
from ringworld.vision.config import VQConfig
from ringworld.vision.convolution import convolve, convolve_half, convolve_twice
from ringworld.vision.parameters import Params, filled, flat

CODES = "quantize.embedding.weight"  # the parameter that the codes are
EPSILON = 1e-6  # of norms, in every VQModel


class Conv(nnx.Module):
    """A convolution of zero-padded pictures that keeps their sides."""

    def __init__(self, inputs: int, outputs: int, side: int) -> None:
        self.weight = nnx.Param(jnp.zeros((side, side, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, h, w, inputs] to [n, h, w, outputs]."""
        return convolve(x, self.weight[...], self.bias[...])


class Norm(nnx.Module):
    """Group norm (Wu and He 2018, arXiv 1803.08494) and SiLU after it."""

    def __init__(self, channels: int, groups: int) -> None:
        self.groups = groups
        self.weight = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Like x. Sums over pixels by channel, then by group: a CPU adds up whole vectors of channels at once."""
        n, h, w, channels = x.shape
        x32 = x.astype(jnp.float32)
        size = h * w * channels // self.groups

        def by_group(sums: jax.Array) -> jax.Array:
            grouped = sums.reshape(n, self.groups, -1).sum(-1) / size
            return jnp.repeat(grouped, channels // self.groups, axis=-1)

        mean = by_group(x32.sum((1, 2)))
        variance = jnp.maximum(by_group(jnp.square(x32).sum((1, 2))) - jnp.square(mean), 0.0)
        scale = jax.lax.rsqrt(variance + EPSILON) * self.weight[...]
        shift = self.bias[...] - mean * scale
        return jax.nn.silu(x32 * scale[:, None, None] + shift[:, None, None]).astype(x.dtype)


class Block(nnx.Module):
    """A residual block: two norms and convolutions, and the way past them."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        self.norm1 = Norm(inputs, groups)
        self.conv1 = Conv(inputs, outputs, 3)
        self.norm2 = Norm(outputs, groups)
        self.conv2 = Conv(outputs, outputs, 3)
        if inputs != outputs:
            self.conv_shortcut = Conv(inputs, outputs, 1)
        self.changes = inputs != outputs

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, h, w, inputs] to [n, h, w, outputs]."""
        past = self.conv_shortcut(x) if self.changes else x
        return past + self.conv2(self.norm2(self.conv1(self.norm1(x))))


class Down(nnx.Module):
    """Half of the sides, by a convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        self.conv = Conv(channels, channels, 3)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, h, w, channels] to [n, h / 2, w / 2, channels]."""
        return convolve_half(x, self.conv.weight[...], self.conv.bias[...])


class Up(nnx.Module):
    """Twice the sides: every pixel four times, then a convolution."""

    def __init__(self, channels: int) -> None:
        self.conv = Conv(channels, channels, 3)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, h, w, channels] to [n, 2 h, 2 w, channels]."""
        return convolve_twice(x, self.conv.weight[...], self.conv.bias[...])


class Level(nnx.Module):
    """The blocks of one level and, but for the last, what changes the sides after them."""

    def __init__(self, inputs: int, outputs: int, count: int, groups: int, then: type | None) -> None:
        self.resnets = nnx.List([Block(inputs if n == 0 else outputs, outputs, groups) for n in range(count)])
        if then is Down:
            self.downsamplers = nnx.List([Down(outputs)])
        elif then is Up:
            self.upsamplers = nnx.List([Up(outputs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, h, w, inputs] to [n, h', w', outputs], with h' half of h, twice h, or h."""
        for step in (*self.resnets, *getattr(self, "downsamplers", ()), *getattr(self, "upsamplers", ())):
            x = step(x)
        return x


class Middle(nnx.Module):
    """Two blocks at the coarsest level."""

    def __init__(self, channels: int, groups: int) -> None:
        self.resnets = nnx.List([Block(channels, channels, groups) for _ in range(2)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Like x."""
        for block in self.resnets:
            x = block(x)
        return x


class Encoder(nnx.Module):
    """Pixels to the codebook's side of the network."""

    def __init__(self, config: VQConfig) -> None:
        channels, last = config.channels, len(config.channels) - 1
        self.conv_in = Conv(3, channels[0], 3)
        self.down_blocks = nnx.List(
            [
                Level(channels[max(n - 1, 0)], size, config.blocks, config.groups, None if n == last else Down)
                for n, size in enumerate(channels)
            ]
        )
        self.mid_block = Middle(channels[-1], config.groups)
        self.conv_norm_out = Norm(channels[-1], config.groups)
        self.conv_out = Conv(channels[-1], config.latent, 3)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, h, w, 3] to [n, h / factor, w / factor, latent]."""
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(self.conv_norm_out(self.mid_block(x)))


class Decoder(nnx.Module):
    """The codebook's side of the network to pixels."""

    def __init__(self, config: VQConfig) -> None:
        channels, last = config.channels[::-1], len(config.channels) - 1
        self.conv_in = Conv(config.latent, channels[0], 3)
        self.mid_block = Middle(channels[0], config.groups)
        self.up_blocks = nnx.List(
            [
                Level(channels[max(n - 1, 0)], size, config.blocks + 1, config.groups, None if n == last else Up)
                for n, size in enumerate(channels)
            ]
        )
        self.conv_norm_out = Norm(channels[-1], config.groups)
        self.conv_out = Conv(channels[-1], 3, 3)

    def features(self, x: jax.Array) -> jax.Array:
        """[n, h, w, latent] to [n, h * factor, w * factor, channels[0]], what `conv_out` makes pixels of."""
        x = self.mid_block(self.conv_in(x))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_norm_out(x)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, h, w, latent] to [n, h * factor, w * factor, 3]."""
        return self.conv_out(self.features(x))


class Embedding(nnx.Module):
    """The codes' vectors."""

    def __init__(self, config: VQConfig) -> None:
        self.weight = nnx.Param(jnp.zeros((config.codebook, config.code_dim)))


class Codebook(nnx.Module):
    """The codes."""

    def __init__(self, config: VQConfig) -> None:
        self.embedding = Embedding(config)


class VQGAN(nnx.Module):
    """The whole of it."""

    def __init__(self, config: VQConfig) -> None:
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = Conv(config.latent, config.code_dim, 1)
        self.quantize = Codebook(config)
        self.post_quant_conv = Conv(config.code_dim, config.latent, 1)
        self.decoder = Decoder(config)

    @property
    def codes(self) -> jax.Array:
        """The codes' vectors, float32 [codebook, code_dim]."""
        return self.quantize.embedding.weight[...]

    def latents(self, pixels: jax.Array) -> jax.Array:
        """Pixels [n, h, w, 3] in 0..1 to vectors, before the nearest code is chosen: [n, h / factor, w / factor,
        code_dim] in the dtype of the pixels. UserError where the sides are not multiples of `factor`."""
        factor = self.config.factor
        if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.shape[1] % factor or pixels.shape[2] % factor:
            raise UserError(
                f"pixels of shape {list(pixels.shape)}: expected [n, h, w, 3] with h and w multiples of {factor}"
            )
        return self.quant_conv(self.encoder(pixels))

    def encode(self, pixels: jax.Array) -> jax.Array:
        """Pixels [n, h, w, 3] in 0..1, float32 or bfloat16, to codes int32 [n, h / factor, w / factor]."""
        return nearest(self.latents(pixels), self.codes)

    def features(self, vectors: jax.Array) -> jax.Array:
        """Codes' vectors [n, h, w, code_dim] to what `decoder.conv_out` makes pixels of."""
        return self.decoder.features(self.post_quant_conv(vectors))

    def decode(self, codes: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
        """Codes int32 [n, h, w], each below `codebook`, to pixels [n, h * factor, w * factor, 3] of `dtype`.

        Pixels are meant in 0..1 and not clipped to it.
        """
        return self.decoder.conv_out(self.features(self.codes[codes].astype(dtype)))


@functools.cache
def _abstract(config: VQConfig) -> tuple[Any, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: VQGAN(config)))


def abstract_params(config: VQConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the parameters, by name."""
    return flat(_abstract(config)[1])


def init_params(config: VQConfig, seed: int) -> Params:
    """Fresh float32 parameters, the same on every machine: normal, of variance 1 / inputs of a product, so that a block
    adds as much as it is given; codes uniform within 1 / codebook.

    Pixels are in 0..1: the first and the last bias begin so that they are seen, and made, as if grey were zero.
    """
    random = np.random.default_rng(seed)

    def fresh(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name == CODES:
            return (2.0 * random.random(shape, np.float32) - 1.0) / np.float32(config.codebook)
        if len(shape) == 4:
            return random.standard_normal(shape, np.float32) * np.float32(math.prod(shape[:3]) ** -0.5)
        return np.full(shape, name.endswith("weight"), np.float32)  # norms begin as they are, biases at 0

    params = {name: fresh(name, leaf.shape) for name, leaf in abstract_params(config).items()}
    params["encoder.conv_in.bias"] = -0.5 * params["encoder.conv_in.weight"].sum((0, 1, 2))
    params["decoder.conv_out.bias"] = np.full(3, 0.5, np.float32)
    return {name: jnp.asarray(value) for name, value in params.items()}


def bind(config: VQConfig, params: Params) -> VQGAN:
    """The module that computes with these parameters."""
    return filled(*_abstract(config), params)
