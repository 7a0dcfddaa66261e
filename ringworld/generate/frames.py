"""The compiled program of a frame: code after code on the device, two rows of a batch to a clip.

- Rows are clips asked for with their captions, then the same clips without (`guided`), or the former alone. Both rows
  of a clip go on with the same codes; what is drawn from is unconditional + scale x (conditional - unconditional)
  (classifier-free guidance, Ho and Salimans 2022, arXiv 2207.12598).
- Only codes can be drawn: the other columns of the vision head are never looked at. A frame's last step gives eof.
- The loop over a frame's codes runs on the device; the host says from which code to which. Everything but the cache is
  small, and the same on every device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from ringworld.generate import cache as caches
from ringworld.generate.cache import Cache
from ringworld.generate.forward import shards, token_hidden, vision_logits_of
from ringworld.generate.programs import ROWS, Programs
from ringworld.generate.sampling import Knobs, draw
from ringworld.vision.stream import VisionIds


class FrameState(NamedTuple):
    """tokens, positions int32 [rows]: each row's newest token and where it stands. codes int32 [clips, codes + 1]: of
    the frame so far, and what ends it. sound bool [clips]: all logits so far were finite numbers."""

    tokens: jax.Array
    positions: jax.Array
    codes: jax.Array
    sound: jax.Array


class FramePrograms:
    """How a model draws a frame of so many codes."""

    def __init__(self, programs: Programs, ids: VisionIds, codes: int) -> None:
        self._programs, self._ids, self._codes = programs, ids, codes
        self._one = NamedSharding(programs.mesh, PartitionSpec())
        self._advance = functools.cache(self._program)  # by whether it is guided
        split = NamedSharding(programs.mesh, caches.SPEC)
        self._half = jax.jit(lambda cache: jax.tree.map(lambda x: x[: len(x) // 2], cache), out_shardings=split)

    def state(self, tokens: np.ndarray, positions: np.ndarray, clips: int) -> FrameState:
        """Where prompts end: of each row the last token and its position, int32 [rows]; rows: clips, or twice that."""
        made = FrameState(tokens, positions, np.zeros((clips, self._codes + 1), np.int32), np.ones(clips, bool))  # type: ignore[arg-type]
        return jax.device_put(made, self._one)

    def advance(
        self, cache: Cache, state: FrameState, scale: float, knobs: Knobs, begin: int, end: int
    ) -> tuple[Cache, FrameState]:
        """Codes begin ... end - 1 of the frame, of all clips; number `codes` is eof.

        scale: of the guidance, where there are rows without captions. knobs: of each clip, numpy arrays [clips].
        """
        program = self._advance(len(state.tokens) > len(state.codes))
        given = jax.device_put((np.float32(scale), knobs, np.int32(begin), np.int32(end)), self._one)
        return program(*self._programs.weights, cache, state, *given)

    def with_captions(self, cache: Cache, state: FrameState) -> tuple[Cache, FrameState]:
        """Without the rows that have no captions: what follows is drawn without guidance, by half the work."""
        clips = len(state.codes)
        return self._half(cache), state._replace(tokens=state.tokens[:clips], positions=state.positions[:clips])

    def _program(self, guided: bool) -> Callable[..., Any]:
        programs, ids, last = self._programs, self._ids, self._codes
        config, stripes = programs.config, programs.stripes
        _, whole = shards(programs.mesh, programs.dtype)

        def local(weights, rope, cache, tokens, positions):
            active = jnp.ones(tokens.shape, bool)
            cache, hidden = token_hidden(config, whole, stripes, weights, rope, cache, tokens, positions, active)
            return cache, vision_logits_of(hidden, weights, whole)

        sharded = programs.sharded(local, (ROWS, ROWS), (caches.SPEC, ROWS))

        def program(weights, rope, cache, state, scale, knobs, begin, end):
            clips = len(state.codes)

            def step(n, carried):
                cache, state = carried
                cache, logits = sharded(weights, rope, cache, state.tokens, state.positions)
                logits = lax.with_sharding_constraint(logits[:, : ids.codebook], self._one)
                if guided:
                    logits = logits[clips:] + scale * (logits[:clips] - logits[clips:])
                # Of a row with a NaN, the greatest is NaN.
                sound = state.sound & jnp.isfinite(logits.max(-1))
                drawn = draw(logits, state.positions[:clips] + 1, knobs)
                codes = jnp.where(n == last, ids.codebook, drawn)
                tokens = jnp.tile(codes + ids.offset, 2 if guided else 1)
                frame = lax.dynamic_update_slice(state.codes, codes[:, None], (0, n))
                return cache, FrameState(tokens, state.positions + 1, frame, sound)

            return lax.fori_loop(begin, end, step, (cache, state))

        split = NamedSharding(programs.mesh, caches.SPEC)
        return jax.jit(program, donate_argnums=2, out_shardings=(split, self._one))
