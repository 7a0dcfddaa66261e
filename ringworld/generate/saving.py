"""Pictures as files: an image as PNG, a video as mp4 (H.264).

A file is written under another name in the same folder and moved into its place when it is whole: who looks never
finds half of one, and one that was there stays until then. Frames are taken one at a time, so a long video is never in
memory.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.codec import Codec
from PIL import Image

from ringworld.errors import UserError

Kind = Literal["image", "video"]

# H.264 by either, else MPEG-4 part 2: all of them play in an mp4.
_ENCODERS = ("libx264", "libopenh264", "mpeg4")


def kind_of(path: str, frames: int) -> Kind:
    """What a path is to hold. UserError for another suffix, an image of several frames, and where nothing could be
    written."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".png", ".mp4"):
        raise UserError(
            f"--out {path}: an image is written as .png and a video as .mp4, not as {suffix or 'no suffix'!r}"
        )
    if suffix == ".png" and frames > 1:
        raise UserError(f"--out {path}: {frames} frames are a video; give a name that ends with .mp4")
    if not Path(path).parent.is_dir():
        raise UserError(f"--out {path}: there is no folder {Path(path).parent}; make it first")
    if Path(path).is_dir():
        raise UserError(f"--out {path} is a folder; give the name of a file in it")
    return "image" if suffix == ".png" else "video"


def save_image(path: str, pixels: np.ndarray) -> None:
    """uint8 [h, w, 3]."""
    with _written(path) as scratch:
        Image.fromarray(pixels).save(scratch, "PNG")


def save_video(path: str, frames: Iterable[np.ndarray], rate: float) -> str:
    """Frames uint8 [h, w, 3] of one size, so many a second. Returns the encoder's name. ValueError for no frames."""
    name = next(filter(_encodes, _ENCODERS))
    # The index goes to the front, so that a player can begin before it has read all.
    front = {"movflags": "faststart"}
    with _written(path) as scratch, av.open(scratch, "w", format="mp4", options=front) as container:
        stream: Any = None
        for pixels in frames:
            if stream is None:
                stream = container.add_stream(name, rate=Fraction(rate).limit_denominator(1000))
                stream.height, stream.width = (side + side % 2 for side in pixels.shape[:2])
                stream.pix_fmt = "yuv420p"  # halves both sides of colours; what every player knows
            container.mux(stream.encode(av.VideoFrame.from_ndarray(_even(pixels), format="rgb24")))
        if stream is None:
            raise ValueError("a video of no frames")
        container.mux(stream.encode(None))
    return name


def _encodes(name: str) -> bool:
    try:
        Codec(name, "w")
    except ValueError:  # this FFmpeg was built without
        return False
    return True


def _even(pixels: np.ndarray) -> np.ndarray:
    """With the last row and column repeated where a side is odd."""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


@contextlib.contextmanager
def _written(path: str) -> Iterator[str]:
    """A name to write under, which becomes `path` where nothing goes wrong, and is gone where something does."""
    target = Path(path)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            scratch = os.path.join(folder, target.name)
            yield scratch
            os.replace(scratch, target)
    except OSError as wrong:
        raise UserError(f"--out {path}: {wrong.strerror or wrong}") from wrong
