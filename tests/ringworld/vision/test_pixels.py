"""Images of every kind as a person would see them; bombs, broken files and odd samples refused by reason."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from ringworld.vision.pixels import REASONS, Picture, Refused, read_image, to_square

SCENE = np.zeros((24, 36, 3), np.uint8)
SCENE[:12, :18] = (220, 40, 40)
SCENE[12:, 18:] = (40, 40, 220)


def encoded(pixels: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **options)
    return file.getvalue()


def pixels_of(data: bytes, **options: Any) -> np.ndarray:
    found = read_image(data, **options)
    assert isinstance(found, Picture), found
    assert found.pixels.dtype == np.uint8
    assert found.pixels.flags.c_contiguous
    return found.pixels


def png(width: int, height: int, depth: int = 8, colour: int = 2, rows: bytes = b"", **more: bytes) -> bytes:
    """A PNG by its own chunks: what it states need not be what it holds."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    extra = b"".join(chunk(name.encode(), data) for name, data in more.items())
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG"])
def test_the_same_picture_comes_out_of_every_kind_of_file(kind: str) -> None:
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    found = read_image(encoded(SCENE, kind, **options))
    assert isinstance(found, Picture)
    assert (found.width, found.height, found.format) == (36, 24, kind)
    np.testing.assert_allclose(found.pixels.astype(int), SCENE, atol=6 if kind == "JPEG" else 0)


def turned(orientation: int) -> np.ndarray:
    """SCENE as EXIF's orientation says that its stored rows and columns are to be shown (TIFF 6.0, tag 274)."""
    flip, turns = {1: (0, 0), 2: (1, 0), 3: (0, 2), 4: (1, 2), 5: (1, 1), 6: (0, 3), 7: (1, 3), 8: (0, 1)}[orientation]
    return np.rot90(SCENE[:, ::-1] if flip else SCENE, turns)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_pictures_are_turned_as_their_orientation_says(kind: str) -> None:
    for orientation in range(1, 9):
        if kind == "TIFF":
            tags = TiffImagePlugin.ImageFileDirectory_v2()
            tags[274] = orientation
            options: dict[str, Any] = {"tiffinfo": tags}
        else:
            exif = Image.Exif()
            exif[274] = orientation
            options = {"exif": exif, **({"lossless": True} if kind == "WEBP" else {"quality": 100})}
        found = read_image(encoded(SCENE, kind, **options))
        assert isinstance(found, Picture)
        expected = turned(orientation)
        assert (found.height, found.width) == expected.shape[:2]
        middles = np.s_[6::12, 9::18] if expected.shape[0] == 24 else np.s_[9::18, 6::12]
        np.testing.assert_allclose(found.pixels[middles].astype(int), expected[middles], atol=12, err_msg=kind)


def test_transparent_parts_are_seen_over_white() -> None:
    clear = np.dstack([SCENE, np.full((24, 36), 255, np.uint8)])
    clear[:12, :, 3] = 0
    clear[12:, :18] = (0, 0, 0, 128)
    for kind in ("PNG", "WEBP"):
        seen = pixels_of(encoded(clear, kind, **({"lossless": True} if kind == "WEBP" else {})))
        assert (seen[:12] == 255).all()
        assert np.abs(seen[12:, :18].astype(int) - 127).max() <= 1
        np.testing.assert_array_equal(seen[12:, 18:], SCENE[12:, 18:])
    palette = Image.fromarray(SCENE).quantize(4)
    index = palette.getpixel((0, 0))
    seen = pixels_of(encoded(palette, "PNG", transparency=index))
    assert (seen[:12, :18] == 255).all()
    np.testing.assert_array_equal(seen[12:, 18:], SCENE[12:, 18:])
    # A colour named as transparent in an RGB file, and a grey one with alpha.
    rows = b"".join(b"\0" + bytes([10, 20, 30]) * 2 + bytes([1, 2, 3]) for _ in range(2))
    assert (
        pixels_of(png(3, 2, rows=rows, tRNS=bytes([0, 10, 0, 20, 0, 30]))).tolist()
        == [[[255] * 3] * 2 + [[1, 2, 3]]] * 2
    )
    grey = Image.fromarray(np.array([[[0, 0], [90, 255]]], np.uint8), "LA")
    assert pixels_of(encoded(grey, "PNG")).tolist() == [[[255] * 3, [90] * 3]]


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64).astype(">u2")
    for colour, samples in ((0, 1), (2, 3), (4, 2), (6, 4)):  # grey, RGB, and both with alpha
        row = np.repeat(ramp[:, None], samples, axis=1)
        if samples in (2, 4):
            row[:, -1] = 65535
        seen = pixels_of(png(64, 1, depth=16, colour=colour, rows=b"\0" + row.tobytes()))[0]
        np.testing.assert_allclose(seen.astype(int), np.repeat(ramp[:, None].astype(int) / 257, 3, axis=1), atol=1.01)
        assert seen[-1].tolist() == [255] * 3


def test_cmyk_palettes_and_grey_become_rgb() -> None:
    image = Image.fromarray(SCENE)
    np.testing.assert_allclose(
        pixels_of(encoded(image.convert("CMYK"), "JPEG", quality=100)).astype(int), SCENE, atol=12
    )
    np.testing.assert_array_equal(pixels_of(encoded(image.quantize(8), "PNG")), SCENE)
    grey = np.asarray(image.convert("L"))
    np.testing.assert_array_equal(pixels_of(encoded(grey, "PNG")), np.repeat(grey[..., None], 3, axis=2))
    bits = pixels_of(encoded(image.convert("1", dither=Image.Dither.NONE), "PNG"))
    assert set(np.unique(bits)) <= {0, 255}


def test_the_first_picture_of_a_moving_gif_and_one_pixel() -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (30, 200)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=100)
    assert (pixels_of(file.getvalue()) == 30).all()
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"):
        one = pixels_of(encoded(np.full((1, 1, 3), 128, np.uint8), kind))
        assert one.shape == (1, 1, 3)
        assert to_square(one, 16).shape == (16, 16, 3)


def test_bombs_are_refused_before_they_are_decoded() -> None:
    """30,000 x 30,000 is 2.7 GB of pixels; Pillow's own bound would let half as many through."""
    side = 30_000
    large = struct.pack(">HH", side, side)
    gif = struct.pack("<HHBBB", side, side, 0, 0, 0) + b"\x2c" + struct.pack("<HHHHB", 0, 0, side, side, 0)
    webp = struct.pack("<IB3x", 10, 0) + (side - 1).to_bytes(3, "little") * 2 + b"VP8 "
    bombs = {
        "PNG": png(side, side, rows=b"\0" * 1000),
        "BMP": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0),
        "GIF": b"GIF89a" + gif + b"\x02\x02\x4c\x01\0;",
        "JPEG": encoded(SCENE, "JPEG").replace(struct.pack(">HH", 24, 36), large, 1),
        "WEBP": b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + webp,
    }
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[256] = tags[257] = side
    tags[258], tags[259], tags[262], tags[277], tags[273], tags[279] = 8, 1, 1, 1, 8, 10
    bombs["TIFF"] = tags.tobytes(8).join([b"II*\0\x08\0\0\0", b""])
    for kind, data in bombs.items():
        tracemalloc.start()
        found = read_image(data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert isinstance(found, Refused), kind
        assert found.reason == "too many pixels", (kind, found)
        assert "30000 x 30000, max_pixels=67108864" in found.detail
        assert peak < 1 << 20, kind
    # The bound is the option's and no other: 100 pixels are one too many for 99.
    hundred = encoded(np.zeros((10, 10, 3), np.uint8), "PNG")
    assert isinstance(read_image(hundred, max_pixels=100), Picture)
    assert read_image(hundred, max_pixels=99) == Refused("too many pixels", "10 x 10, max_pixels=99")


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about tags that are cut
def test_truncated_and_damaged_files_are_refused_and_never_raise() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    random = np.random.default_rng(1)
    reasons = set()
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"):
        data = encoded(noise, kind)
        found = read_image(data[: len(data) // 2])
        assert isinstance(found, Refused), kind
        assert found.reason == "broken image", (kind, found)
        for _ in range(60):
            damaged = bytearray(data)
            damaged[random.integers(0, min(len(data), 400))] = random.integers(0, 256)
            found = read_image(bytes(damaged), max_pixels=1 << 20)
            reasons |= {found.reason} if isinstance(found, Refused) else set()
    assert reasons <= set(REASONS)
    assert read_image(b"").reason == "empty"  # type: ignore[union-attr]
    assert read_image(b"<svg xmlns='http://www.w3.org/2000/svg'/>").reason == "no image"  # type: ignore[union-attr]
    floats = Image.fromarray(np.zeros((4, 4), np.float32))
    assert read_image(encoded(floats, "TIFF")).reason == "unknown range"  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_broken_exif_costs_no_picture() -> None:
    data = encoded(SCENE, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(pixels_of(data), SCENE)


def test_a_large_jpeg_is_read_smaller_and_its_size_is_still_its_own() -> None:
    large = np.asarray(Image.fromarray(SCENE).resize((900, 600), Image.Resampling.NEAREST))
    exif = Image.Exif()
    exif[274] = 6
    data = encoded(large, "JPEG", exif=exif)
    found = read_image(data, at_least=150)
    assert isinstance(found, Picture)
    assert (found.width, found.height) == (600, 900)
    assert found.pixels.shape == (225, 150, 3)
    whole = to_square(pixels_of(data), 64)
    assert np.abs(to_square(found.pixels, 64).astype(int) - whole).mean() < 2
    assert pixels_of(data, at_least=601).shape == (900, 600, 3)


def test_squares_are_cut_from_the_middle_and_do_not_alias() -> None:
    wide = np.zeros((60, 180, 3), np.uint8)
    wide[:, :60], wide[:, 60:120] = 255, (10, 200, 30)
    square = to_square(wide, 30)
    # At the edges the filter reaches beyond the cut, as it does when all is resized first.
    np.testing.assert_allclose(square[:, 2:-2].astype(int), np.broadcast_to([10, 200, 30], (30, 26, 3)), atol=1)
    fine = np.tile(np.array([[0, 255], [255, 0]], np.uint8), (64, 64))
    np.testing.assert_allclose(to_square(np.repeat(fine[..., None], 3, axis=2), 32).astype(int), 127.5, atol=2)
    assert to_square(np.zeros((1, 30_000, 3), np.uint8), 8).shape == (8, 8, 3)
