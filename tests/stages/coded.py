"""Clips and a VQGAN as finished stages of a run, and the stages of codes and examples on them."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from infra import runner
from infra.placement import Placement
from infra.runner import Outcome
from infra.stage import Artifact, Result, Stage, StageContext
from infra.storage import Store
from ringworld import errors
from ringworld.vision.config import VQConfig
from ringworld.vision.filters import CaptionRules, Filters
from ringworld.vision.vqgan import init_params
from ringworld.vision.vqgan_import import write_vqgan
from stages import codes, media, tokenizer
from stages.codes import CodesRecipe
from stages.media import MediaRecipe
from stages.tokenizer import TokenizerRecipe
from tests.infra.tiny import Number
from tests.ringworld.vision.films import film, noise
from tests.ringworld.vision.test_filters import scene

VQGAN = VQConfig(16, (8, 8, 16), blocks=1, latent=8, code_dim=8, codebook=64, groups=4)
GRID = VQGAN.grid
FILTERS = Filters(minimum_side=40, seconds=0.2, caption=CaptionRules(repeated=2))
IMAGES = 9
ASKED = [
    {"from": "human", "value": "Tell me about it.\n<image>"},
    {"from": "gpt", "value": "It is a scene."},
    {"from": "human", "value": "And its colours?"},
    {"from": "gpt", "value": "Many."},
]


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def make_sources(folder: Path) -> None:
    """Images with captions, one with a conversation besides, and videos of several lengths and rates."""
    folder.mkdir(parents=True)
    for number in range(IMAGES):
        (folder / f"scene{number}.png").write_bytes(encoded(scene(number, 60, 80)))
        (folder / f"scene{number}.txt").write_text(f"Scene number {number} of many")
    (folder / "chat.jsonl").write_text(json.dumps({"image": "scene0.png", "conversations": ASKED}))
    for number, (frames, rate) in enumerate(((50, 25), (30, 10), (90, 30), (24, 12), (80, 8))):
        place = folder / f"film{number}.mp4"
        film(place, frames, rate, lambda k, n=number: noise(k + 1000 * n))
        place.with_suffix(".txt").write_text(f"Film number {number} of some")


class Run:
    """A run's folder with clips of its own and a VQGAN of fresh weights."""

    def __init__(self, folder: Path, vqgan: VQConfig = VQGAN) -> None:
        self.sources, self.store = folder / "sources", Store(str(folder), "run")
        if not self.sources.exists():
            make_sources(self.sources)

        def train(context: StageContext, recipe: Number) -> Result:
            place = os.path.join(context.attempt_dir, "vqgan")
            write_vqgan(place, vqgan, init_params(vqgan, recipe.value))
            return Result(tuple(f"vqgan/{name}" for name in sorted(os.listdir(place))))

        here = Placement()
        # Small runs of a split would otherwise be lost: half are held out.
        listed = MediaRecipe((str(self.sources),), filters=FILTERS, held_out=0.4)
        self.media = Stage("media", listed, media.run, {}, here)
        self.vqgan = Stage("vqgan", Number(), train, {}, here)
        self.tokenizer = Stage("tokenizer", TokenizerRecipe("bytes"), tokenizer.run, {}, here)

    def codes(self, name: str = "codes", options: Mapping[str, Any] | None = None, **recipe: Any) -> Stage:
        place = Placement(options={"batch": 4, "retry_seconds": 0.05} | dict(options or {}))
        ports = {"media": self.media, "vqgan": self.vqgan}
        return Stage(name, CodesRecipe(**recipe), codes.run, ports, place)

    def run(self, stage: Stage, **how: Any) -> Outcome:
        return runner.run([stage], self.store, user_errors=(errors.UserError,), first_wait=0.05, **how)

    def made(self, stage: Stage, **how: Any) -> Artifact:
        outcome = self.run(stage, **how)
        assert outcome.ok, outcome.failures
        return outcome.artifacts[stage.name]
