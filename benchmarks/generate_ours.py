"""The side of ringworld in benchmarks/generate.py and needle_grid.py: a worker process that reads prompts and draws
tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

# Run as a module of the repository or beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np

from benchmarks.worker import serve, timed
from ringworld.evaluate.needle import Prompt, pack_prompts
from ringworld.evaluate.scorer import Scorer
from ringworld.generate.engine import Engine, Request
from ringworld.generate.programs import Programs
from ringworld.huggingface.config_json import read_config
from ringworld.mesh import make_mesh, parse_mesh
from ringworld.model.llama import Params
from ringworld.model.rope import make_rope
from ringworld.train.weights import load_weights


class Side:
    """One model and the engine of the newest sizes."""

    def __init__(self) -> None:
        self._programs: Programs | None = None
        self._engine: Engine | None = None
        self._params: Params = {}
        self._prompts = 0
        self._scorer: Scorer | None = None

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        mesh = make_mesh(parse_mesh(request["mesh"]))
        config = read_config(request["folder"])
        self._params = load_weights(request["folder"], config, mesh)
        self._programs = Programs(config, self._params, make_rope(config.rope, config.head_dim), mesh, "float32")
        return {}

    def prefill(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds to read a prompt that no slot holds a part of, and to draw the token after it."""
        engine = self._made(slots=1, context=request["tokens"] + 1)
        engine.submit(Request(self._prompt(request["tokens"]), 1))
        return timed(lambda: self._until_idle(engine))

    def decode(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds of a step, which draws a token for each of `batch` requests after prompts of `past` tokens."""
        batch, past, steps = request["batch"], request["past"], request["steps"]
        engine = self._made(slots=batch, context=past + steps + 2)
        tickets = [engine.submit(Request(self._prompt(past), steps + 2)) for _ in range(batch)]
        drawn: dict[int, int] = {}
        while len(drawn) < batch:  # every prompt read; what is left of a step before the clock starts does not count
            for event in engine.step():
                if event.token is not None:
                    drawn[event.ticket] = 1
        engine.step()
        steps -= batch  # the first requests were answered on while the last prompts were read
        told = timed(lambda: [engine.step() for _ in range(steps)])
        for ticket in tickets:
            engine.cancel(ticket)
        return {name: seconds / steps for name, seconds in told.items()}

    def cache(self, request: dict[str, Any]) -> dict[str, Any]:
        """Bytes that a cache of these sizes takes, and those that are counted for it."""
        engine = self._made(slots=request["batch"], context=request["context"])
        held = sum(part.data.nbytes for layer in engine._cache for x in layer for part in x.addressable_shards)
        return {"held": held, "counted": engine.cache_shape.bytes, "length": engine.length}

    def grade(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds to say of prompts whether a greedy reader would answer them so: rows packed, read and graded."""
        assert self._programs is not None
        programs = self._programs
        if self._scorer is None:
            self._scorer = Scorer(programs.config, programs.mesh, "float32", 1024)
        scorer, exact = self._scorer, []
        with np.load(request["prompts"]) as held:
            prompts = [held[name] for name in held]
        answers = np.load(request["answers"])

        def run() -> None:
            asked = [
                Prompt(len(prompt) + len(answer) - 1, 0.0, "", "", np.append(prompt, answer), len(answer))
                for prompt, answer in zip(prompts, answers, strict=True)
            ]
            sizes = [prompt.answer for prompt in asked]
            rows, places = pack_prompts([prompt.tokens for prompt in asked], request["sequence"], sizes)
            hit = scorer.score(self._params, programs.config.rope, rows).hit
            exact[:] = [
                bool(hit[row, slot + prompt.length - prompt.answer : slot + prompt.length].all())
                for prompt, (row, slot) in zip(asked, places, strict=True)
            ]

        return timed(run) | {"exact": exact}

    def gemm(self, request: dict[str, Any]) -> dict[str, Any]:
        """A float32 product of 2048 x 2048 matrices: this machine's limit."""
        matrix, product = np.ones((2048, 2048), np.float32), jax.jit(lambda x: x @ x)
        placed = jax.device_put(matrix)
        return timed(lambda: product(placed).block_until_ready()) | {"operations": 2.0 * 2048**3}

    def _made(self, slots: int, context: int) -> Engine:
        assert self._programs is not None
        if self._engine is None or (self._engine.slots, self._engine.context) != (slots, context):
            self._engine = Engine(self._programs, slots=slots, context=context)
        return self._engine

    def _prompt(self, tokens: int) -> np.ndarray:
        assert self._programs is not None
        self._prompts += 1
        return np.random.default_rng(self._prompts).integers(0, self._programs.config.vocabulary, tokens)

    def _until_idle(self, engine: Engine) -> None:
        while engine.busy:
            engine.step()


if __name__ == "__main__":
    side = Side()
    serve({name: getattr(side, name) for name in ("load", "prefill", "decode", "cache", "gemm", "grade")})
