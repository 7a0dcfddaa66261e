"""The judge of a VQGAN's training: scores patches of a picture as real or made (PatchGAN, Isola et al. 2016, arXiv
1611.07004).

Norms are over groups of channels of one picture. The original's batch norms would let the pictures of a batch, and so
the devices that share it, see each other.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from ringworld.errors import UserError
from ringworld.vision.parameters import Params, filled, flat

SLOPE = 0.2  # of leaky ReLUs below 0
_GROUPS = 4  # of channels that a norm is taken over


@dataclass(frozen=True)
class JudgeConfig:
    """channels of the first layer; layers that halve the sides, each but the first with twice the channels, up to 8
    times the first's."""

    channels: int = 64
    layers: int = 3

    def __post_init__(self) -> None:
        if self.channels < 2 or self.channels % 2 or self.layers < 1:
            raise UserError(
                f"judge.channels={self.channels}, layers={self.layers}: channels are even, for norms over four groups "
                f"from the second layer on, and layers 1 or more"
            )

    def patches(self, side: int) -> int:
        """Scores of a side for a picture of `side` pixels; below 1 where the picture is too small to be judged."""
        for _ in range(self.layers):
            side //= 2
        return side - 2


class Layer(nnx.Module):
    """A convolution of side 4 and, where asked for, a norm and a leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        self.stride = stride
        self.weight = nnx.Param(jnp.zeros((4, 4, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, h, w, inputs] to [n, h', w', outputs]."""
        out = lax.conv_general_dilated(
            x, self.weight[...].astype(x.dtype), (self.stride, self.stride), ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        return out + self.bias[...].astype(x.dtype)


class Judge(nnx.Module):
    """The network."""

    def __init__(self, config: JudgeConfig) -> None:
        sizes = [config.channels * min(2**n, 8) for n in range(config.layers + 1)]
        ends = list(zip([3, *sizes[:-1]], sizes, strict=True))
        self.convs = nnx.List(
            [Layer(*pair, 2 if n < config.layers else 1) for n, pair in enumerate(ends)] + [Layer(sizes[-1], 1, 1)]
        )
        self.norms = nnx.List([nnx.GroupNorm(size, num_groups=_GROUPS, rngs=nnx.Rngs(0)) for size in sizes[1:]])

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Pixels [n, h, w, 3] in 0..1 to scores, float32 [n, h', w', 1], each of a patch."""
        x = jax.nn.leaky_relu(self.convs[0](2.0 * pixels - 1.0), SLOPE)
        for conv, norm in zip(self.convs[1:-1], self.norms, strict=True):
            x = jax.nn.leaky_relu(norm(conv(x)), SLOPE)
        return self.convs[-1](x).astype(jnp.float32)


@functools.cache
def _abstract(config: JudgeConfig) -> tuple[Any, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: Judge(config)))


def abstract_judge(config: JudgeConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the parameters, by name."""
    return flat(_abstract(config)[1])


def init_judge(config: JudgeConfig, seed: int) -> Params:
    """Fresh float32 parameters, the same on every machine: normal of 0.02, norms as they are, biases at 0."""
    random = np.random.default_rng(seed)

    def fresh(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 4:
            return np.float32(0.02) * random.standard_normal(shape, np.float32)
        return np.full(shape, name.endswith("scale"), np.float32)

    return {name: jnp.asarray(fresh(name, leaf.shape)) for name, leaf in abstract_judge(config).items()}


def bind_judge(config: JudgeConfig, params: Params) -> Judge:
    """The module that computes with these parameters."""
    return filled(*_abstract(config), params)
