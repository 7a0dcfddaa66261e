"""An image or a video to the codes that a model is asked about: read, brought to its size, encoded.

Frames are decoded by a thread while the batch before is encoded, so memory does not grow with a video's length: of
pixels there are a few batches, of codes a few hundred numbers a frame. A file that is broken anywhere that is looked at
is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ringworld.errors import UserError
from ringworld.generate.sight import Sight
from ringworld.vision.ahead import Ahead
from ringworld.vision.media import load
from ringworld.vision.pixels import Picture, Refused, read_image, to_square
from ringworld.vision.video import Frames, spread
from ringworld.vision.video_reader import Probe, VideoOptions, probe

_MOST_BYTES = 1 << 29  # of an image's file


def see_image(place: str, sight: Sight) -> np.ndarray:
    """Codes int32 [1, grid, grid] of an image, by path or URL. UserError for a file that is none."""
    data = load(place, _MOST_BYTES)
    found = data if isinstance(data, Refused) else read_image(data, at_least=sight.side)
    if isinstance(found, Refused):
        raise _refused("--image", place, found)
    return sight.codec.encode(to_square(found.pixels, sight.side)[None])


def see_video(
    place: str,
    sight: Sight,
    room: int,
    usual: float,
    rate: float | None = None,
    count: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> np.ndarray:
    """Codes int32 [frames, grid, grid] of a video, by path or URL, from its beginning to its end.

    Frames are taken at `rate` a second, or `count` of them evenly spread; with neither at the usual rate, and spread
    where more than `room` frames would come of it. UserError where what was asked for does not fit, for a file that is
    no video or has no frames, and for one that breaks.
    """
    options = VideoOptions()
    known = probe(place, options)
    if isinstance(known, Refused):
        content = load(place, _MOST_BYTES)
        if isinstance(content, bytes) and isinstance(read_image(content), Picture):
            raise UserError(f"--video {place}: it is an image; give it as --image")
        raise _refused("--video", place, known)
    if known.broken is not None:
        raise _refused("--video", place, known.broken)
    if room < 1:
        raise UserError(f"--video {place}: not even one frame fits the context beside the question; shorten that")
    wanted, at = _chosen(place, known, room, usual, rate, count)
    if at is None:
        frames = spread(place, wanted, options, sight.side, known)
    else:
        frames = Frames(place, [number / at for number in range(wanted)], options, sight.side)
    found: list[np.ndarray] = []
    done = 0
    with Ahead(frames, sight.codec.batch) as ahead:
        for chunk in ahead:
            found.append(sight.codec.encode(chunk.pixels))
            done += len(chunk.pixels)
            on_progress(done, wanted)
    if frames.broken is not None:
        raise _refused("--video", place, frames.broken)
    if not found:
        raise UserError(f"--video {place}: no frame of it can be decoded")
    return np.concatenate(found)


def _chosen(
    place: str, known: Probe, room: int, usual: float, rate: float | None, count: int | None
) -> tuple[int, float | None]:
    """How many frames, and how many a second; None: so many evenly spread."""
    if count is not None:
        if not 1 <= count <= room:
            raise UserError(f"--frames {count}: from 1 to {room}, which fit the context beside question and answer")
        return count, None
    at = usual if rate is None else rate
    if not 0 < at < math.inf:
        raise UserError(f"--rate {at}: frames a second, more than 0")
    frames = max(1, math.ceil(known.seconds * at - 1e-6))
    if frames <= room:
        return frames, at
    if rate is not None:
        raise UserError(
            f"--rate {rate:g}: {frames} frames of {known.seconds:.1f} seconds, and {room} fit the context beside "
            f"question and answer; give a lower rate, or none to have {room} evenly spread"
        )
    return room, None


def _refused(flag: str, place: str, why: Refused) -> UserError:
    detail = f" ({why.detail})" if why.detail and why.detail != place else ""
    other = "; a video goes by --video" if why.reason == "no image" else ""
    return UserError(f"{flag} {place}: {why.reason}{detail}{other}")
