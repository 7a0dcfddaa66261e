"""How soon does a small model learn to copy? Steps until a repeated passage is foretold, from four starts.

    python benchmarks/learn_to_copy.py [--seeds 3] [--steps 1500] [--rate 6e-3] [--layers 2] [--heads 4] [--kv-heads 4]

Rows of 64 tokens are one passage of 8 to 32 random tokens over and over (`ringworld.synthesis.recall`),
16 rows a step. Copied: the mean loss of ten steps on what comes again is below half a nat, of ln 2048 = 7.6 at the
start. The same rows for every kind; the machine's speed does not enter.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

# Run as a file, Python looks for imports beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ringworld.mesh import MeshSpec, make_mesh
from ringworld.model.config import ModelConfig
from ringworld.synthesis.recall import Phrases, copy_document
from ringworld.train.recipe import OptimizerConfig, TrainOptions, TrainRecipe
from ringworld.train.step import Arrays, TrainStep

LENGTH, ROWS, VOCABULARY = 64, 16, 2048
COPIED = 0.5  # nats
_WINDOW = 10  # steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500, help="at most")
    parser.add_argument("--rate", type=float, default=6e-3)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=4)
    given = parser.parse_args()
    normal = ModelConfig(
        VOCABULARY, given.layers, 128, given.heads, given.kv_heads, 128 // given.heads, 344, tied_embeddings=True
    )
    kinds = {
        "normal": normal,
        "normal, with biases": replace(normal, qkv_biases=True),
        "mimetic": replace(normal, init="mimetic"),
        "mimetic, with biases": replace(normal, init="mimetic", qkv_biases=True),
    }
    for title, model in kinds.items():
        found = [steps_to_copy(model, given.rate, given.steps, seed) for seed in range(given.seeds)]
        print(f"{title}: {', '.join(found)}", flush=True)


def steps_to_copy(model: ModelConfig, rate: float, most: int, seed: int) -> str:
    """In words: the steps that it took, or the loss at which `most` of them ended."""
    recipe = TrainRecipe(
        model, LENGTH, LENGTH * ROWS, most, OptimizerConfig(rate, weight_decay=0.1, warmup_steps=20), seed
    )
    training = TrainStep(recipe, TrainOptions(), make_mesh(MeshSpec(), jax.devices()[:1]))
    state, step, rng = training.init(jax.random.key(seed)), training.compiled(), np.random.default_rng(seed)
    losses: list[float] = []
    for number in range(1, most + 1):
        state, metrics = step(state, batch(rng))
        losses = [*losses[1 - _WINDOW :], float(metrics.loss)]
        if len(losses) == _WINDOW and statistics.fmean(losses) < COPIED:
            return str(number)
    return f"not in {most} ({statistics.fmean(losses):.1f} nats)"


def batch(rng: np.random.Generator) -> Arrays:
    """Rows of one passage each, of which the loss counts what comes again."""
    made = [copy_document(LENGTH, PHRASES, rng) for _ in range(ROWS)]
    ids, marks = (np.stack(part)[:, : LENGTH + 1] for part in zip(*made, strict=True))
    weight = marks[:, 1:] / marks[:, 1:].sum()
    positions = np.broadcast_to(np.arange(LENGTH), (ROWS, LENGTH))
    tokens, targets, segments, positions = (
        jnp.asarray(array, jnp.int32) for array in (ids[:, :-1], ids[:, 1:], np.ones_like(positions), positions)
    )
    return Arrays(tokens, targets, segments, positions, jnp.asarray(weight, jnp.float32))


# Random passages alone need no sentences.
PHRASES = Phrases((), (), np.zeros(0, np.int32), (), np.arange(VOCABULARY - 1), VOCABULARY - 1)

if __name__ == "__main__":
    main()
