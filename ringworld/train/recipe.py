"""What a training job is, in three parts that never mix.

- `TrainRecipe` decides the weights: two jobs with equal recipes and equal inputs are the same job, on any machine.
- `TrainInputs` says where this job's inputs and outputs lie.
- `TrainOptions` says how to run it (memory, saving, patience); it may change between two attempts of one job.

`--recipe FILE` holds all three as YAML, under the keys `recipe`, `inputs` and `options`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ringworld.errors import UserError
from ringworld.job_file import read_job, write_job
from ringworld.model.config import ModelConfig
from ringworld.model.memory import Memory


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101) and its schedule. Rates are per step, norms are global."""

    learning_rate: float
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    minimum_rate: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise UserError(f"optimizer.learning_rate={self.learning_rate}: must be above 0")
        if not 0 <= self.minimum_rate <= self.learning_rate:
            raise UserError(f"optimizer.minimum_rate={self.minimum_rate}: must lie in 0..{self.learning_rate}")
        if self.warmup_steps < 0 or self.clip_norm <= 0:
            raise UserError(
                f"optimizer.warmup_steps={self.warmup_steps}, clip_norm={self.clip_norm}: "
                f"warmup is 0 or more, the norm above 0"
            )


@dataclass(frozen=True)
class TrainRecipe:
    """Everything that decides what is learned: the identity of a training stage.

    sequence      tokens a row
    batch_tokens  tokens a step, a multiple of `sequence`
    init          scratch | params (the weights of another stage) | huggingface (the folder `init_folder`)
    dtype         of the forward and backward pass; weights, optimizer and statistics are float32
    """

    kind: ClassVar[str] = "train"
    model: ModelConfig
    sequence: int
    batch_tokens: int
    steps: int
    optimizer: OptimizerConfig
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    init: Literal["scratch", "params", "huggingface"] = "scratch"
    init_folder: str = ""

    def __post_init__(self) -> None:
        if self.sequence < 2:
            raise UserError(f"sequence={self.sequence}: a row holds 2 tokens or more")
        if self.batch_tokens < self.sequence or self.batch_tokens % self.sequence:
            nearest = max(1, round(self.batch_tokens / self.sequence)) * self.sequence
            raise UserError(
                f"batch_tokens={self.batch_tokens} is not a multiple of sequence={self.sequence}; "
                f"the nearest is {nearest}"
            )
        if self.steps < 1:
            raise UserError(f"steps={self.steps}: train for 1 step or more")
        if (self.init == "huggingface") != bool(self.init_folder):
            raise UserError(
                f"init={self.init} with init_folder={self.init_folder!r}: the folder goes with init=huggingface"
            )

    @property
    def rows(self) -> int:
        """Rows of a batch."""
        return self.batch_tokens // self.sequence


@dataclass(frozen=True)
class TrainInputs:
    """Paths or URLs: the packing plan, the token store, the folder to write to, the weights to start from; and the
    store of examples with pictures, where the plan is of both stores."""

    plan: str
    tokens: str
    output: str
    params: str | None = None
    vision: str | None = None


@dataclass(frozen=True)
class TrainOptions:
    """How to run a job on this machine. Nothing here changes what is learned, beyond the order of float additions.

    save_every        steps between checkpoints; 0: they go by time alone
    save_seconds      seconds between checkpoints, beside save_every; auto: what loses least (ringworld.train.cadence),
                      within save_seconds_least and save_seconds_most; 0: they go by steps alone
    keep              how many checkpoints stay, of the newest
    keep_every        steps between further checkpoints that stay; 0: none
    notices           gce: a preemption or maintenance that the machine announces is a request to stop
    memory            what the forward pass keeps for the backward pass, and where: ringworld.model.memory
    attention         the backend: auto (the best for the platform) | xla | pallas_tpu | pallas_gpu
    optimizer_on      where the optimizer's moments wait between updates: device | host
    microbatch_rows   rows of a batch at a time, gradients accumulated; 0 is all at once
    layout            how rows lie on ranks, and a row on the ring: balanced (equal attention to compute) | contiguous
    shapes            fixed: all steps on the mesh as it is | auto: its chips on fsdp and ring split by each step's rows
    loss_chunk        tokens whose logits exist at once on a device
    stall_seconds     without a finished step for so long, the process ends with exit code 124
    startup_seconds   the same for everything before the first finished step (compilation)
    compilation_cache folder of compiled programs, shared by restarts; empty for none
    compiler          options of the XLA compiler for this platform, by name; values are texts ("false", "2")
    """

    save_every: int = 100
    save_seconds: float | Literal["auto"] = 0.0
    save_seconds_least: float = 60.0
    save_seconds_most: float = 1800.0
    keep: int = 2
    keep_every: int = 0
    notices: Literal["none", "gce"] = "none"
    memory: Memory = field(default_factory=Memory)
    attention: Literal["auto", "xla", "pallas_tpu", "pallas_gpu"] = "auto"
    optimizer_on: Literal["device", "host"] = "device"
    microbatch_rows: int = 0
    layout: Literal["balanced", "contiguous"] = "balanced"
    shapes: Literal["fixed", "auto"] = "fixed"
    loss_chunk: int = 1024
    stall_seconds: float = 600.0
    startup_seconds: float = 3600.0
    compilation_cache: str = ""
    compiler: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("keep", "loss_chunk"):
            if getattr(self, name) < 1:
                raise UserError(f"options.{name}={getattr(self, name)}: must be 1 or more")
        seconds = 1.0 if self.save_seconds == "auto" else self.save_seconds
        if min(self.save_every, seconds, self.keep_every) < 0 or not (self.save_every or seconds):
            raise UserError(
                f"options.save_every={self.save_every}, save_seconds={self.save_seconds}, "
                f"keep_every={self.keep_every}: none may be below 0, and one of the first two must be above it"
            )
        if not 0 < self.save_seconds_least <= self.save_seconds_most:
            raise UserError(
                f"options.save_seconds_least={self.save_seconds_least}, save_seconds_most={self.save_seconds_most}: "
                f"the least must be above 0 and not above the most"
            )


@dataclass(frozen=True)
class TrainJob:
    """The whole file given to `--recipe`."""

    recipe: TrainRecipe
    inputs: TrainInputs
    options: TrainOptions = field(default_factory=TrainOptions)

    def __post_init__(self) -> None:
        rows = self.options.microbatch_rows
        if rows and self.recipe.rows % rows:
            fits = [n for n in range(1, self.recipe.rows + 1) if self.recipe.rows % n == 0]
            raise UserError(
                f"options.microbatch_rows={rows} does not divide {self.recipe.rows} rows a batch; use one of {fits}"
            )

    def save(self, path: str) -> None:
        """Write the job as YAML."""
        write_job(path, self)


def load_job(path: str) -> TrainJob:
    """Read a job; UserError for anything that is not one."""
    return read_job(TrainJob, path)
