"""A VQGAN from beginning to end: pictures, training or import, weights, and what they are worth.

Into the output folder go `vqgan/` (the weights), `vqgan.json` (figures) and `reconstructions.png`; of a training also
`progress.jsonl` and `vqgan.png`. Either way it is measured on pictures of held-out clips.
"""

from __future__ import annotations

import sys

import jax.numpy as jnp
from jax.sharding import Mesh

from ringworld.data.files import join, read_bytes, read_table, write_bytes, write_json
from ringworld.exits import DONE, PREEMPTED
from ringworld.train.vigil import StopRequest, Vigil
from ringworld.vision.codebook import perplexity, usage_of
from ringworld.vision.codec import Codec
from ringworld.vision.config import VQConfig
from ringworld.vision.crops import random_crops
from ringworld.vision.gallery import Gallery, open_gallery
from ringworld.vision.parameters import Params
from ringworld.vision.pictures import draw_reconstructions, draw_vqgan_progress
from ringworld.vision.vqgan_import import read_vqgan, weights_sha256, write_vqgan
from ringworld.vision.vqgan_job import ARTIFACT, FIGURES, PROGRESS, VQJob
from ringworld.vision.vqgan_progress import VQRecord
from ringworld.vision.vqgan_train import quality, train_vqgan

_NAMED = 20
_SHOWN = 16  # reconstructions
_CROPS = 1024  # that the use of the codebook is counted over, at most
_CODES_EACH = 4  # of those crops for each code of the codebook, where that many crops have as many


def make_vqgan(job: VQJob, state_dir: str, mesh: Mesh) -> int:
    """Run the job to its end or to a request to stop; returns the exit code."""
    options = job.options
    with Vigil(options.stall_seconds, options.startup_seconds) as vigil, StopRequest() as stop:

        def stopping(step: int) -> bool:
            vigil.beat()
            return stop.reached(step)

        recipe, clips = job.recipe, read_table(job.inputs.clips)
        if recipe.train is None:
            config, params = read_vqgan(recipe.folder, recipe.resolution or None)
            gallery, records = open_gallery(clips, recipe.pictures, config.resolution, seed=0), []
        else:
            training, config = recipe.train, recipe.train.model
            gallery = open_gallery(clips, recipe.pictures, config.resolution, training.seed)
            print(
                f"{len(gallery.train)} pictures to learn from, {len(gallery.held_out)} held out, "
                f"{len(gallery.refused)} clips refused",
                file=sys.stderr, flush=True,
            )  # fmt: skip
            trained = train_vqgan(
                training,
                lambda step: random_crops(gallery.train, config.resolution, training.batch, training.seed, step),
                gallery.held_out,
                state_dir,
                options,
                mesh=mesh,
                stopping=stopping,
            )
            if trained is None:
                print("asked to stop: the last step is saved", file=sys.stderr, flush=True)
                return PREEMPTED
            params, records = trained.params, trained.records
            write_bytes(join(job.inputs.output, PROGRESS), read_bytes(join(state_dir, PROGRESS)))
        vigil.grant(options.startup_seconds)
        _write(job, config, params, gallery, records)
    return DONE


def _write(job: VQJob, config: VQConfig, params: Params, gallery: Gallery, records: list[VQRecord]) -> None:
    """Weights, pictures and figures."""
    output, training = job.inputs.output, job.recipe.train
    write_vqgan(join(output, ARTIFACT), config, params)
    codec = Codec(config, params)
    shown = gallery.held_out[:_SHOWN]
    write_bytes(join(output, "reconstructions.png"), draw_reconstructions(shown, codec.decode(codec.encode(shown))))
    if records:
        write_bytes(join(output, "vqgan.png"), draw_vqgan_progress(records))
    # Crops that no step has shown, and more of them than held-out pictures: a few would not need every code.
    crops = min(_CROPS, -(-_CODES_EACH * config.codebook // config.grid**2))
    steps = training.steps if training else 0
    used = codec.encode(random_crops(gallery.train, config.resolution, crops, training.seed if training else 0, steps))
    usage = usage_of(jnp.asarray(used), config.codebook)
    write_json(
        join(output, FIGURES),
        {
            "psnr": quality(config, params, gallery.held_out).psnr,
            "perplexity": float(perplexity(usage)),
            "used": int((usage > 0).sum()),
            "counted": used.size,
            "codebook": config.codebook,
            "resolution": config.resolution,
            "factor": config.factor,
            "steps": steps,
            "pictures": len(gallery.train),
            "held_out": len(gallery.held_out),
            "refused": list(gallery.refused[:_NAMED]),
            "sha256": weights_sha256(join(output, ARTIFACT)),
        },
    )
