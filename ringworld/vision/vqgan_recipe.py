"""What a VQGAN's training is: all that decides its weights but the pictures, and nothing of where or how it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ringworld.errors import UserError
from ringworld.vision.config import VQConfig
from ringworld.vision.judge import JudgeConfig
from ringworld.vision.losses import PixelWeights


@dataclass(frozen=True)
class AdversaryConfig:
    """A judge of patches from a step on, weighed against the pixels as its gradient asks for (Esser et al. 2021).

    start_step   the first step that it is trained and heard in; it is of use once pixels are about right
    weight       of what it says, after the adaptive weight; 0: there is none
    """

    judge: JudgeConfig = field(default_factory=JudgeConfig)
    start_step: int = 0
    weight: float = 0.8
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        if self.start_step < 0 or self.weight < 0 or self.learning_rate <= 0:
            raise UserError(
                f"adversary.start_step={self.start_step}, weight={self.weight}, learning_rate={self.learning_rate}: "
                f"the first two are 0 or more, the rate above 0"
            )


@dataclass(frozen=True)
class RestartConfig:
    """Codes that are hardly used become latents of the step's pictures.

    every   steps between restarts; 0: never
    below   usage, in equal shares, under which a code is restarted
    decay   of the moving average of usage, a step; a restarted code begins at 1
    """

    every: int = 20
    below: float = 0.1
    decay: float = 0.98

    def __post_init__(self) -> None:
        if self.every < 0 or not 0 <= self.below < 1 or not 0 < self.decay < 1:
            raise UserError(
                f"restart.every={self.every}, below={self.below}, decay={self.decay}: every is 0 or more, below lies "
                f"in 0..1, decay between 0 and 1"
            )


@dataclass(frozen=True)
class VQTrainRecipe:
    """Everything that decides what is learned.

    batch             pictures a step
    learning_rate     of Adam (Kingma and Ba 2014, arXiv 1412.6980) after a linear warm-up, down to minimum_rate by a
                      cosine
    clip_norm         bound of the gradient's norm, over all weights
    codebook, commitment    weights of the two losses of `straight_through`
    dtype             of the forward and backward pass; weights, optimizer and statistics are float32
    """

    model: VQConfig
    steps: int
    batch: int
    learning_rate: float
    warmup_steps: int = 0
    minimum_rate: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.99
    clip_norm: float = 1.0
    pixels: PixelWeights = field(default_factory=PixelWeights)
    codebook: float = 1.0
    commitment: float = 0.25
    restart: RestartConfig = field(default_factory=RestartConfig)
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be 1 or more")
        if not 0 <= self.minimum_rate <= self.learning_rate or self.learning_rate <= 0:
            raise UserError(
                f"learning_rate={self.learning_rate}, minimum_rate={self.minimum_rate}: the rate is above 0 and not "
                f"below its minimum"
            )
        for name in ("warmup_steps", "codebook", "commitment"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: must be 0 or more")
        if self.clip_norm <= 0:
            raise UserError(f"clip_norm={self.clip_norm}: must be above 0")
        judge = self.adversary.judge
        if self.judged(self.steps - 1) and judge.patches(self.model.resolution) < 1:
            raise UserError(
                f"adversary.judge.layers={judge.layers}: pictures of {self.model.resolution} pixels are too small for "
                f"so many; give fewer"
            )

    def judged(self, step: int) -> bool:
        """Whether the step, counted from 0, has a judge."""
        return self.adversary.weight > 0 and step >= self.adversary.start_step
