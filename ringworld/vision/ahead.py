"""Frames in chunks, decoded by a thread of its own while the chunk before is being worked on.

- At most `depth` finished chunks lie ready and one is being filled, so memory is that of depth + 2 chunks, whatever the
  length of the video.
- Who waits for whom is measured: a decoder that is busy all the time is what the work waits for; one that mostly waits
  for room is not. FFmpeg and NumPy let other threads run while they compute, so both proceed at once.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ringworld.errors import UserError
from ringworld.vision.video import Frame, Frames

_LOOK_SECONDS = 0.05  # between looks at whether the reader has gone


@dataclass(frozen=True)
class Usage:
    """Seconds of the clock. decoding: the decoder computed; no_room: it waited for the reader; no_frames: the reader
    waited for it."""

    decoding: float
    no_room: float
    no_frames: float

    @property
    def utilisation(self) -> float:
        """The share of its time in which the decoder was busy, 0 to 1; 1 before it has done anything."""
        total = self.decoding + self.no_room
        return self.decoding / total if total else 1.0


@dataclass(frozen=True, eq=False)
class Chunk:
    """times: float64 [n], seconds. pixels: uint8 [n, h, w, 3]; every chunk but the last has the same n."""

    times: np.ndarray
    pixels: np.ndarray


class Ahead(Iterator[Chunk]):
    """An iterator over chunks of `frames`, all of one size. Use it in a `with`: leaving it early ends the thread.

    `usage` is up to date after every chunk. What decoding raises is raised here. UserError for a chunk or a depth below
    1.
    """

    def __init__(self, frames: Frames, chunk: int, depth: int = 2) -> None:
        for name, value in (("chunk", chunk), ("depth", depth)):
            if value < 1:
                raise UserError(f"{name}={value}: at least 1")
        self._frames, self._chunk = frames, chunk
        self._ready: queue.Queue[Chunk | BaseException | None] = queue.Queue(depth)
        self._left = threading.Event()
        self._decoding = self._no_room = self._no_frames = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def usage(self) -> Usage:
        return Usage(self._decoding, self._no_room, self._no_frames)

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()

    def __next__(self) -> Chunk:
        began = time.perf_counter()
        found = self._ready.get()
        self._no_frames += time.perf_counter() - began
        if isinstance(found, Chunk):
            return found
        self._ready.put(found)  # asked again, the answer is the same
        if found is None:
            raise StopIteration
        raise found

    def _run(self) -> None:
        try:
            while not self._left.is_set():
                began = time.perf_counter()
                chunk = self._fill()
                self._decoding += time.perf_counter() - began
                if not self._put(chunk) or chunk is None:
                    return
        except BaseException as wrong:  # raised where the chunks are read
            self._put(wrong)
        finally:
            self._frames.close()

    def _fill(self) -> Chunk | None:
        held: list[Frame] = []
        for frame in self._frames:
            held.append(frame)
            if len(held) == self._chunk:
                break
        if not held:
            return None
        return Chunk(np.array([frame.time for frame in held]), np.stack([frame.pixels for frame in held]))

    def _put(self, item: Chunk | BaseException | None) -> bool:
        """False when the reader has gone."""
        began = time.perf_counter()
        try:
            while not self._left.is_set():
                try:
                    self._ready.put(item, timeout=_LOOK_SECONDS)
                    return True
                except queue.Full:
                    continue
            return False
        finally:
            self._no_room += time.perf_counter() - began
