"""The compiled programs of a model on a mesh: a chunk of prompts, the token after a prompt, a token for every slot.

They take the cache and give it back in place (it is donated), draw tokens on the device, and hand the host a few
integers. A variant with `most` > 0 also tells how likely tokens were; a variant that scores tells it of every token of
a prompt. Two small ones copy a slot, and wipe one that holds numbers that are not finite.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ringworld.generate import cache as caches
from ringworld.generate.cache import Cache, CacheShape, Stripes, stripes_of
from ringworld.generate.forward import (
    Place,
    chunk_hidden,
    chunk_last,
    logits_of,
    prepare,
    shards,
    token_hidden,
    vision_logits_of,
    weight_specs,
)
from ringworld.generate.sampling import Knobs, Likelihoods, draw, likelihoods
from ringworld.mesh import BATCH_AXES
from ringworld.model.config import ModelConfig
from ringworld.model.layout import TOKENS
from ringworld.model.llama import Params
from ringworld.model.rope import Rope
from ringworld.model.shard import chunks_of

ROWS = PartitionSpec(BATCH_AXES)  # of an array [slots] or [batch shards]
# Tokens of a chunk whose logits exist at once when a prompt is scored.
_SCORED = 128


class Chunk(NamedTuple):
    """One chunk of one prompt for each batch shard: numpy arrays, int32.

    tokens, next_tokens [rows, chunk]: of the chunk, and those after them (0 where there is none).
    slot [rows]: within the batch shard; -1 where it has nothing to do.
    start, end [rows]: the first position, and the tokens of the prompt.
    """

    tokens: np.ndarray
    next_tokens: np.ndarray
    slot: np.ndarray
    start: np.ndarray
    end: np.ndarray


class State(NamedTuple):
    """What a decoding step goes on from: each slot's newest token, its position, whether the slot counts."""

    tokens: jax.Array
    positions: jax.Array
    active: jax.Array
    knobs: Knobs


class Drawn(NamedTuple):
    """New tokens int32 [rows]; whether the logits behind them were finite, bool [rows] (where not, a token means
    nothing); how likely they were (None in a program that does not tell)."""

    tokens: jax.Array
    sound: jax.Array
    likelihoods: Likelihoods | None


def fetched(tree: Any) -> Any:
    """Arrays of a mesh as numpy arrays, whole, on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


class Programs:
    """A model's weights on a mesh and what runs with them. Owns no cache: callers hand it from call to call.

    On a mesh of several processes each of them makes the same calls with the same arrays.
    """

    def __init__(self, config: ModelConfig, params: Params, rope: Rope, mesh: Mesh, dtype: str) -> None:
        self.config, self.mesh, self.dtype = config, mesh, jnp.dtype(dtype)
        self.stripes: Stripes = stripes_of(mesh)
        self.batch_shards = mesh.shape["data"] * mesh.shape["fsdp"]
        # A chunk is split over these; so is a slot's length.
        self.unit = self.stripes.count * mesh.shape["tensor"]
        self._weights = prepare(config, params, mesh, self.dtype)
        self._rope = jax.tree.map(lambda x: self._place(np.asarray(x), PartitionSpec()), rope)
        self._chunk, self._copy, self._wipe = self._chunk_program(), self._copy_program(), self._wipe_program()
        # By how many of the likeliest tokens they tell of.
        self._score, self._step = functools.cache(self._score_program), functools.cache(self._step_program)

    def cache_shape(self, slots: int, length: int) -> CacheShape:
        return caches.cache_shape(self.config, slots, length, self.dtype)

    def make_cache(self, slots: int, length: int) -> Cache:
        """An empty cache for so many slots (a multiple of the batch shards) of so many tokens (of `unit`)."""
        return caches.make_cache(self.cache_shape(slots, length), self.mesh)

    def chunk(self, cache: Cache, chunk: Chunk) -> tuple[Cache, jax.Array]:
        """A chunk through the model: its keys and values are written.

        Returns the logits after each prompt's last token, float32 [rows, vocabulary], which have a meaning where the
        prompt ends in this chunk.
        """
        return self._chunk(self._weights, self._rope, cache, *self._placed(chunk))

    def score(self, cache: Cache, chunk: Chunk, most: int) -> tuple[Cache, jax.Array, Likelihoods]:
        """`chunk`, and of each of its tokens how likely the next one was, and the `most` likeliest: numpy arrays
        [rows, chunk]."""
        order = self._dealt(chunk.tokens.shape[1])
        after = self._place(chunk.next_tokens[:, order], TOKENS)
        program = self._score(most)
        cache, logits, scored = program(self._weights, self._rope, cache, *self._placed(chunk), after)
        back = np.argsort(order)
        return cache, logits, jax.tree.map(lambda x: x[:, back], fetched(scored))

    def draw(self, logits: jax.Array, positions: np.ndarray, knobs: Knobs, most: int = 0) -> Drawn:
        """The tokens at positions int32 [rows] that follow from what `chunk` returned."""
        placed = Knobs(*(self._place(np.asarray(x), ROWS) for x in knobs))
        return _drawn(logits, self._place(positions, ROWS), placed, most)

    def copy(self, cache: Cache, source: np.ndarray, target: np.ndarray, tokens: np.ndarray) -> Cache:
        """The cache with the first tokens of a slot of each batch shard in another one: int32 [rows]; no tokens where
        there is nothing to do."""
        rows = [self._place(x, ROWS) for x in (source, target, -(-tokens // self.stripes.count))]
        return self._copy(cache, *rows)

    def wipe_unless_finite(self, cache: Cache, slot: np.ndarray) -> tuple[Cache, np.ndarray]:
        """The cache with zeros in each slot (int32 [rows]; -1: none) that holds numbers that are not finite; which did
        not, bool [rows]."""
        cache, finite = self._wipe(cache, self._place(slot, ROWS))
        return cache, fetched(finite)

    def step(self, cache: Cache, state: State, most: int = 0) -> tuple[Cache, State, Drawn]:
        """The next token of every active slot."""
        return self._step(most)(self._weights, self._rope, cache, state)

    def state(self, tokens: np.ndarray, positions: np.ndarray, active: np.ndarray, knobs: Knobs) -> State:
        """The state of all slots from numpy arrays [slots]."""
        arrays = (tokens, positions, active, *(np.asarray(x) for x in knobs))
        placed = [self._place(x, ROWS) for x in arrays]
        return State(placed[0], placed[1], placed[2], Knobs(*placed[3:]))

    def _placed(self, chunk: Chunk) -> list[jax.Array]:
        tokens = self._place(chunk.tokens[:, self._dealt(chunk.tokens.shape[1])], TOKENS)
        return [tokens, *(self._place(x, ROWS) for x in (chunk.slot, chunk.start, chunk.end))]

    def _place(self, array: np.ndarray, spec: PartitionSpec) -> jax.Array:
        sharding = NamedSharding(self.mesh, spec)
        if jax.process_count() == 1:
            return jax.device_put(array, sharding)
        # device_put would have all processes compare what they hold, at every step.
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    def _dealt(self, tokens: int) -> np.ndarray:
        """The order in which a chunk's tokens lie on the shards: all of the first one's, then the next one's."""
        return np.arange(tokens).reshape(-1, self.stripes.count).T.reshape(-1)

    @property
    def weights(self) -> tuple[Params, Rope]:
        """What a program takes first: the weights as `prepare` lays them, and the rotary positions."""
        return self._weights, self._rope

    def sharded(self, function: Callable[..., Any], in_specs: tuple[Any, ...], out_specs: Any) -> Callable[..., Any]:
        """`function(weights, rope, cache, *arguments)` of one shard, where arguments and results lie by these specs."""
        specs = (weight_specs(self.config), PartitionSpec(), caches.SPEC, *in_specs)
        # check_vma=False: block backends move device-varying values by hand.
        return jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=out_specs, check_vma=False)

    def _chunk_program(self) -> Callable[..., Any]:
        stripes, config = self.stripes, self.config
        shard, whole = shards(self.mesh, self.dtype)

        def local(weights, rope, cache, tokens, slot, start, end):
            place = Place(slot[0], start[0], end[0])
            cache, last = chunk_last(config, shard, whole, stripes, weights, rope, cache, tokens, place)
            return cache, logits_of(last, weights, whole)

        sharded = self.sharded(local, (TOKENS, ROWS, ROWS, ROWS), (caches.SPEC, ROWS))

        return jax.jit(sharded, donate_argnums=2)

    def _score_program(self, most: int) -> Callable[..., Any]:
        stripes, config = self.stripes, self.config
        shard, whole = shards(self.mesh, self.dtype)

        def local(weights, rope, cache, tokens, slot, start, end, next_tokens):
            place = Place(slot[0], start[0], end[0])
            cache, hidden, last = chunk_hidden(config, shard, stripes, weights, rope, cache, tokens, place)

            def of_piece(piece: tuple[jax.Array, jax.Array]) -> Likelihoods:
                hidden, after = shard.gather(piece[0])[0], shard.gather(piece[1])[0]
                text = likelihoods(logits_of(hidden, weights, whole), after, most)
                if not config.vision_vocabulary:
                    return text
                seen = likelihoods(vision_logits_of(hidden, weights, whole), after - config.vocabulary, most)
                return _by_vocabulary(after, text, seen, config.vocabulary)

            pieces = chunks_of(hidden.shape[1], _SCORED)
            # Every rank of tensor scores all of its group's tokens, piece by piece, and keeps its own.
            found = lax.map(
                lambda piece: jax.tree.map(lambda x: _own(x, shard.tensor), of_piece(piece)),
                (
                    hidden.reshape(pieces, 1, -1, hidden.shape[-1]),
                    next_tokens.reshape(pieces, 1, -1),
                ),
            )
            scored = jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), found)
            return cache, logits_of(last, weights, whole), scored

        each = PartitionSpec(*TOKENS, None)
        scores = Likelihoods(TOKENS, each, each)  # type: ignore[arg-type]
        sharded = self.sharded(local, (TOKENS, ROWS, ROWS, ROWS, TOKENS), (caches.SPEC, ROWS, scores))
        return jax.jit(sharded, donate_argnums=2)

    def _step_program(self, most: int) -> Callable[..., Any]:
        stripes, config = self.stripes, self.config
        _, whole = shards(self.mesh, self.dtype)

        def local(weights, rope, cache, tokens, positions, active):
            cache, hidden = token_hidden(config, whole, stripes, weights, rope, cache, tokens, positions, active)
            return cache, logits_of(hidden, weights, whole)

        sharded = self.sharded(local, (ROWS, ROWS, ROWS), (caches.SPEC, ROWS))

        @functools.partial(jax.jit, donate_argnums=(2,))
        def program(weights, rope, cache, state):
            cache, logits = sharded(weights, rope, cache, state.tokens, state.positions, state.active)
            drawn = _drawn(logits, state.positions + 1, state.knobs, most)
            return cache, State(drawn.tokens, state.positions + 1, state.active, state.knobs), drawn

        return program

    def _copy_program(self) -> Callable[..., Any]:
        def local(cache, source, target, tokens):
            return caches.copy_slot(cache, source[0], target[0], tokens[0])

        specs = (caches.SPEC, ROWS, ROWS, ROWS)
        sharded = jax.shard_map(local, mesh=self.mesh, in_specs=specs, out_specs=caches.SPEC, check_vma=False)
        return jax.jit(sharded, donate_argnums=0)

    def _wipe_program(self) -> Callable[..., Any]:
        axes = (*self.stripes.axes, *(("tensor",) if self.mesh.shape["tensor"] > 1 else ()))

        def local(cache, slot):
            cache, finite = caches.wipe_unless_finite(cache, slot[0], axes)
            return cache, finite[None]

        specs = (caches.SPEC, ROWS)
        sharded = jax.shard_map(local, mesh=self.mesh, in_specs=specs, out_specs=specs, check_vma=False)
        return jax.jit(sharded, donate_argnums=0)


@functools.partial(jax.jit, static_argnums=3)
def _drawn(logits: jax.Array, positions: jax.Array, knobs: Knobs, most: int) -> Drawn:
    tokens = draw(logits, positions, knobs)
    # Of a row with a NaN, the greatest is NaN.
    sound = jnp.isfinite(logits.max(-1))
    return Drawn(tokens, sound, likelihoods(logits, tokens, most) if most else None)


def _by_vocabulary(tokens: jax.Array, text: Likelihoods, seen: Likelihoods, vocabulary: int) -> Likelihoods:
    """Of each token [tokens] what its own vocabulary says of it: each has a distribution of its own."""
    width = min(text.top_ids.shape[1], seen.top_ids.shape[1])
    seen, is_text = seen._replace(top_ids=seen.top_ids + vocabulary), tokens < vocabulary
    return Likelihoods(
        jnp.where(is_text, text.logprob, seen.logprob),
        jnp.where(is_text[:, None], text.top_ids[:, :width], seen.top_ids[:, :width]),
        jnp.where(is_text[:, None], text.top_logprobs[:, :width], seen.top_logprobs[:, :width]),
    )


def _own(gathered: jax.Array, tensor: str | None) -> jax.Array:
    """This rank's part of an array [gathered tokens, ...]."""
    if tensor is None:
        return gathered
    mine = gathered.shape[0] // lax.axis_size(tensor)
    return lax.dynamic_slice_in_dim(gathered, lax.axis_index(tensor) * mine, mine)
