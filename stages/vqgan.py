"""What turns pictures into codes and codes into pictures: a VQGAN, trained on the clips or imported from a folder.

Input `media`: the clips. Output: `vqgan/`, a VQModel folder (config.json and safetensors); `reconstructions.png`,
pictures of held-out clips and what became of them; `vqgan.json`, figures; of a training also `progress.jsonl` and
`vqgan.png`, PSNR and use of the codebook against steps; `job.yaml`, what the process was told.
"""

from __future__ import annotations

import dataclasses

from infra.stage import Result, StageContext
from ringworld.data.files import absolute, join, read_json
from ringworld.strict import from_mapping
from ringworld.vision.vqgan_job import ARTIFACT, FIGURES, PROGRESS, VQInputs, VQJob, VQRecipe, VQTrainOptions
from ringworld.vision.vqgan_progress import read_vqgan_progress
from stages.process import newest_checkpoint, run_module, written


def run(context: StageContext, recipe: VQRecipe) -> Result:
    """Train or import; the state folder makes every attempt go on where the one before was last durable."""
    given = dict(context.stage.placement.options)
    given.setdefault("compilation_cache", join(context.state_dir, "compiled"))
    # Absolute here, where the person is: the process's own folder is another.
    told = dataclasses.replace(recipe, folder=absolute(recipe.folder)) if recipe.folder else recipe
    job = VQJob(
        recipe=told,
        inputs=VQInputs(clips=context.inputs["media"].path("clips.parquet"), output=context.attempt_dir),
        options=from_mapping(VQTrainOptions, given, at="placement.options"),
    )
    path = join(context.attempt_dir, "job.yaml")
    job.save(path)
    progress = join(context.state_dir, PROGRESS)

    def watch() -> None:
        records = read_vqgan_progress(progress)
        if records and recipe.train:
            newest = records[-1]
            note = f"PSNR {newest.held_out.psnr:.1f} dB, {newest.used} codes"
            context.report(step=newest.step, of=recipe.train.steps, loss=newest.losses["pixels"], note=note)

    run_module(
        context,
        "ringworld.vision.train",
        ["--recipe", path, "--state", context.state_dir],
        watch=watch,
        newest_step=lambda: newest_checkpoint(context.state_dir),
    )
    values = read_json(join(context.attempt_dir, FIGURES))
    values["provenance"] = f"imported from {recipe.folder}" if recipe.folder else "trained on the clips"
    names = (ARTIFACT, FIGURES, PROGRESS, "reconstructions.png", "vqgan.png", "job.yaml")
    return Result(written(context.attempt_dir, *names), values)
