"""The frame that is hidden in a video: a large shape of one colour on a plain background of another, made by rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

# Far apart from one another, so that a coarse VQGAN keeps them apart too.
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (20, 150, 40),
    "blue": (30, 60, 220),
    "yellow": (250, 220, 20),
    "white": (250, 250, 250),
    "black": (5, 5, 5),
    "purple": (140, 30, 170),
    "orange": (250, 140, 10),
}
SHAPES = ("circle", "square", "triangle", "cross")

_MARGIN = 0.18  # of a side, between the shape and the frame's edge
_CROSS = ((0, 1), (1, 1), (1, 0), (2, 0), (2, 1), (3, 1), (3, 2), (2, 2), (2, 3), (1, 3), (1, 2), (0, 2))


@dataclass(frozen=True)
class MarkedFrame:
    """A shape of `SHAPES`; its colour and the background's, two different ones of `COLOURS`."""

    shape: str
    colour: str
    background: str


def draw_marked(frame: MarkedFrame, side: int) -> np.ndarray:
    """uint8 [side, side, 3]."""
    picture = Image.new("RGB", (side, side), COLOURS[frame.background])
    draw, colour = ImageDraw.Draw(picture), COLOURS[frame.colour]
    low, high = _MARGIN * side, (1 - _MARGIN) * side - 1
    if frame.shape == "circle":
        draw.ellipse((low, low, high, high), fill=colour)
    elif frame.shape == "square":
        draw.rectangle((low, low, high, high), fill=colour)
    elif frame.shape == "triangle":
        draw.polygon([(side / 2, low), (high, high), (low, high)], fill=colour)
    elif frame.shape == "cross":
        third = (high - low) / 3
        draw.polygon([(low + x * third, low + y * third) for x, y in _CROSS], fill=colour)
    else:
        raise ValueError(f"shape {frame.shape!r}: there are {', '.join(SHAPES)}")
    return np.asarray(picture)
