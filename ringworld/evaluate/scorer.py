"""One compiled forward pass that says, for every slot of a batch of rows, how likely its target was.

All losses and both needles are read from it. A greedy reader gives exactly the needle's answer if and only if every
answer token is the likeliest one after the true tokens before it, so exact match needs no decoding loop. At a few slots
of a row it also tells what some other tokens would have cost, which is how an answer is compared with its rivals
without reading a long prompt once for each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ringworld.mesh import BATCH_AXES, ROWS
from ringworld.model.config import ModelConfig, RopeConfig
from ringworld.model.layout import Layout
from ringworld.model.llama import Params, bind
from ringworld.model.rope import Rope, make_rope
from ringworld.train.loss import score_tokens

_BATCH = PartitionSpec(BATCH_AXES)  # of an array [batch, ...]


@dataclass(frozen=True)
class Rows:
    """Rows to score: tokens, targets, segments, positions, each int32 [rows, sequence]; segment 0 is padding, target -1
    asks for nothing."""

    tokens: np.ndarray
    targets: np.ndarray
    segments: np.ndarray
    positions: np.ndarray

    def arrays(self) -> tuple[np.ndarray, ...]:
        """In the order above."""
        return self.tokens, self.targets, self.segments, self.positions


@dataclass(frozen=True)
class Choices:
    """Questions put at slots of rows: what would each of some text tokens cost there as the target?

    slots: int32 [rows, questions]; ids: int32 [rows, questions, tokens]. What stands where a row has fewer questions
    than another has no meaning.
    """

    slots: np.ndarray
    ids: np.ndarray


class Scores(NamedTuple):
    """loss float32 and hit bool, both [rows, sequence]; chosen float32 like the ids of `Choices`, nats."""

    loss: np.ndarray
    hit: np.ndarray
    chosen: np.ndarray


class Scorer:
    """Scores rows under any weights and rotary positions of one model, on one mesh, with one compilation.

    choices: (questions, tokens) of the largest `Choices` that will be put.
    """

    def __init__(
        self, config: ModelConfig, mesh: Mesh, dtype: str, loss_chunk: int, choices: tuple[int, int] = (0, 0)
    ) -> None:
        self._config, self._mesh, self._choices = config, mesh, choices
        self._batch = mesh.shape["data"] * mesh.shape["fsdp"]

        def forward(params: Params, rope: Rope, tokens, targets, segments, positions, slots, ids):
            model = bind(config, params)
            hidden = model(tokens, positions, segments, rope, Layout(mesh, jnp.dtype(dtype)))
            heads = model.output_weights()
            scores = score_tokens(hidden, heads, targets, mesh=mesh, chunk=loss_chunk)
            return scores, _chosen(hidden, heads[0], slots, ids)

        self._forward = jax.jit(forward, out_shardings=(None, NamedSharding(mesh, _BATCH)))

    def score(
        self,
        params: Params,
        rope: RopeConfig,
        rows: Rows,
        on_batch: Callable[[], None] = lambda: None,
        choices: Choices | None = None,
    ) -> Scores:
        """Of all rows, on every process. `on_batch` is called after each batch."""
        frequencies = make_rope(rope, self._config.head_dim)
        found: list[Scores] = []
        count = len(rows.tokens)
        slots, ids = np.zeros((count, self._choices[0]), np.int32), np.zeros((count, *self._choices), np.int32)
        if choices is not None:
            slots, ids = choices.slots, choices.ids
        for start in range(0, count, self._batch):
            part = slice(start, start + self._batch)
            by_slot = [self._place(array[part], ROWS) for array in rows.arrays()]
            asked = [self._place(array[part], _BATCH) for array in (slots, ids)]
            scores, chosen = self._forward(params, frequencies, *by_slot, *asked)
            found.append(Scores(*map(self._gather, (*scores, chosen))))
            on_batch()
        return Scores(*(np.concatenate(parts)[:count] for parts in zip(*found, strict=True)))

    def batches(self, rows: int) -> int:
        """How many batches `score` makes of so many rows."""
        return -(-rows // self._batch)

    def _place(self, array: np.ndarray, spec: PartitionSpec) -> jax.Array:
        full = np.zeros((self._batch, *array.shape[1:]), array.dtype)
        full[: len(array)] = array
        return jax.make_array_from_callback(full.shape, NamedSharding(self._mesh, spec), lambda index: full[index])

    def _gather(self, array: jax.Array) -> np.ndarray:
        if jax.process_count() == 1:
            return np.asarray(array)
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def _chosen(hidden: jax.Array, head: jax.Array, slots: jax.Array, ids: jax.Array) -> jax.Array:
    """float32 like ids: -log softmax(hidden @ head)[ids] at slots. hidden [batch, tokens, embed], head float32 [embed,
    vocabulary]."""
    if not slots.size:
        return jnp.zeros(ids.shape, jnp.float32)
    # A sum over the slots, where a lookup would have the compiler gather a sequence that is split over devices.
    at = (jnp.arange(hidden.shape[1]) == slots[..., None]).astype(hidden.dtype)
    there = jnp.einsum("bqt,bte->bqe", at, hidden)
    logits = jnp.einsum("bqe,ev->bqv", there, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return jax.nn.logsumexp(logits, -1, keepdims=True) - jnp.take_along_axis(logits, ids, -1)
