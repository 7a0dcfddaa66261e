"""Pictures of clips, held in memory: images and a few frames of each video, for a VQGAN to learn from and to be
measured on.

Which clips is decided by hashes of their contents and a seed, so a larger sample holds the smaller one. Pictures to
learn from keep their shape; those to be measured on are the square in the middle, as an encoder sees them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from ringworld.errors import UserError
from ringworld.vision.clip_table import clips_of
from ringworld.vision.clips import Clip, Content, SourceOptions
from ringworld.vision.media import contents, load
from ringworld.vision.pixels import Refused, read_image, to_square
from ringworld.vision.video import spread
from ringworld.vision.video_reader import VideoOptions


@dataclass(frozen=True)
class GalleryOptions:
    """clips: to learn from, at most, and held_out: to be measured on. frames: of each video, spread over it.

    side: pixels of the shorter side that a larger picture is made smaller to, before crops are cut of it: a crop shows
    the whole of the shorter side at most, and the resolution's share of this at least. max_pixels: of an image, or of a
    frame; larger ones are left out.
    """

    clips: int = 2048
    held_out: int = 64
    frames: int = 4
    side: int = 256
    max_pixels: int = 1 << 26

    def __post_init__(self) -> None:
        for name in ("clips", "held_out", "frames", "side", "max_pixels"):
            if getattr(self, name) < 1:
                raise UserError(f"pictures.{name}={getattr(self, name)}: must be 1 or more")


@dataclass(frozen=True, eq=False)
class Gallery:
    """train: uint8 [h, w, 3] each, of many sizes. held_out: uint8 [n, resolution, resolution, 3]. refused: why clips
    that were chosen are in neither, a line each."""

    train: list[np.ndarray]
    held_out: np.ndarray
    refused: tuple[str, ...]


def open_gallery(clips: pa.Table, options: GalleryOptions, resolution: int, seed: int) -> Gallery:
    """clips: a table with the columns of `CLIP_SCHEMA`, `sha256` and `split` (train | held_out).

    UserError where no picture is left to learn from, or to be measured on.
    """
    refused: list[str] = []
    train = [_smaller(pixels, options.side) for pixels in _pictures(clips, "train", options, seed, refused)]
    held = [to_square(pixels, resolution) for pixels in _pictures(clips, "held_out", options, seed, refused)]
    for name, found in (("train", train), ("held_out", held)):
        if not found:
            why = f"; {len(refused)} were refused: {refused[0]}" if refused else ""
            raise UserError(f"no picture of the split {name} among {clips.num_rows} clips{why}; give more clips")
    return Gallery(train, np.stack(held), tuple(refused))


def _pictures(
    clips: pa.Table, split: str, options: GalleryOptions, seed: int, refused: list[str]
) -> Iterator[np.ndarray]:
    of_split = clips.filter(pc.field("split") == split)
    chosen = _chosen(of_split, options.clips if split == "train" else options.held_out, seed)
    for clip, content in contents(chosen):
        found = list(_of_clip(clip, content, options))
        refused += [f"{clip.name}: {one.reason} {one.detail}".rstrip() for one in found if isinstance(one, Refused)]
        yield from (one for one in found if not isinstance(one, Refused))


def _chosen(clips: pa.Table, count: int, seed: int) -> Sequence[Clip]:
    """`count` clips of different contents, those of the smallest hashes."""
    digests = clips["sha256"].to_pylist()
    place = {digest: row for row, digest in reversed(list(enumerate(digests)))}
    drawn = sorted(place, key=lambda digest: hashlib.sha256(f"{seed}:{digest}".encode()).digest())[:count]
    return clips_of(clips.take(pa.array([place[digest] for digest in drawn], pa.int64())))


def _of_clip(clip: Clip, content: Content, options: GalleryOptions) -> Iterable[np.ndarray | Refused]:
    if clip.kind == "video":
        frames = spread(content, options.frames, VideoOptions(max_pixels=options.max_pixels))
        yield from (frame.pixels for frame in frames)
        if frames.broken is not None:
            yield frames.broken
        return
    data = load(content, SourceOptions().max_bytes)
    found = data if isinstance(data, Refused) else read_image(data, options.max_pixels, options.side)
    yield found if isinstance(found, Refused) else found.pixels


def _smaller(pixels: np.ndarray, side: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    if shorter <= side:
        return pixels
    size = (max(1, round(width * side / shorter)), max(1, round(height * side / shorter)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0))
