"""One pass over a file of video: its packets, or its decoded frames with the times at which they are shown.

- Whatever the bytes are, a pass ends: with the last frame, or with `Break`, which holds a reason that is counted.
- Times are seconds since the first frame. A timestamp that is missing or runs backwards becomes the one expected.
- FFmpeg reads from a file object and knows only the formats named here, so no playlist inside a file can make it open
  another file or an address.
- One decoded frame at a time; a threaded decoder holds one more for each thread.
"""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import av
from av.error import ArgumentError, FFmpegError

from ringworld.data.files import open_to_read
from ringworld.vision.containers import missing_bytes
from ringworld.vision.pixels import Refused

REASONS = (
    "empty", "unreadable", "no video", "no frames", "too many pixels", "too long", "truncated", "broken video",
)  # fmt: skip

_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif"
_BUFFER_BYTES = 1 << 16
_USUAL_RATE = 25.0
_STRETCHED = 4.0  # a pixel is no wider or narrower than this, whatever a file says


@dataclass(frozen=True)
class VideoOptions:
    """max_pixels: of a frame. max_seconds: later frames are not read. threads: of the decoder, each with a frame more
    in memory."""

    max_pixels: int = 1 << 25
    max_seconds: float = 4 * 3600.0
    threads: int = 1


@dataclass(frozen=True)
class Probe:
    """What the packets say; only the first frame is decoded.

    width, height: as shown. seconds: from the first frame to the end of the last. rate: frames a second on average.
    broken: why not all of what the file states is there. keys: times from which decoding can begin, ascending.
    """

    width: int
    height: int
    frames: int
    seconds: float
    rate: float
    codec: str
    broken: Refused | None = None
    keys: tuple[float, ...] = field(repr=False, default=())


class Break(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.refused = Refused(reason, detail[:300])


@dataclass(frozen=True, eq=False)
class Timed:
    """A decoded frame, still in the codec's own colours, shown from `time` to `end` seconds at the least."""

    time: float
    end: float
    frame: Any


def probe(content: bytes | str, options: VideoOptions | None = None) -> Probe | Refused:
    """content: the bytes of a file, or its path or URL. Reads all packets once."""
    try:
        with Reader(content, options or VideoOptions()) as reader:
            return reader.probe()
    except Break as wrong:
        return wrong.refused


class Reader(Iterator[Timed]):
    """One pass over a file: its decoded frames in order, or only its packets. Raises `Break` where it breaks."""

    def __init__(self, content: bytes | str, options: VideoOptions) -> None:
        self._options = options
        self._file: Any = io.BytesIO(content) if isinstance(content, bytes) else _opened(content)
        try:
            self._open()
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> None:
        if self._file.seek(0, 2) == 0:
            raise Break("empty", "0 bytes")
        self._missing = missing_bytes(self._file)
        try:
            # The limit goes to FFmpeg too: opening a file may already decode a frame.
            options = {"format_whitelist": _FORMATS, "max_pixels": str(self._options.max_pixels)}
            self._container: Any = av.open(
                self._file, options=options, buffer_size=_BUFFER_BYTES, metadata_errors="replace"
            )
        except (FFmpegError, ValueError) as wrong:
            ended = "no frames" if isinstance(wrong, EOFError) else "broken video"
            raise Break("truncated" if self._missing else ended, f"{type(wrong).__name__}: {wrong}") from wrong
        streams = [stream for stream in self._container.streams.video if stream.codec_context is not None]
        if not streams:
            self._container.close()
            raise Break("no video", f"{len(self._container.streams)} streams, none of them video of a known codec")
        self._stream: Any = streams[0]
        context = self._stream.codec_context
        self._bounded(context.width, context.height)
        context.options = {"max_pixels": str(self._options.max_pixels)}
        context.thread_count = self._options.threads
        context.thread_type = "AUTO" if self._options.threads > 1 else "SLICE"
        ratio = float(self._stream.sample_aspect_ratio or 1)
        self.pixel_width = ratio if 1 / _STRETCHED <= ratio <= _STRETCHED else 1.0
        rate = self._stream.average_rate or self._stream.guessed_rate
        self._gap = 1 / float(rate) if rate else 1 / _USUAL_RATE
        self._origin: float | None = None  # seconds of the first frame in the file's own time
        self._last, self._expected = -1.0, 0.0
        self._whole = True  # read from the beginning, so that packets can be counted
        self._packets = self._corrupt = 0
        self._decoded = self._decode()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._decoded.close()
        self._container.close()
        self._file.close()

    def __next__(self) -> Timed:
        return next(self._decoded)

    def seek(self, key: float | None) -> None:
        """To the time of a key frame, or to the beginning of the file."""
        self._decoded.close()
        self._whole = False
        start = self._stream.start_time or 0
        place = start if key is None else round((key + (self._origin or 0.0)) / self._stream.time_base)
        try:
            self._container.seek(place, stream=self._stream, backward=True, any_frame=False)
        except FFmpegError as wrong:
            raise self._damage(wrong) from wrong
        self._last, self._expected = -1.0, key or 0.0
        self._decoded = self._decode()

    def probe(self) -> Probe | Refused:
        first: Timed | None = None
        begins, ends, frames = float("inf"), 0.0, 0
        keys: list[float] = []
        broken: Refused | None = None
        try:
            for packet in self._read():
                if first is None:
                    first = next((timed for frame in packet.decode() if (timed := self._timed(frame))), None)
                stamp = packet.dts if packet.pts is None else packet.pts
                if stamp is None or packet.is_discard:
                    continue
                time = float(stamp * packet.time_base)
                frames += 1
                begins, ends = min(begins, time), max(ends, time + float((packet.duration or 0) * packet.time_base))
                if packet.is_keyframe and packet.pts is not None:
                    keys.append(time)
        except Break as wrong:
            broken = wrong.refused
        except FFmpegError as wrong:
            broken = self._damage(wrong).refused
        if first is None or self._origin is None:
            return broken or Refused("no frames", f"{frames} packets, and no frame in them")
        seconds = max(first.end, ends - self._origin)
        width, height = shown_size(first.frame, self.pixel_width)
        since = tuple(sorted(key - self._origin for key in keys))
        return Probe(width, height, frames, seconds, frames / seconds, self._stream.codec_context.name, broken, since)

    def _read(self) -> Iterator[Any]:
        """The packets of the video, and an empty one at the end, which makes the decoder give what it holds."""
        newest = None
        for packet in self._container.demux(self._stream):
            if packet.is_corrupt:
                raise Break("truncated", f"the packet after {max(self._last, 0):.3f} s is cut short")
            if self._missing:
                # The last one may be short, and only what follows shows which that is.
                packet, newest = newest, packet
                if packet is None:
                    continue
            self._packets += packet.size > 0
            if newest is None or newest.size or newest.dts is not None:
                yield packet
        if self._missing:
            raise Break("truncated", f"the file lacks {self._missing} bytes at its end")
        stated = self._stream.frames if self._container.format.name.startswith("mov,") else 0
        if self._whole and self._packets < stated:
            raise Break("truncated", f"{self._packets} of {stated} frames are in the file")

    def _decode(self) -> Generator[Timed, None, None]:
        broken: Break | None = None
        given = False
        try:
            for packet in self._read():
                for frame in packet.decode():
                    if (timed := self._timed(frame)) is not None:
                        given = True
                        yield timed
        except Break as wrong:
            broken = wrong
        except FFmpegError as wrong:
            broken = self._damage(wrong)
        if broken is not None:
            for frame in self._rest():
                if (timed := self._timed(frame)) is not None:
                    given = True
                    yield timed
            raise broken
        if not given and self._whole:
            raise Break("no frames", f"{self._packets} packets, and no frame in them")
        if self._corrupt:
            raise Break("broken video", f"{self._corrupt} frames cannot be decoded")

    def _damage(self, wrong: FFmpegError) -> Break:
        # FFmpeg calls a frame beyond its limit an invalid argument, and leaves the size at 0.
        if isinstance(wrong, ArgumentError) and not self._stream.codec_context.width:
            return Break("too many pixels", f"frames of more than max_pixels={self._options.max_pixels}")
        return Break("broken video", f"after {max(self._last, 0):.3f} s: {type(wrong).__name__}: {wrong}")

    def _rest(self) -> list[Any]:
        """What the decoder still holds when the packets break."""
        try:
            return self._stream.codec_context.decode(None)
        except FFmpegError:
            return []

    def _bounded(self, width: int, height: int) -> None:
        if width * height > self._options.max_pixels:
            raise Break("too many pixels", f"frames of {width} x {height}, max_pixels={self._options.max_pixels}")

    def _timed(self, frame: Any) -> Timed | None:
        """None for a frame that the decoder made up for one that it could not decode."""
        if frame.is_corrupt:
            self._corrupt += 1
            return None
        self._bounded(frame.width, frame.height)  # a video may change its size on the way
        stated = None if frame.pts is None else float(frame.pts * self._stream.time_base)
        if self._origin is None:
            self._origin = stated or 0.0
        time = self._expected if stated is None else stated - self._origin
        if time <= self._last:
            time = self._expected
        if time > self._options.max_seconds:
            raise Break("too long", f"a frame at {time:.0f} s, max_seconds={self._options.max_seconds:.0f}")
        length = float(frame.duration * self._stream.time_base) if frame.duration else self._gap
        self._last, self._expected = time, time + self._gap
        return Timed(time, time + length, frame)


def _opened(place: str) -> Any:
    try:
        return open_to_read(place)
    except OSError as wrong:
        raise Break("unreadable", f"{type(wrong).__name__}: {wrong}") from wrong


def shown_size(frame: Any, pixel_width: float) -> tuple[int, int]:
    """(width, height) in square pixels, turned."""
    width = max(1, round(frame.width * pixel_width))
    return (frame.height, width) if frame.rotation % 180 else (width, frame.height)
