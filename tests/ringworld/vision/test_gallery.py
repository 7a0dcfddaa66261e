"""Pictures of clips in memory: which, how large, and what is said where there are none."""

import itertools

import numpy as np
import pyarrow.compute as pc
import pytest

from ringworld.errors import UserError
from ringworld.vision.gallery import GalleryOptions, open_gallery
from tests.ringworld.vision.galleries import write_clips


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips") / "clips")


def test_images_and_frames_of_videos_are_held_and_the_rest_is_told(clips):
    made = open_gallery(clips, GalleryOptions(frames=3, side=16), 8, seed=0)
    shapes = sorted(picture.shape for picture in made.train)
    assert shapes == [(16, 21, 3)] * 7  # four pictures and three frames: the copy once, of the broken one nothing
    assert made.held_out.shape == (2, 8, 8, 3)
    assert made.held_out.dtype == np.uint8
    [refused] = made.refused
    assert refused.startswith("cut.png: broken image")
    # Frames of a film are grey, each brighter than the one before.
    levels = [picture.mean() for picture in made.train if np.ptp(picture) < 8]
    assert len(levels) == 3
    assert levels == sorted(levels)
    assert levels[2] > levels[0] + 20


def test_what_is_small_stays_and_large_is_made_smaller(clips):
    made = open_gallery(clips, GalleryOptions(side=100), 8, seed=0)
    assert {picture.shape for picture in made.train} == {(24, 32, 3), (48, 64, 3)}


def test_a_sample_is_bounded_and_a_larger_one_holds_it(clips):
    images = clips.filter(pc.field("name") != "cut.png").filter(pc.field("kind") == "image")

    def held(count, seed=0):
        found = open_gallery(images, GalleryOptions(clips=count, held_out=1), 8, seed)
        assert len(found.held_out) == 1
        return {picture.tobytes() for picture in found.train}

    samples = [held(count) for count in (1, 2, 3, 4, 9)]
    assert [len(sample) for sample in samples] == [1, 2, 3, 4, 4]
    assert all(small < large for small, large in itertools.pairwise(samples[:4]))
    assert len({frozenset(held(2, seed)) for seed in range(6)}) > 1


def test_no_pictures_are_an_error_that_says_why(clips):
    with pytest.raises(UserError, match="no picture of the split held_out among 7 clips"):
        open_gallery(clips.filter(pc.field("split") == "train"), GalleryOptions(), 8, 0)
    broken = clips.filter(pc.field("name").isin(["cut.png", "p1.png"]))
    with pytest.raises(UserError, match=r"of the split train among 2 clips; 1 were refused: cut\.png: broken image"):
        open_gallery(broken, GalleryOptions(), 8, 0)
    with pytest.raises(UserError, match=r"pictures\.frames=0"):
        GalleryOptions(frames=0)
