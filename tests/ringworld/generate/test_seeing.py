"""Files become the codes of the frames that time shows, in bounded memory; what is broken is refused by name."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ringworld.errors import UserError
from ringworld.generate.seeing import see_image, see_video
from ringworld.generate.sight import Sight
from ringworld.vision.pixels import to_square
from ringworld.vision.stream import VisionIds
from tests.ringworld.vision.films import film, noise


class Greys:
    """In a codec's place: the one code of a picture is its grey, in steps of `films.grey`: the number of the frame."""

    batch = 8

    def __init__(self) -> None:
        self.given: list[int] = []

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        assert pixels.shape[1:] == (16, 16, 3)
        self.given.append(len(pixels))
        return np.round((pixels.astype(float).mean((1, 2, 3)) - 10) / 8).astype(np.int32)[:, None, None]


@pytest.fixture
def sight() -> Sight:
    return Sight(Greys(), VisionIds(272, 32), 16, 1)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    """25 frames in 5 seconds."""
    return str(film(tmp_path_factory.mktemp("clips") / "clip.mp4", 25, rate=5))


def test_an_image_is_cut_to_its_middle_and_encoded(tmp_path, codec):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    other = pixels.copy()
    other[:, :3] = other[:, -3:] = 0  # what is cut off, and too far from the middle to be blended into it
    found = []
    for name, shown in (("a.png", pixels), ("b.png", other)):
        Image.fromarray(shown).save(tmp_path / name)
        found.append(see_image(str(tmp_path / name), Sight(codec, VisionIds(272, 16), 16, 4)))
    np.testing.assert_array_equal(found[0], codec.encode(to_square(pixels, 16)[None]))
    np.testing.assert_array_equal(found[0], found[1])


def test_a_video_is_looked_at_by_rate_by_count_or_as_far_as_there_is_room(clip, sight):
    def numbers(room, *how, **more) -> list[int]:
        return see_video(clip, sight, room, *how, **more).reshape(-1).tolist()

    told = []
    # A frame every 0.4 seconds.
    assert numbers(100, usual=2.5, on_progress=lambda *news: told.append(news)) == list(range(0, 25, 2))
    assert told == [(8, 13), (13, 13)]
    assert sight.codec.given == [8, 5]  # a batch of the encoder, and no more at a time
    assert numbers(100, 2.5, rate=1.0) == [0, 5, 10, 15, 20]
    middles = [3, 9, 15, 21]  # of four parts of 1.25 seconds
    assert numbers(100, 2.5, count=4) == middles
    assert numbers(4, 2.5) == middles


def test_what_cannot_be_looked_at_is_one_clear_line(tmp_path, clip, sight):
    def refused(see, *given, **how) -> str:
        with pytest.raises(UserError) as error:
            see(*given, **how)
        assert "\n" not in str(error.value)
        return str(error.value)

    whole = Path(clip).read_bytes()
    cut, empty, text, picture = (tmp_path / name for name in ("cut.mp4", "empty.mp4", "a.txt", "a.png"))
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    empty.write_bytes(b"")
    text.write_text("not a picture" * 20)
    Image.fromarray(noise(1)).save(picture)
    none = str(film(tmp_path / "none.mp4", 0))
    assert f"--video {cut}: truncated" in refused(see_video, str(cut), sight, 100, 2.0)
    assert "empty" in refused(see_video, str(empty), sight, 100, 2.0)
    assert "--video" in refused(see_video, str(text), sight, 100, 2.0)
    assert "it is an image" in refused(see_video, str(picture), sight, 100, 2.0)
    assert "no video" in refused(see_video, none, sight, 100, 2.0)
    assert "unreadable" in refused(see_video, str(tmp_path / "gone.mp4"), sight, 100, 2.0)
    assert "10 frames of 5.0 seconds, and 3 fit" in refused(see_video, clip, sight, 3, 9.0, rate=2.0)
    assert "--frames 9: from 1 to 3" in refused(see_video, clip, sight, 3, 9.0, count=9)
    assert "not even one frame" in refused(see_video, clip, sight, 0, 9.0)
    assert "a video goes by --video" in refused(see_image, clip, sight)
    assert "no such file" in refused(see_image, str(tmp_path / "gone.png"), sight)
    picture.write_bytes(picture.read_bytes()[:200])
    assert "broken image" in refused(see_image, str(picture), sight)
