"""A VQGAN ready for use: uint8 pictures to codes and back, any number of them, in batches of one compiled size."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from ringworld.errors import UserError
from ringworld.vision.config import VQConfig
from ringworld.vision.parameters import Params
from ringworld.vision.vqgan import bind


class Codec:
    """Weights, a batch size and a dtype; programs are compiled for each new height and width.

    batch  pictures at a time; the last batch is filled up with black ones
    dtype  of the forward pass
    """

    def __init__(
        self, config: VQConfig, params: Params, batch: int = 8, dtype: Literal["float32", "bfloat16"] = "float32"
    ) -> None:
        if batch < 1:
            raise UserError(f"batch={batch}: must be 1 or more")
        self.config, self.batch = config, batch
        self._params, self._dtype = params, dtype

    def encode(self, pictures: np.ndarray) -> np.ndarray:
        """Pictures uint8 [n, h, w, 3] to codes int32 [n, h / factor, w / factor]. UserError for any others."""
        if pictures.dtype != np.uint8 or pictures.ndim != 4:
            raise UserError(f"pictures of {pictures.dtype} {list(pictures.shape)}: expected uint8 [n, h, w, 3]")
        return self._batched(_encode, pictures)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes [n, h, w] to pictures uint8 [n, h * factor, w * factor, 3]. UserError for codes that there are not."""
        if codes.ndim != 3:
            raise UserError(f"codes of shape {list(codes.shape)}: expected [n, h, w]")
        if codes.size and not (codes.min() >= 0 and codes.max() < self.config.codebook):
            wrong = codes[(codes < 0) | (codes >= self.config.codebook)][0]
            raise UserError(f"code {wrong}: the codes of this VQGAN are 0..{self.config.codebook - 1}")
        return self._batched(_decode, codes.astype(np.int32))

    def _batched(self, program: Callable[..., jax.Array], rows: np.ndarray) -> np.ndarray:
        # An empty input goes through too: its result has no rows, but the right shape.
        starts = range(0, max(len(rows), 1), self.batch)
        done = []
        for start in starts:
            part = rows[start : start + self.batch]
            filled = np.zeros((self.batch, *rows.shape[1:]), rows.dtype)
            filled[: len(part)] = part
            done.append(np.asarray(program(self.config, self._dtype, self._params, filled))[: len(part)])
        return np.concatenate(done)


# By sizes and not by codec, so that a new codec of the same sizes finds them compiled.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(config: VQConfig, dtype: str, params: Params, pictures: jax.Array) -> jax.Array:
    return bind(config, params).encode((pictures / 255.0).astype(dtype))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decode(config: VQConfig, dtype: str, params: Params, codes: jax.Array) -> jax.Array:
    return to_uint8(bind(config, params).decode(codes, jnp.dtype(dtype)))


def to_uint8(pixels: jax.Array) -> jax.Array:
    """Pixels in 0..1 to 0..255, rounded; what lies outside is clipped."""
    return jnp.round(jnp.clip(pixels.astype(jnp.float32), 0.0, 1.0) * 255.0).astype(jnp.uint8)
