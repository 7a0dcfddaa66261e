"""The frames of a video as time shows them: at a rate, or so many spread evenly, one decoded frame after another.

- What is shown at a time is the newest frame whose timestamp is not later. Frames are never counted, so a variable
  rate, dropped frames and odd rates come out right, and a frame that stands still is given as often as it is asked
  for.
- Memory does not grow with the length: one frame is held and one decoded, and pixels are made only of those asked for.
- Frames are as a person would see them: turned as the container says, in square pixels, transparent parts over white.
- A video that breaks gives the frames before the break and then says why (`Frames.broken`); reasons are counted
  (`ringworld.vision.video_reader.REASONS`).
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ringworld.errors import UserError
from ringworld.vision.pixels import Refused, to_square
from ringworld.vision.video_reader import Break, Probe, Reader, Timed, VideoOptions, probe

_SAME = 1e-6  # seconds; times closer than this are one
_SLENDER = 8  # sides; a frame beyond this ratio is cut before it is resized


@dataclass(frozen=True, eq=False)
class Frame:
    """time: seconds since the first frame, as asked for. pixels: uint8 [h, w, 3]; shared by frames that are the same,
    so not to be written to."""

    time: float
    pixels: np.ndarray


def at_rate(content: bytes | str, rate: float, options: VideoOptions | None = None, side: int | None = None) -> Frames:
    """What is shown at 0, 1 / rate, 2 / rate, ... seconds, to the end of the last frame.

    side: pixels of a square, which each frame's middle is resized to; None: frames as large as they are.
    """
    if not 0 < rate < math.inf:
        raise UserError(f"rate={rate}: frames a second, more than 0, such as 1 or 4")
    return Frames(content, (number / rate for number in itertools.count()), options or VideoOptions(), side)


def spread(
    content: bytes | str,
    count: int,
    options: VideoOptions | None = None,
    side: int | None = None,
    found: Probe | None = None,
) -> Frames:
    """What is shown in the middle of each of `count` equal parts of the duration; decodes only what that needs.

    found: what `probe` has said of the content; None: it is asked here.
    """
    if count < 1:
        raise UserError(f"count={count}: frames, at least 1")
    options = options or VideoOptions()
    known = probe(content, options) if found is None else found
    if isinstance(known, Refused):
        return Frames(content, (), options, side, broken=known)
    seconds = min(known.seconds, options.max_seconds)
    times = ((number + 0.5) * seconds / count for number in range(count))
    return Frames(content, times, options, side, known.keys, known.broken)


class Frames(Iterator[Frame]):
    """An iterator over frames. `broken` holds, after the last, why there were not all of them; None for a whole video.

    times: ascending, in seconds. keys: where decoding can begin, for times that lie far apart.
    """

    def __init__(
        self,
        content: bytes | str,
        times: Iterable[float],
        options: VideoOptions,
        side: int | None = None,
        keys: tuple[float, ...] = (),
        broken: Refused | None = None,
    ) -> None:
        self.broken = self._known = broken
        self._content, self._times, self._options, self._side, self._keys = content, times, options, side, keys
        self._frames = self._run()

    def __next__(self) -> Frame:
        return next(self._frames)

    def close(self) -> None:
        """Ends the reading early; the file is closed."""
        self._frames.close()

    def _run(self) -> Generator[Frame, None, None]:
        times = iter(self._times)
        first = next(times, None)
        if first is None:
            return
        try:
            with Reader(self._content, self._options) as reader:
                yield from self._shown(reader, itertools.chain([first], times))
        except Break as wrong:
            self.broken = wrong.refused

    def _shown(self, reader: Reader, times: Iterable[float]) -> Iterator[Frame]:
        ahead = self._next(reader)
        shown, pixels = None, None
        for time in times:
            key = bisect.bisect(self._keys, time + _SAME) - 1
            if ahead is not None and key >= 0 and self._keys[key] > ahead.time + _SAME:
                ahead = self._leap(reader, self._keys[key], time)
            while ahead is not None and ahead.time <= time + _SAME:
                shown, pixels = ahead, None
                ahead = self._next(reader)
            if shown is None or (ahead is None and time >= shown.end - _SAME):
                return
            if pixels is None:
                pixels = _pixels(shown.frame, reader.pixel_width, self._side)
            yield Frame(time, pixels)

    def _leap(self, reader: Reader, key: float, time: float) -> Timed | None:
        """The first frame from where decoding can begin. An index that leads too far is not asked again."""
        reader.seek(key)
        found = self._next(reader)
        if found is not None and found.time <= time + _SAME:
            return found
        self._keys, self.broken = (), self._known
        reader.seek(None)
        return self._next(reader)

    def _next(self, reader: Reader) -> Timed | None:
        """None at the end, and at a break, before which `shown` stays shown."""
        try:
            return next(reader, None)
        except Break as wrong:
            self.broken = wrong.refused
            return None


def _pixels(frame: Any, pixel_width: float, side: int | None) -> np.ndarray:
    """uint8 [h, w, 3], or [side, side, 3]."""
    width, height = max(1, round(frame.width * pixel_width)), frame.height
    short = min(width, height)
    cut = side if max(width, height) <= _SLENDER * short else None
    if cut is not None:
        width, height = max(cut, round(width * cut / short)), max(cut, round(height * cut / short))
    transparent = any(component.is_alpha for component in frame.format.components)
    layout = "rgba" if transparent else "rgb24"
    pixels = frame.to_ndarray(format=layout, width=width, height=height, interpolation="BICUBIC")
    if cut is not None:
        left, top = (width - cut) // 2, (height - cut) // 2
        pixels = pixels[top : top + cut, left : left + cut]
    if transparent:
        alpha = pixels[..., 3:].astype(np.uint16)
        pixels = ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    if side is not None and cut is None:
        pixels = to_square(pixels, side)
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
