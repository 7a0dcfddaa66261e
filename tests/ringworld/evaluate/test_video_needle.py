"""The needle of a video: the marked frame where it was asked for, questions of a known form, graded as they say."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from ringworld.errors import UserError
from ringworld.evaluate.marked_frames import COLOURS, SHAPES, MarkedFrame, draw_marked
from ringworld.evaluate.needle import pack_prompts
from ringworld.evaluate.recipe import VideoNeedleConfig
from ringworld.evaluate.video_needle import asker, grade_video, make_video_prompts, pack_choices
from ringworld.vision.stream import VisionIds, frames_of, spans_of
from tests.ringworld.corpus import TOKENIZER

IDS, GRID = VisionIds(264, 50), 3
HAYSTACK = np.random.default_rng(0).integers(40, size=(40, GRID, GRID)).astype(np.int32)  # of codes below 40
CONFIG = VideoNeedleConfig((4, 16), (0.0, 0.5, 1.0), rounds=4)


def encoded(frames: Sequence[MarkedFrame]) -> np.ndarray:
    """Codes that no clip has: 40 and more."""
    names = list(COLOURS)
    return np.stack([np.full((GRID, GRID), 40 + names.index(frame.colour), np.int32) for frame in frames])


def build(config=CONFIG, haystack=HAYSTACK, chat=False, sequence=512, seed=0):
    return make_video_prompts(config, haystack, encoded, asker(TOKENIZER, chat), IDS, sequence, seed)


@pytest.mark.parametrize("chat", [False, True], ids=["pairs", "chat"])
def test_the_marked_frame_is_at_its_depth_among_frames_in_turn_and_asked_about_after_them(chat):
    prompts, refused = build(chat=chat)
    assert not refused
    assert [(p.frames, p.depth) for p in prompts] == [(n, d) for n in (4, 16) for d in (0.0, 0.5, 1.0) for _ in "1234"]
    for prompt in prompts:
        colours = CONFIG.colours
        assert prompt.marked.colour == colours[prompt.right] != prompt.marked.background
        tokens, colour = prompt.tokens, prompt.marked.colour
        [(begin, end)] = spans_of(tokens, IDS)
        found = frames_of(tokens[begin:end], IDS, GRID)
        [marked] = np.flatnonzero((found >= 40).all((1, 2)))
        assert marked == prompt.place == round(prompt.depth * (prompt.frames - 1))
        assert (found[marked] == encoded([prompt.marked])).all()
        # The others follow each other in the haystack.
        rest = np.delete(np.arange(prompt.frames), marked)
        starts = [n for n in range(40 - prompt.frames + 1) if (HAYSTACK[n + rest] == found[rest]).all()]
        assert len(starts) == 1
        assert TOKENIZER.decode(tokens[-prompt.answer :]) == f" {colour}"
        before, after = TOKENIZER.decode(tokens[:begin]), TOKENIZER.decode(tokens[end:])
        assert before.endswith("<vision>")
        assert after.startswith("</vision>\nOne frame shows a large")
        assert before.startswith("You are a helpful assistant. USER: " if chat else "<vision>")
        assert f"colour of the {prompt.marked.shape}" in after
        assert after.endswith(f"ASSISTANT: {colour}" if chat else f" is: {colour}")
        assert not any(other in after[: -len(colour)] for other in colours)
        # Bytes differ from the name's first letter on, which follows a space.
        assert TOKENIZER.decode(tokens[: prompt.asked + 1]).endswith(": ")
        assert [chr(token) for token in prompt.choices] == [name[0] for name in colours]
        assert tokens[prompt.asked + 1] == prompt.choices[prompt.right]


def test_each_colour_is_right_equally_often_over_the_grid():
    for config, counts in (
        (CONFIG, {6}),
        (VideoNeedleConfig((4, 16), (0.0, 1.0)), {1}),
        (VideoNeedleConfig((4, 8, 16), colours=("red", "blue")), {7, 8}),
    ):
        prompts, _ = build(config)
        assert set(Counter(prompt.marked.colour for prompt in prompts).values()) == counts
    shapes = {prompt.marked.shape for prompt in build()[0]}
    assert len(shapes) > 2
    assert shapes <= set(SHAPES)


def test_the_same_seed_asks_the_same_and_another_asks_otherwise():
    def asked(seed: int) -> list[list[int]]:
        return [prompt.tokens.tolist() for prompt in build(seed=seed)[0]]

    assert asked(0) == asked(0) != asked(1)


def test_lengths_that_cannot_be_are_said():
    prompts, refused = build(VideoNeedleConfig((4, 30, 41)), sequence=256)
    assert {prompt.frames for prompt in prompts} == {4}
    assert re.fullmatch(r"30 frames are 4\d\d tokens with the question, a row has 256", refused[30])
    assert refused[41] == "the held-out clips have 40 frames, the prompt needs 41"
    assert build(haystack=HAYSTACK[:0])[1].keys() == {4, 16}


def test_a_grade_tells_what_a_greedy_reader_says_from_what_is_likeliest():
    config = VideoNeedleConfig((4,), (0.5,), rounds=5, colours=("red", "blue"))
    prompts, _ = build(config)
    rows, places = pack_prompts([prompt.tokens for prompt in prompts], 512)
    choices = pack_choices(prompts, places, len(rows.tokens))
    hit, chosen = np.zeros(rows.tokens.shape, bool), np.full(choices.ids.shape, 9.0)
    assert len({row for row, _ in places}) < len(prompts)  # several in a row

    def answer(number: int) -> tuple[int, slice]:
        (row, slot), prompt = places[number], prompts[number]
        slots = slice(slot + prompt.length - prompt.answer, slot + prompt.length)
        assert TOKENIZER.decode(rows.targets[row, slots]) == f" {prompt.marked.colour}"
        return row, slots

    def asked(number: int) -> tuple[int, int]:
        """Where in the choices it is: by the slot of its row that comes right after the question's space."""
        row, slots = answer(number)
        [turn] = np.flatnonzero(choices.slots[row] == slots.start + 1)
        assert rows.targets[row, choices.slots[row, turn]] == choices.ids[row, turn, prompts[number].right]
        return row, int(turn)

    # Said, and the likeliest; said in part; the likeliest only; the other is; both are.
    hit[answer(0)] = True
    row, slots = answer(1)
    hit[row, slots.start : slots.start + 2] = True
    chosen[(*asked(0), prompts[0].right)] = chosen[(*asked(2), prompts[2].right)] = 0.1
    chosen[(*asked(3), 1 - prompts[3].right)] = 0.1
    [cell] = grade_video(prompts, places, hit, chosen)
    assert (cell.prompts, cell.exact, cell.ranked) == (5, 1 / 5, 2 / 5)
    assert cell.said == (prompts[0].answer + 2) / sum(prompt.answer for prompt in prompts)
    assert cell.tokens == max(prompt.length for prompt in prompts)


def test_names_that_begin_alike_are_refused():
    with pytest.raises(
        UserError, match=r"colours=\['blue', 'black', 'red'\]: in this tokenizer not all of these names"
    ):
        build(VideoNeedleConfig((4,), colours=("blue", "black", "red")))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_marked_frame_has_a_large_shape_of_its_colour_on_its_background(shape):
    pixels = draw_marked(MarkedFrame(shape, "red", "blue"), 64)
    inside = (pixels == COLOURS["red"]).all(-1)
    assert pixels.shape == (64, 64, 3)
    assert (inside | (pixels == COLOURS["blue"]).all(-1)).all()
    assert 0.15 < inside.mean() < 0.5
    assert inside[32, 32]
    assert not inside[:4].any()
    assert not inside[:, -4:].any()


@pytest.mark.parametrize(
    "change",
    [{"frames": ()}, {"frames": (0,)}, {"depths": (1.5,)}, {"colours": ("red",)}, {"colours": ("red", "tan")}],
    ids=str,
)  # fmt: skip
def test_a_grid_that_cannot_be_is_refused(change):
    with pytest.raises(UserError, match=r"vision\.needle"):
        VideoNeedleConfig(**{"frames": (4,), **change})
