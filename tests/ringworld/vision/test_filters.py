"""Rules with bounds and reasons, captions that say nothing, copies and near copies, still films."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ringworld.data.conversations import Turn
from ringworld.errors import UserError
from ringworld.vision.clips import Clip
from ringworld.vision.contact import contact_sheet
from ringworld.vision.filters import (
    REASONS,
    CaptionRules,
    Filters,
    duplicates,
    judge,
    judge_caption,
    repeated,
    text_of,
)
from ringworld.vision.inspection import Seen
from ringworld.vision.looks import alike, look, stillness

RULES = CaptionRules()


def seen(width: int = 300, height: int = 300, seconds: float | None = None, still: float | None = None) -> Seen:
    return Seen("image", width, height, 1, seconds, None, "0" * 64, 1, (0,), still, np.zeros((1, 1, 3), np.uint8))


def scene(seed: int, height: int = 240, width: int = 320) -> np.ndarray:
    """A smooth picture of its own."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (seen(256, 768), None),
        (seen(255, 400), "too small"),
        (seen(400, 255), "too small"),
        (seen(256, 769), "aspect"),
        (seen(769, 256), "aspect"),
        (seen(seconds=0.4, still=0.0), "too short"),
        (seen(seconds=9.0, still=0.9), None),
        (seen(seconds=9.0, still=1.0), "static"),
    ],
)
def test_each_bound_holds_at_its_edge(found: Seen, reason: str | None) -> None:
    refused = judge(Clip("n", "image", "p", None, "A good caption"), found, Filters())
    assert (None if refused is None else refused.reason) == reason
    assert reason is None or reason in REASONS


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        (None, "caption missing"),
        ("", "caption empty"),
        ("cats", "caption too short"),
        ("Horse", None),
        ("z" * 1000, None),
        ("b " * 251 + "b", None),
        ("a b" + "c" * 998, "caption too long"),
        ("b " * 256 + "b", "caption too long"),
        ("IMG_20240101.jpg", "caption is a file name"),
        ("my holiday cat.jpeg", "caption is a file name"),
        ("DSC_0042", "caption is a file name"),
        ("Screenshot 2024-01-02 10.11.12.png", "caption is a file name"),
        ("0f3a9c77b2d1e84456aa", "caption is a file name"),
        ("https://example.org/a/b?c=d", "caption is an address"),
        ("www.example.org", "caption is an address"),
        ("shop.example.com/cats", "caption is an address"),
        ("1920 x 1080 - 24", None),  # an x is a letter
        ("1920 - 1080", "caption without words"),
        ("A cat looks at https://example.org on a screen.", None),
        ("The file cat.jpg shows a cat", None),
        ("図書館で本を読む人", None),
    ],
)
def test_captions_that_say_nothing_are_told_apart(caption: str | None, reason: str | None) -> None:
    refused = judge_caption(caption, RULES)
    assert (None if refused is None else refused.reason) == reason
    assert reason is None or reason in REASONS


def test_a_conversation_needs_no_caption() -> None:
    clip = Clip("n", "image", "p", None, None, (Turn("user", "<image>\nQ"), Turn("assistant", "A")))
    assert judge(clip, seen(), Filters()) is None
    assert judge(clip, seen(9, 9), Filters()) is not None


def test_a_caption_of_many_pictures_is_boilerplate_and_one_of_many_copies_is_not() -> None:
    captions = ["Image for", "IMAGE FOR", "image for", "My cat", "My cat", None, None, None]
    contents = ["a", "b", "c", "d", "d", "e", "f", "g"]
    assert repeated(captions, contents, 2).tolist() == [True] * 3 + [False] * 5
    assert not repeated(captions, contents, 3).any()
    assert not repeated(captions, contents, None).any()


def test_looks_survive_resizing_compression_and_brightness_and_tell_scenes_apart() -> None:
    import io

    looks = [look(scene(seed)) for seed in range(30)]
    distances = [(one ^ other).bit_count() for one, other in itertools.combinations(looks, 2)]
    assert min(distances) > 12
    assert 26 < float(np.mean(distances)) < 36
    for seed in range(10):
        pixels = scene(seed)
        file = io.BytesIO()
        Image.fromarray(pixels).resize((200, 150)).save(file, "JPEG", quality=40)
        changed = np.asarray(Image.open(file))
        assert (look(changed) ^ looks[seed]).bit_count() <= 4
        assert (look((pixels * 0.8 + 20).astype(np.uint8)) ^ looks[seed]).bit_count() <= 4


def test_still_films_are_told_from_moving_ones() -> None:
    moving = [scene(seed, 64, 64) for seed in range(5)]
    assert stillness(moving, 1.0) == 0
    assert stillness([moving[0]] * 5, 1.0) == 1
    assert stillness([*moving[:2], moving[1], moving[1], moving[2]], 1.0) == 0.5
    dithered = [np.clip(moving[0].astype(int) + step % 2, 0, 255).astype(np.uint8) for step in range(4)]
    assert stillness(dithered, 1.0) == 1
    assert stillness(dithered, 0.1) == 0
    assert stillness(moving[:1], 1.0) == 1


def flipped(word: int, bits: int, seed: int) -> int:
    for bit in np.random.default_rng(seed).choice(64, bits, replace=False).tolist():
        word ^= 1 << bit
    return word


def test_near_copies_are_all_found_whatever_bits_differ_and_the_order_does_not_matter() -> None:
    random = np.random.default_rng(0)
    words = [int(word) for word in random.integers(0, 2**63, 40)]
    near = [flipped(words[k % 40], k % 5, k) for k in range(200)]  # up to 4 bits away
    looks = np.array([*words, *near], np.uint64)[:, None]
    sizes = [100] * 40 + [50] * 200
    names = [f"{number:03}" for number in range(240)]
    found = alike(looks, sizes, names, 4)
    assert found.tolist() == [*range(40), *(number % 40 for number in range(200))]
    order = random.permutation(240)
    shuffled = alike(looks[order], [sizes[k] for k in order], [names[k] for k in order], 4)
    assert [order[k] for k in shuffled] == [found[k] for k in order]
    far = np.array([words[0], flipped(words[0], 5, 1)], np.uint64)[:, None]
    assert alike(far, [1, 1], ["a", "b"], 4).tolist() == [0, 1]
    assert alike(far, [1, 2], ["a", "b"], 5).tolist() == [1, 1]
    assert alike(np.zeros((0, 1), np.uint64), [], [], 4).tolist() == []
    # Of equal size the smaller name stays; a chain's far end stays, being like none that stays.
    chain = np.array([0, 0b1111, 0b11111111], np.uint64)[:, None]
    assert alike(chain, [1, 1, 1], ["a", "b", "c"], 4).tolist() == [0, 0, 2]
    films = np.array([[1, words[0], 2], [1, words[0], 2 ^ 0b11], [words[1], words[0], words[2]]], np.uint64)
    assert alike(films, [1, 1, 1], ["a", "b", "c"], 2).tolist() == [0, 0, 2]


def test_one_picture_may_have_several_texts_and_goes_with_all_of_them() -> None:
    talk = text_of(None, (Turn("user", "Q"), Turn("assistant", "A")))
    clips: list[tuple[Any, ...]] = [
        # name, content, text, looks, size
        ("a", "X", text_of("One", ()), (0,), 10),
        ("b", "X", text_of("One", ()), (0,), 10),  # a copy with the same text
        ("c", "X", talk, (0,), 10),
        ("d", "Y", text_of("One", ()), (3,), 20),  # larger, and looks like X
        ("e", "Z", text_of("One", ()), (2**40 - 1,), 5),
        ("f", "V", text_of("One", ()), (0, 0), 5),  # a film is no copy of a picture
    ]

    def found(distance: int | None, order: list[int]) -> dict[str, tuple[str, bool]]:
        names, contents, texts, looks, sizes = zip(*(clips[k] for k in order), strict=True)
        same = duplicates(names, contents, texts, looks, sizes, distance)
        return {names[k]: (names[of], bool(same.equal[k])) for k, of in enumerate(same.of) if of != k}

    everyone = list(range(6))
    assert found(None, everyone) == {"b": ("a", True)}
    expected = {"a": ("d", False), "b": ("d", False), "c": ("d", False)}
    assert found(4, everyone) == expected == found(4, everyone[::-1])
    assert found(1, everyone) == {"b": ("a", True)}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Filters(minimum_side=0), "minimum_side=0"),
        (lambda: Filters(aspect=0.5), r"aspect=0\.5"),
        (lambda: Filters(still=2), "still=2"),
        (lambda: Filters(distance=16), "distance=16: bits of 64"),
        (lambda: CaptionRules(words=(3, 1)), r"words=\(3, 1\)"),
        (lambda: CaptionRules(repeated=0), "repeated=0"),
    ],
)
def test_bounds_that_cannot_be_are_refused(make: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()


def test_a_contact_sheet_has_every_picture_in_its_place() -> None:
    pictures = [np.full((10, 20, 3), 10 * k, np.uint8) for k in range(5)]
    sheet = contact_sheet(pictures, 3)
    assert sheet.shape == (24, 68, 3)
    assert sheet[5, 5::24, 0].tolist() == [0, 10, 20]
    assert sheet[19, 5::24, 0].tolist() == [30, 40, 255]
    assert contact_sheet(pictures[:1], 3).shape == (10, 20, 3)
