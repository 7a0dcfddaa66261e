"""Trains a VQGAN: steps over batches, checkpoints to resume from, figures of how far it is.

The batch at a step is a pure function of the step, so a resumed training sees what one without a pause would have seen,
and ends with the same weights. A loss that is no number stops the training before it can reach a checkpoint. A state
folder holds

    checkpoints/STEP    states to resume from, through Orbax; the newest `keep`
    progress.jsonl      one `VQRecord` a line
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ringworld.data.files import join
from ringworld.data.loader import prefetch
from ringworld.errors import UserError
from ringworld.mesh import BATCH_AXES, MeshSpec, make_mesh
from ringworld.train.checkpoint import Checkpoints
from ringworld.vision.codebook import perplexity, usage_of
from ringworld.vision.codec import Codec
from ringworld.vision.config import VQConfig
from ringworld.vision.losses import psnr
from ringworld.vision.parameters import Params
from ringworld.vision.vqgan_job import PROGRESS, VQTrainOptions
from ringworld.vision.vqgan_progress import Quality, VQLog, VQRecord
from ringworld.vision.vqgan_recipe import VQTrainRecipe
from ringworld.vision.vqgan_step import State, Step, abstract_state, init_state, step_alone, step_judged

Batches = Callable[[int], np.ndarray]


@dataclass(frozen=True, eq=False)
class Trained:
    """Finished weights, and all records."""

    params: Params
    records: list[VQRecord]


def train_vqgan(
    recipe: VQTrainRecipe,
    batches: Batches,
    held_out: np.ndarray,
    folder: str,
    options: VQTrainOptions | None = None,
    *,
    mesh: Mesh | None = None,
    stopping: Callable[[int], bool] = lambda step: False,
) -> Trained | None:
    """Train to the end of the recipe, from the newest checkpoint of the folder or from scratch.

    batches   step -> the batch of that step, uint8 [recipe.batch, resolution, resolution, 3]; called by threads
    held_out  pictures uint8 [n, resolution, resolution, 3], n 1 or more, that no batch shows
    mesh      the devices that share a batch, along `data` and `fsdp`; one device where it is not given
    stopping  called after every step, with how many are done: True saves and leaves

    None when it was left before the end. UserError where pictures are of other shapes, devices do not divide the batch,
    or a loss is no number.
    """
    options = options or VQTrainOptions()
    mesh = mesh or make_mesh(MeshSpec(), jax.devices()[:1])
    side = recipe.model.resolution
    _check(held_out, (max(len(held_out), 1), side, side, 3), "held-out pictures")
    whole, shared = _shardings(recipe, mesh)

    def placed(step: int) -> jax.Array:
        batch = batches(step)
        _check(batch, (recipe.batch, side, side, 3), f"the batch of step {step}")
        return jax.device_put(batch, shared)

    with Checkpoints(folder, options.keep) as checkpoints:
        found = checkpoints.restore_newest(_abstract(recipe, whole))
        begun, state = (found.step, found.state) if found else (0, jax.device_put(init_state(recipe), whole))
        since = _Since(recipe, held_out, VQLog(join(folder, PROGRESS), begun))
        for done, batch in enumerate(prefetch(placed, begun, recipe.steps), start=begun + 1):
            step = (step_judged if recipe.judged(done - 1) else step_alone)(recipe, state, batch)
            state = step.state
            since.add(step)
            last, leaving = done == recipe.steps, stopping(done)
            if done % options.record_every == 0 or last:
                since.record(done, state.params)
            if done % options.save_every == 0 or last or leaving:
                since.losses(done)
                since.log.flush()
                checkpoints.save(done, state)
            if leaving and not last:
                return None
    return Trained(state.params, since.log.records)


def quality(config: VQConfig, params: Params, pictures: np.ndarray) -> Quality:
    """Of the reconstructions of pictures uint8 [n, h, w, 3]."""
    codec = Codec(config, params)
    codes = codec.encode(pictures)
    made = codec.decode(codes) / np.float32(255.0)
    usage = usage_of(jnp.asarray(codes), config.codebook)
    return Quality(
        psnr=float(psnr(jnp.asarray(made), jnp.asarray(pictures / np.float32(255.0))).mean()),
        used=int((usage > 0).sum()),
        perplexity=float(perplexity(usage)),
    )


def _shardings(recipe: VQTrainRecipe, mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
    """Of what all devices hold, and of a batch."""
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if devices != mesh.size or recipe.batch % devices:
        raise UserError(
            f"batch={recipe.batch} on the mesh {dict(mesh.shape)}: a VQGAN is trained along data and fsdp alone, which "
            f"together divide the batch; use data=1 with fsdp=1, or give another batch"
        )
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def _abstract(recipe: VQTrainRecipe, whole: NamedSharding) -> State:
    leaf = functools.partial(jax.ShapeDtypeStruct, sharding=whole)
    return jax.tree.map(lambda shape: leaf(shape.shape, shape.dtype), abstract_state(recipe))


def _check(pictures: np.ndarray, shape: tuple[int, ...], what: str) -> None:
    if pictures.shape != shape or pictures.dtype != np.uint8:
        raise UserError(f"{what}: {pictures.dtype} {list(pictures.shape)}; expected uint8 {list(shape)}")


class _Since:
    """What steps have made since the last record."""

    def __init__(self, recipe: VQTrainRecipe, held_out: np.ndarray, log: VQLog) -> None:
        self.log = log
        self._recipe, self._held_out = recipe, held_out
        self._begin()

    def _begin(self) -> None:
        self._losses: list[dict[str, jax.Array]] = []
        self._usage: jax.Array | float = 0.0
        self._began = time.monotonic()

    def add(self, step: Step) -> None:
        """Waits for the step before, so that the host is one step ahead of the device and no more."""
        if self._losses:
            jax.block_until_ready(self._losses[-1])
        self._losses.append(step.losses)
        self._usage += step.usage

    def losses(self, step: int) -> dict[str, float]:
        """Means by name. A judge that began in between has spoken in some of the steps only. UserError where one is no
        number."""
        values = jax.device_get(self._losses)
        names = sorted({name for one in values for name in one})
        losses = {name: float(np.mean([one[name] for one in values if name in one])) for name in names}
        for name, value in losses.items():
            if not math.isfinite(value):
                raise UserError(
                    f"the loss {name} is no number by step {step}; the checkpoints before it are kept; lower "
                    f"learning_rate={self._recipe.learning_rate}, or lengthen warmup_steps={self._recipe.warmup_steps}"
                )
        return losses

    def record(self, step: int, params: Params) -> None:
        losses, usage = self.losses(step), jnp.asarray(self._usage)
        seconds = round(time.monotonic() - self._began, 3)
        held_out = quality(self._recipe.model, params, self._held_out)
        self.log.append(VQRecord(step, losses, int((usage > 0).sum()), float(perplexity(usage)), held_out, seconds))
        self._begin()
