"""Batches of square crops of pictures in memory. A batch is a pure function of (pictures, seed, step)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from ringworld.errors import UserError


def random_crops(pictures: Sequence[np.ndarray], side: int, batch: int, seed: int, step: int) -> np.ndarray:
    """The batch of a step: uint8 [batch, side, side, 3] of pictures uint8 [h, w, 3].

    Every crop is of a picture drawn at random, of a size between `side` and the picture's shorter side (even in its
    logarithm), anywhere in it, mirrored half of the time. A picture whose shorter side is less is enlarged. UserError
    without pictures.
    """
    if not pictures:
        raise UserError("no pictures to cut crops of; give sources with one image at least")
    random = np.random.default_rng((seed, step))
    return np.stack([_crop(pictures[int(random.integers(len(pictures)))], side, random) for _ in range(batch)])


def _crop(picture: np.ndarray, side: int, random: np.random.Generator) -> np.ndarray:
    height, width = picture.shape[:2]
    shorter = min(height, width)
    size = round(shorter * (min(side, shorter) / shorter) ** random.random())
    top, left = random.integers(height - size + 1), random.integers(width - size + 1)
    part = picture[top : top + size, left : left + size]
    if size != side:
        part = np.asarray(Image.fromarray(part).resize((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0))
    return part[:, ::-1] if random.random() < 0.5 else part
