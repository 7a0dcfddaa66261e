"""What a VQGAN's process is told, in three parts that never mix.

- `VQRecipe` decides the weights: a training, or a folder of finished ones.
- `VQInputs` says where the clips lie and where to write.
- `VQTrainOptions` says how to run; it may change between two attempts of one job.

`--recipe FILE` holds all three as YAML, under the keys `recipe`, `inputs` and `options`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ringworld.errors import UserError
from ringworld.job_file import read_job, write_job
from ringworld.vision.gallery import GalleryOptions
from ringworld.vision.vqgan_recipe import VQTrainRecipe

# What the process leaves: the weights, figures, and of a training its progress.
ARTIFACT, FIGURES, PROGRESS = "vqgan", "vqgan.json", "progress.jsonl"


@dataclass(frozen=True)
class VQRecipe:
    """One of `train` and `folder`.

    train       learn from the clips of the split `train`
    folder      take the weights of this VQModel folder (config.json and safetensors), a path or URL
    resolution  with folder: pixels of a side, instead of the folder's `sample_size`; 0: that
    pictures    which clips are learned from, and measured on; with folder, only measured on
    """

    kind: ClassVar[str] = "vqgan"
    train: VQTrainRecipe | None = None
    folder: str = ""
    resolution: int = 0
    pictures: GalleryOptions = field(default_factory=GalleryOptions)

    def __post_init__(self) -> None:
        if (self.train is None) != bool(self.folder):
            given = "both" if self.folder else "neither"
            raise UserError(f"train and folder: {given} given; give one: a training, or a VQModel folder to import")
        if self.train is not None and self.resolution:
            raise UserError(f"resolution={self.resolution}: goes with folder; a training has train.model.resolution")
        if self.resolution < 0:
            raise UserError(f"resolution={self.resolution}: pixels of a side, or 0")
        if self.train is not None and self.pictures.side < self.train.model.resolution:
            raise UserError(
                f"pictures.side={self.pictures.side}: smaller than train.model.resolution="
                f"{self.train.model.resolution}, so that every crop would be enlarged; give as many or more"
            )


@dataclass(frozen=True)
class VQInputs:
    """Paths or URLs: the table of clips, and the folder to write to."""

    clips: str
    output: str


@dataclass(frozen=True)
class VQTrainOptions:
    """How to run; nothing here changes what is learned, beyond the order of float additions.

    record_every, save_every   steps between records of progress, and between checkpoints
    keep                       how many checkpoints stay
    stall_seconds              without a finished step for so long, the process ends with exit code 124
    startup_seconds            the same for everything before the first finished step (reading pictures, compilation)
    compilation_cache          folder of compiled programs, shared by restarts; empty for none
    """

    record_every: int = 50
    save_every: int = 500
    keep: int = 2
    stall_seconds: float = 600.0
    startup_seconds: float = 3600.0
    compilation_cache: str = ""

    def __post_init__(self) -> None:
        for name in ("record_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise UserError(f"options.{name}={getattr(self, name)}: must be 1 or more")


@dataclass(frozen=True)
class VQJob:
    """The whole file given to `--recipe`."""

    recipe: VQRecipe
    inputs: VQInputs
    options: VQTrainOptions = field(default_factory=VQTrainOptions)

    def save(self, path: str) -> None:
        """Write the job as YAML."""
        write_job(path, self)


def load_vqgan_job(path: str) -> VQJob:
    """Read a job; UserError for anything that is not one."""
    return read_job(VQJob, path)
