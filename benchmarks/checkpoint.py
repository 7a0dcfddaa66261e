"""What saving costs training, and restoring takes, in one run on this machine: seconds, and shares of a step's time.

    python benchmarks/checkpoint.py [--embed 384 --layers 6 --tokens 512] [--every 20] [--cycles 4] [--folder DIR]

A model is trained on one document in cycles of `--every` steps, in turn without a save and with one at their begin,
as the trainer saves: checksums, a copy, the rest behind the steps that follow. Cycles are compared by wall time, and by
the CPU time of the process, which other work on the machine hardly changes. `cost` is measured as the trainer measures
it to choose its interval; the last lines say what it chooses at a failure every 2.7 hours, and the share of time that
saves then take.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ringworld.mesh import MeshSpec, make_mesh
from ringworld.model.config import ModelConfig
from ringworld.train.cadence import save_cost, save_interval
from ringworld.train.checkpoint import Checkpoints
from ringworld.train.checksums import checksums
from ringworld.train.recipe import OptimizerConfig, TrainOptions, TrainRecipe
from ringworld.train.step import Arrays, TrainStep

FAILURE_SECONDS = 2.7 * 3600
VOCABULARY = 4096


@dataclass
class Measured:
    """Seconds. wall, cpu: of whole cycles, by whether they began with a save."""

    wall: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})
    cpu: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})
    steps: list[float] = field(default_factory=list)
    blocked: list[float] = field(default_factory=list)
    durable: list[float] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)


def make_step(embed: int, layers: int, tokens: int) -> tuple[TrainStep, Arrays]:
    """A step on one device and its batch, one document."""
    config = ModelConfig(
        vocabulary=VOCABULARY, num_layers=layers, embed_dim=embed, num_heads=embed // 64, num_kv_heads=embed // 64,
        head_dim=64, mlp_dim=embed * 8 // 3,
    )  # fmt: skip
    recipe = TrainRecipe(
        model=config, sequence=tokens, batch_tokens=tokens, steps=10**6, optimizer=OptimizerConfig(learning_rate=1e-4)
    )
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (1, tokens + 1)).astype(np.int32)
    batch = Arrays(
        tokens=jnp.asarray(ids[:, :-1]),
        targets=jnp.asarray(ids[:, 1:]),
        segments=jnp.ones((1, tokens), jnp.int32),
        positions=jnp.arange(tokens, dtype=jnp.int32)[None],
        loss_weight=jnp.full((1, tokens), 1 / tokens, jnp.float32),
    )
    return TrainStep(recipe, TrainOptions(), make_mesh(MeshSpec(), jax.devices()[:1])), batch


def measure(step: TrainStep, batch: Arrays, folder: str, every: int, cycles: int) -> tuple[Measured, Any]:
    """Train in cycles; the measured and the last state."""
    found, state, compiled = Measured(), step.init(jax.random.key(0)), step.compiled()
    with Checkpoints(folder, keep=1) as checkpoints:
        for _ in range(3):  # the first compiles, the second has the memory of the first to use again
            state = jax.block_until_ready(compiled(state, batch)[0])
        checkpoints.save(0, state)  # compiles the checksums
        checkpoints.wait()
        for cycle in range(2 * cycles):
            saving, seconds = bool(cycle % 2), []
            wall, cpu = time.perf_counter(), time.process_time()
            if saving:
                checkpoints.save(cycle, state)
                found.blocked.append(time.perf_counter() - wall)
            last, during = wall, 0
            for _ in range(every):
                state = jax.block_until_ready(compiled(state, batch)[0])
                last, before = time.perf_counter(), last
                seconds.append(last - before)
                if saving and not during and checkpoints.saved_in() is not None:
                    during = len(seconds)
            found.wall[saving].append(time.perf_counter() - wall)
            found.cpu[saving].append(time.process_time() - cpu)
            if not saving:
                found.steps += seconds
                continue
            checkpoints.wait()
            found.durable.append(checkpoints.saved_in() or 0.0)
            found.cost.append(save_cost(seconds[: during or every], found.steps, found.blocked[-1]))
    return found, state


def restoring(step: TrainStep, folder: str, state: Any) -> dict[str, float]:
    """Seconds to restore and verify, and of the checksums alone."""
    began = time.perf_counter()
    with Checkpoints(folder, keep=1) as checkpoints:
        restored = checkpoints.restore_newest(step.abstract_state())
    total = time.perf_counter() - began
    assert restored is not None
    began = time.perf_counter()
    checksums(state)
    return {"restore_seconds": total, "checksum_seconds": time.perf_counter() - began}


def report(found: Measured, restored: dict[str, float], size: float, every: int) -> dict[str, float]:
    """Figures of a run, by name."""
    middle = statistics.median
    cost = middle(found.cost)
    interval = save_interval(cost, FAILURE_SECONDS, 0.0, FAILURE_SECONDS, middle(found.durable))
    return {
        "state_mib": size / 2**20,
        "step_seconds": middle(found.steps),
        "cycle_seconds_without": middle(found.wall[False]),
        "cycle_seconds_with": middle(found.wall[True]),
        "blocked_seconds": middle(found.blocked),
        "durable_seconds": middle(found.durable),
        "cost_seconds": cost,
        f"share_every_{every}_steps": middle(found.wall[True]) / middle(found.wall[False]) - 1,
        f"share_every_{every}_steps_cpu": middle(found.cpu[True]) / middle(found.cpu[False]) - 1,
        "interval_chosen_seconds": interval,
        "share_at_interval_chosen": cost / interval,
        "blocked_share_at_interval_chosen": middle(found.blocked) / interval,
        **restored,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embed", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--every", type=int, default=20, help="steps of a cycle")
    parser.add_argument("--cycles", type=int, default=4, help="with a save, and as many without")
    parser.add_argument("--folder", help="where to save; a temporary one, where it is not given")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    step, batch = make_step(options.embed, options.layers, options.tokens)
    with tempfile.TemporaryDirectory() as temporary:
        folder = os.path.abspath(options.folder or temporary)
        found, state = measure(step, batch, folder, options.every, options.cycles)
        restored = restoring(step, folder, state)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    figures = report(found, restored, size, options.every)
    for name, value in figures.items():
        print(f"{name:36} {value:10.4f}" if "share" not in name else f"{name:36} {value:10.2%}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
