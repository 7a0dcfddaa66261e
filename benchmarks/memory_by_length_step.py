"""The step of `memory_by_length.py`: what is trained, and a worker that trains and says what memory a step took."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from benchmarks.worker import serve
from ringworld.mesh import ROWS, make_mesh, parse_mesh
from ringworld.model.config import ModelConfig
from ringworld.model.memory import Memory
from ringworld.train.recipe import OptimizerConfig, TrainOptions, TrainRecipe
from ringworld.train.step import Arrays, TrainStep

RING = 8
MESH = f"data=1,fsdp=1,tensor=1,ulysses=1,ring={RING}"
MODEL = ModelConfig(vocabulary=1000, num_layers=4, embed_dim=128, num_heads=2, num_kv_heads=1, head_dim=32, mlp_dim=344)
OPTIONS = TrainOptions(memory=Memory("layer"), loss_chunk=256)


def recipe_of(length: int) -> TrainRecipe:
    """One row of this length."""
    return TrainRecipe(MODEL, length, length, 10, OptimizerConfig(1e-3))


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """The second step of one length in this process: its peak in bytes, with state and batch, and its loss.

    Not the first, which also makes threads and their stacks.
    """
    length = request["length"]
    step = TrainStep(recipe_of(length), OPTIONS, make_mesh(parse_mesh(MESH)))
    compiled = step.compiled().lower(step.abstract_state(), step.abstract_batch()).compile()
    state = step.init(jax.random.key(0))
    ids = np.random.default_rng(0).integers(0, MODEL.vocabulary, (1, length + 1)).astype(np.int32)
    arrays = (
        ids[:, :-1],
        ids[:, 1:],
        np.ones((1, length), np.int32),
        np.arange(length, dtype=np.int32)[None],
        np.full((1, length), 1 / length, np.float32),
    )
    sharding = NamedSharding(step.mesh, ROWS)
    batch = Arrays(*(jax.device_put(array, sharding) for array in arrays))
    jax.block_until_ready((state, batch))
    held = sum(shard.data.nbytes for leaf in jax.tree.leaves((state, batch)) for shard in leaf.addressable_shards)
    state, metrics = compiled(state, batch)
    jax.block_until_ready(state)
    gc.collect()
    # What the allocator kept of freed memory would hide as much of the step.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # begin a new peak
    before = _status("VmRSS")
    state, metrics = compiled(state, batch)
    loss = float(metrics.loss)
    return {"bytes": _status("VmHWM") - before + held, "loss": loss}


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    serve({"measure": measure})
