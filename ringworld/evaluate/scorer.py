"""One compiled forward pass that says, for every slot of a batch of rows, how likely its target was.

Loss by position and needle retrieval are both read from it. A greedy reader gives exactly the needle's answer if and
only if every answer token is the likeliest one after the true tokens before it, so exact match needs no decoding loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from ringworld.mesh import ROWS
from ringworld.model.config import ModelConfig, RopeConfig
from ringworld.model.layout import Layout
from ringworld.model.llama import Params, bind
from ringworld.model.rope import Rope, make_rope
from ringworld.train.loss import TokenScores, score_tokens


@dataclass(frozen=True)
class Rows:
    """Rows to score: tokens, targets, segments, positions, each int32 [rows, sequence]; segment 0 is padding."""

    tokens: np.ndarray
    targets: np.ndarray
    segments: np.ndarray
    positions: np.ndarray


class Scorer:
    """Scores rows under any weights and rotary positions of one model, on one mesh, with one compilation."""

    def __init__(self, config: ModelConfig, mesh: Mesh, dtype: str, loss_chunk: int) -> None:
        self._config, self._mesh = config, mesh
        self._batch = mesh.shape["data"] * mesh.shape["fsdp"]

        def forward(params: Params, rope: Rope, tokens, targets, segments, positions) -> TokenScores:
            model = bind(config, params)
            hidden = model(tokens, positions, segments, rope, Layout(mesh, jnp.dtype(dtype)))
            return score_tokens(hidden, model.output_weights(), targets, mesh=mesh, chunk=loss_chunk)

        self._forward = jax.jit(forward)

    def score(
        self, params: Params, rope: RopeConfig, rows: Rows, on_batch: Callable[[], None] = lambda: None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Loss float32 and hit bool, both [rows, sequence] on every process. `on_batch` is called after each batch."""
        frequencies = make_rope(rope, self._config.head_dim)
        losses, hits = [], []
        for start in range(0, len(rows.tokens), self._batch):
            arrays = [
                self._place(getattr(rows, name)[start : start + self._batch])
                for name in ("tokens", "targets", "segments", "positions")
            ]
            scores = self._forward(params, frequencies, *arrays)
            losses.append(self._gather(scores.loss))
            hits.append(self._gather(scores.hit))
            on_batch()
        count = len(rows.tokens)
        return np.concatenate(losses)[:count], np.concatenate(hits)[:count]

    def batches(self, rows: int) -> int:
        """How many batches `score` makes of so many rows."""
        return -(-rows // self._batch)

    def _place(self, array: np.ndarray) -> jax.Array:
        full = np.zeros((self._batch, array.shape[1]), array.dtype)
        full[: len(array)] = array
        return jax.make_array_from_callback(full.shape, NamedSharding(self._mesh, ROWS), lambda index: full[index])

    def _gather(self, array: jax.Array) -> np.ndarray:
        if jax.process_count() == 1:
            return np.asarray(array)
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
