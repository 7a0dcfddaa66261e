"""One image from its bytes to pixels: uint8 [height, width, 3], RGB, as a person would see it.

- The kind of file is told by its first bytes, never by its name: PNG, JPEG, WebP, GIF (its first picture), BMP, TIFF.
- The size is read from the header and checked before anything is decoded, so a file of a kilobyte that unpacks to
  gigabytes costs a kilobyte. The bound is ours: Pillow's own is one for the whole process, and half of it only warns.
- What is seen is what counts: turned as EXIF says, transparent parts over white, 16 bits to 8 by scaling, CMYK,
  palettes and grey as RGB. Colour profiles inside a file are not applied.
- A file that is no picture, or a broken one, is `Refused` with a reason that can be counted (`REASONS`).
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

REASONS = ("empty", "no image", "too many pixels", "broken image", "unknown range")

# fmt: off
_MAGIC: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"GIF87a", GifImagePlugin.GifImageFile),
    (b"GIF89a", GifImagePlugin.GifImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"II*\0", TiffImagePlugin.TiffImageFile),
    (b"MM\0*", TiffImagePlugin.TiffImageFile),
    (b"II+\0", TiffImagePlugin.TiffImageFile),
)
# What Pillow's decoders raise for bytes that are not what they promised.
_BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, KeyError, TypeError,
    AttributeError, NotImplementedError, OverflowError,
)
# fmt: on
_ORIENTATION = 0x0112  # in EXIF and in TIFF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Refused:
    """Why something is no usable picture or clip: a reason that is counted, and what exactly was found."""

    reason: str
    detail: str = ""


@dataclass(frozen=True, eq=False)
class Picture:
    """pixels: uint8 [h, w, 3]. width, height: of the whole file as it is shown; `pixels` may have been read smaller.

    format: PNG, JPEG, WEBP, GIF, BMP or TIFF.
    """

    pixels: np.ndarray
    width: int
    height: int
    format: str


def read_image(data: bytes, max_pixels: int = 1 << 26, at_least: int | None = None) -> Picture | Refused:
    """The picture that a file's bytes hold; one of more than `max_pixels` is refused before it is decoded.

    at_least: pixels that the shortest side needs. A JPEG is then decoded at a half, a quarter or an eighth of its size
    where that leaves as many, which is several times as fast; other kinds are decoded whole.
    """
    if not data:
        return Refused("empty", "0 bytes")
    kind = _kind(data)
    if kind is None:
        return Refused("no image", f"begins with {data[:8]!r}; known: PNG, JPEG, WebP, GIF, BMP, TIFF")
    try:
        # WebP's decoder allocates when it is made; the others only read the header.
        size = _webp_size(data) if kind is WebPImagePlugin.WebPImageFile else None
        if size is not None and (refused := _bounded(size, max_pixels)):
            return refused
        with kind(io.BytesIO(data)) as image:
            size, short = image.size, min(image.size)
            if refused := _bounded(size, max_pixels):
                return refused
            if at_least is not None and short > at_least:
                image.draft(None, (-(-size[0] * at_least // short), -(-size[1] * at_least // short)))
            image.load()
            turn = _TURNS.get(_orientation(image))
            if image.mode in ("I", "F"):
                return Refused("unknown range", f"samples of mode {image.mode} do not say what is black and white")
            seen = _over_white(image)
    except Image.DecompressionBombError as wrong:
        return Refused("too many pixels", str(wrong)[:300])
    except _BROKEN as wrong:
        return Refused("broken image", f"{type(wrong).__name__}: {wrong}"[:300])
    if turn is not None:
        seen = seen.transpose(turn)
        if turn >= Image.Transpose.TRANSPOSE or turn in (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270):
            size = size[::-1]
    return Picture(np.array(seen), size[0], size[1], str(image.format))


def to_square(pixels: np.ndarray, side: int) -> np.ndarray:
    """uint8 [h, w, 3] to uint8 [side, side, 3]: the square in the middle, resized by an antialiased bicubic filter.

    Filters and cuts in one step, so that a picture of 1 x 30,000 never becomes one of side x 30,000 sides.
    """
    height, width = pixels.shape[:2]
    edge = min(height, width)
    left, top = (width - edge) / 2, (height - edge) / 2
    box = (left, top, left + edge, top + edge)
    return np.array(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC, box))


def _kind(data: bytes) -> type[ImageFile.ImageFile] | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    return next((kind for magic, kind in _MAGIC if data.startswith(magic)), None)


def _bounded(size: tuple[int, int], max_pixels: int) -> Refused | None:
    width, height = size
    if width < 1 or height < 1:
        return Refused("broken image", f"{width} x {height}")
    return (
        Refused("too many pixels", f"{width} x {height}, max_pixels={max_pixels}")
        if width * height > max_pixels
        else None
    )


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """By the first chunk (RFC 9649); None where it is none that states a size."""
    chunk = data[12:16]
    if len(data) < 30:
        return None
    if chunk == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return None


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except _BROKEN:  # a picture is no worse for what its EXIF lacks
        return 1


def _over_white(image: Image.Image) -> Image.Image:
    """Of mode RGB. ValueError for a mode that has no way to RGB."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
