"""Pictures become files that others can read, whole or not at all."""

import numpy as np
import pytest
from PIL import Image

from ringworld.errors import UserError
from ringworld.generate import saving
from ringworld.generate.saving import kind_of, save_image, save_video
from ringworld.vision.video import at_rate
from ringworld.vision.video_reader import Probe, probe


def frame(level: int, height: int = 32, width: int = 48) -> np.ndarray:
    pixels = np.full((height, width, 3), level, np.uint8)
    pixels[: height // 2, :, 0] = 200
    return pixels


def test_an_image_comes_back_pixel_by_pixel_in_place_of_what_was_there(tmp_path):
    path, pixels = tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    path.write_text("another file")
    with path.open() as opened:
        save_image(str(path), pixels)
        assert opened.read() == "another file"  # it was put aside, not written over
    np.testing.assert_array_equal(np.asarray(Image.open(path)), pixels)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(("encoders", "codec"), [(saving._ENCODERS, "h264"), (("no-such", "mpeg4"), "mpeg4")])
def test_a_video_has_the_frames_the_rate_and_the_colours_that_were_given(tmp_path, monkeypatch, encoders, codec):
    monkeypatch.setattr(saving, "_ENCODERS", encoders)
    path, given = str(tmp_path / "a.mp4"), [frame(level) for level in (20, 80, 140, 220, 90)]
    assert save_video(path, given, 2.5) == ("libx264" if codec == "h264" else "mpeg4")
    known = probe(path)
    assert isinstance(known, Probe)
    assert (known.codec, known.frames, known.width, known.height) == (codec, 5, 48, 32)
    assert known.seconds == pytest.approx(2.0)
    found = [shown.pixels for shown in at_rate(path, 2.5)]
    assert len(found) == 5
    assert np.abs(np.array(found).astype(int) - np.array(given)).mean() < 6


def test_an_odd_side_gets_one_more_row_of_the_same(tmp_path):
    path = str(tmp_path / "a.mp4")
    save_video(path, [frame(90, 31, 47)] * 2, 4)
    known = probe(path)
    assert isinstance(known, Probe)
    assert (known.width, known.height) == (48, 32)


def test_a_video_that_breaks_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")

    def frames():
        yield frame(1)
        raise RuntimeError("the decoder broke")

    with pytest.raises(RuntimeError, match="the decoder broke"):
        save_video(str(path), frames(), 4)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_where_nothing_can_be_written_is_told_before_anything_is_drawn(tmp_path):
    assert kind_of(str(tmp_path / "a.PNG"), 1) == "image"
    assert kind_of(str(tmp_path / "a.mp4"), 1) == "video"
    (tmp_path / "b.png").mkdir()
    for name, frames, words in (
        ("a.jpeg", 1, "not as '.jpeg'"),
        ("a", 1, "no suffix"),
        ("a.png", 2, "2 frames are a video"),
        ("none/a.png", 1, "there is no folder"),
        ("b.png", 1, "is a folder"),
    ):
        with pytest.raises(UserError, match=words):
            kind_of(str(tmp_path / name), frames)
