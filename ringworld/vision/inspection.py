"""What a clip's content is: sizes, length, a digest, looks and a small picture; or why it cannot be used.

An image is decoded (a large JPEG at a fraction of its size); of a video all packets are read and a few frames decoded,
spread evenly, so an hour costs about as much as a minute. The kind is that of the content: a GIF of one picture is an
image, whatever it is called.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from ringworld.data.files import open_to_read
from ringworld.vision.clips import Content, Kind, SourceOptions, kind_by_bytes
from ringworld.vision.looks import look, stillness
from ringworld.vision.media import load
from ringworld.vision.pixels import Refused, read_image, to_square
from ringworld.vision.video import spread
from ringworld.vision.video_reader import Probe, VideoOptions, probe

FRAMES = 8  # looked at of each video
SIDE = 128  # of the small picture

_HEAD_BYTES = 12
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class InspectOptions:
    """max_image_pixels: of an image. video: limits of videos. same: levels of 255 that frames of a static clip differ
    by at most."""

    max_image_pixels: int = 1 << 26
    video: VideoOptions = field(default_factory=VideoOptions)
    same: float = 1.0


@dataclass(frozen=True, eq=False)
class Seen:
    """width, height: as shown. frames: 1 for an image; of a video as the container has them. seconds, rate, still: of
    a video, else None; `still` is the share of frames looked at that are as the one before.

    sha256: of the content. looks: of an image one, of a video `FRAMES`. picture: uint8 [128, 128, 3].
    """

    kind: Kind
    width: int
    height: int
    frames: int
    seconds: float | None
    rate: float | None
    sha256: str
    bytes: int
    looks: tuple[int, ...]
    still: float | None
    picture: np.ndarray


def inspect(content: Content, source: SourceOptions, options: InspectOptions) -> Seen | Refused:
    """Raises nothing for any content."""
    try:
        head, size, digest = _digest(content)
    except FileNotFoundError:
        return Refused("no such file", str(content))
    except OSError as wrong:
        return Refused("unreadable", f"{type(wrong).__name__}: {wrong}"[:300])
    if kind_by_bytes(head) == "video":
        found = probe(content, options.video)
        single_gif = head[:4] == b"GIF8" and (isinstance(found, Refused) or found.frames == 1)
        if not single_gif:
            return found if isinstance(found, Refused) else _video(content, found, size, digest, options)
    data = load(content, source.max_bytes)
    return data if isinstance(data, Refused) else _image(data, size, digest, options)


def _image(data: bytes, size: int, digest: str, options: InspectOptions) -> Seen | Refused:
    found = read_image(data, options.max_image_pixels, at_least=SIDE)
    if isinstance(found, Refused):
        return found
    small = to_square(found.pixels, SIDE)
    looks = (look(found.pixels),)
    return Seen("image", found.width, found.height, 1, None, None, digest, size, looks, None, small)


def _video(content: Content, found: Probe, size: int, digest: str, options: InspectOptions) -> Seen | Refused:
    if found.broken is not None:
        return found.broken
    if found.seconds > options.video.max_seconds:
        return Refused("too long", f"{found.seconds:.0f} s, max_seconds={options.video.max_seconds:.0f}")
    frames = spread(content, FRAMES, options.video, SIDE, found)
    seen = [frame.pixels for frame in frames]
    if frames.broken is not None:
        return frames.broken
    if not seen:
        return Refused("no frames", "none of those looked at can be decoded")
    # A damaged index may hide the last of them; looks are compared place by place.
    looks = [look(pixels) for pixels in seen]
    looks += looks[-1:] * (FRAMES - len(looks))
    still = stillness(seen, options.same)
    middle = seen[len(seen) // 2]
    return Seen(
        "video", found.width, found.height, found.frames, found.seconds, found.rate, digest, size, tuple(looks), still,
        middle,
    )  # fmt: skip


def _digest(content: Content) -> tuple[bytes, int, str]:
    """(first bytes, size, sha256)."""
    if isinstance(content, bytes):
        return content[:_HEAD_BYTES], len(content), hashlib.sha256(content).hexdigest()
    made, size, head = hashlib.sha256(), 0, b""
    with open_to_read(content) as file:
        while data := file.read(_CHUNK_BYTES):
            head = head or data[:_HEAD_BYTES]
            size += len(data)
            made.update(data)
    return head, size, made.hexdigest()
