"""Small videos for tests, written by PyAV: frame k is grey of level 10 + 8 k, or what `paint` gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

CODECS = {"mp4": "libx264", "webm": "libvpx-vp9", "avi": "mpeg4", "gif": "gif", "mkv": "libx264", "mov": "libx264"}
_MILLISECOND = Fraction(1, 1000)


def level(frame: int) -> int:
    return 10 + 8 * frame


def grey(frame: int) -> np.ndarray:
    return np.full((48, 64, 3), level(frame), np.uint8)


def noise(frame: int) -> np.ndarray:
    """Pictures that take room in a file, and no two alike."""
    blocks = np.random.default_rng(frame).integers(0, 256, (12, 16, 3), np.uint8)
    return blocks.repeat(4, axis=0).repeat(4, axis=1)


def film(
    path: Path,
    frames: int = 25,
    rate: int = 25,
    paint: Callable[[int], np.ndarray] = grey,
    times: Sequence[int] | None = None,
    key_every: int = 12,
    rotation: int | None = None,
    pixel: Fraction | None = None,
) -> Path:
    """times: milliseconds at which frames begin; None: at the rate. rotation: degrees that players turn it by."""
    kind = path.suffix[1:]
    faststart = {"movflags": "faststart"} if kind in ("mp4", "mov") else {}
    with av.open(str(path), "w", options=faststart) as container:
        stream: Any = container.add_stream(CODECS[kind], rate=rate)
        stream.height, stream.width = paint(0).shape[:2]
        stream.pix_fmt = "rgb8" if kind == "gif" else "yuv420p"
        stream.codec_context.options = {"g": str(key_every)}
        if pixel is not None:
            stream.codec_context.sample_aspect_ratio = pixel
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if times is not None:
            stream.codec_context.time_base = stream.time_base = _MILLISECOND
        if not frames:
            container.start_encoding()
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(paint(number), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], _MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def sound(path: Path) -> Path:
    """An mp4 without video."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
