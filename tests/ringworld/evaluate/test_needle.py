"""Needle prompts: exact lengths, the needle where it was asked for, graded as a greedy reader would answer."""

import numpy as np
import pytest

from ringworld.errors import UserError
from ringworld.evaluate.needle import CITIES, grade, make_prompts, pack_prompts
from ringworld.evaluate.recipe import NeedleConfig
from tests.ringworld.corpus import TOKENIZER, prose

HAYSTACK = TOKENIZER.encode(prose(0, 400))
CONFIG = NeedleConfig(lengths=(512, 1024), depths=(0.0, 0.5, 1.0), rounds=2)


def build(config=CONFIG, haystack=HAYSTACK, seed=0):
    return make_prompts(config, haystack, TOKENIZER.encode, lambda token: token == ord("."), seed)


def test_the_cities_are_a_hundred_and_all_distinct():
    assert len(CITIES) == len(set(CITIES)) == 100


def test_every_prompt_has_its_exact_length_and_holds_its_needle_once():
    prompts, refused = build()
    assert not refused
    assert [(p.length, p.depth) for p in prompts] == [
        (n, d) for n in (512, 1024) for d in (0.0, 0.5, 1.0) for _ in range(2)
    ]
    for prompt in prompts:
        text = TOKENIZER.decode(prompt.tokens)
        assert len(prompt.tokens) == prompt.length + 1
        assert text.count(f"The special magic {prompt.city} number is: {prompt.number}.") == 1
        assert text.endswith(f"The special magic {prompt.city} number is: {prompt.number}")
        assert TOKENIZER.decode(prompt.tokens[-prompt.answer :]) == f" {prompt.number}"


def test_the_needle_lies_at_its_depth_after_the_end_of_a_sentence():
    for prompt in build()[0]:
        text = TOKENIZER.decode(prompt.tokens)
        place = text.index("\nThe special magic")
        question = text.index("\nWhat is the special")
        assert place / question == pytest.approx(prompt.depth, abs=0.2)
        if prompt.depth == 0.5:
            assert text[place - 1] == "."


def test_the_same_seed_asks_the_same_and_another_asks_otherwise():
    again, other = build(), build(seed=1)
    assert all((a.tokens == b.tokens).all() for a, b in zip(build()[0], again[0], strict=True))
    assert any(a.number != b.number for a, b in zip(build()[0], other[0], strict=True))


def test_a_haystack_is_never_repeated_to_fill_a_length():
    prompts, refused = build(haystack=HAYSTACK[:600])
    assert {prompt.length for prompt in prompts} == {512}
    assert "have 600 tokens" in refused[1024]
    assert "take" in build(NeedleConfig(lengths=(64,)))[1][64]


def test_packed_prompts_are_segments_with_targets_one_further():
    prompts, _ = build()
    rows, places = pack_prompts([prompt.tokens for prompt in prompts], 1024)
    assert len(rows.tokens) == 9
    for number, (prompt, (row, offset)) in enumerate(zip(prompts, places, strict=True), start=1):
        span = slice(offset, offset + prompt.length)
        assert (rows.segments[row] == number).sum() == prompt.length
        np.testing.assert_array_equal(rows.tokens[row, span], prompt.tokens[:-1])
        np.testing.assert_array_equal(rows.targets[row, span], prompt.tokens[1:])
        np.testing.assert_array_equal(rows.positions[row, span], np.arange(prompt.length))


def test_where_answers_alone_are_asked_for_nothing_else_has_a_target():
    prompts, _ = build()
    rows, places = pack_prompts([prompt.tokens for prompt in prompts], 1024, [prompt.answer for prompt in prompts])
    for prompt, (row, offset) in zip(prompts, places, strict=True):
        end = offset + prompt.length
        assert (rows.targets[row, offset : end - prompt.answer] == -1).all()
        np.testing.assert_array_equal(rows.targets[row, end - prompt.answer : end], prompt.tokens[-prompt.answer :])
    assert (rows.targets[rows.segments == 0] == -1).all()


def test_a_grade_counts_whole_numbers_and_single_tokens():
    prompts, _ = build(NeedleConfig(lengths=(512,), depths=(0.5,), rounds=2))
    rows, places = pack_prompts([prompt.tokens for prompt in prompts], 1024)
    hit = np.zeros(rows.tokens.shape, bool)
    first, second = (slice(offset + 512 - 8, offset + 512) for _, offset in places)
    hit[places[0][0], first] = True
    hit[places[1][0], second.start : second.start + 4] = True
    (cell,) = grade(prompts, places, hit)
    assert (cell.prompts, cell.exact, cell.digits) == (2, 0.5, 0.75)


@pytest.mark.parametrize("change", [{"lengths": ()}, {"depths": (1.5,)}, {"rounds": 0}], ids=str)
def test_a_grid_that_cannot_be_is_refused(change):
    with pytest.raises(UserError):
        NeedleConfig(**{"lengths": (512,), **change})
