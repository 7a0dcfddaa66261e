"""What is drawn is what a loop over the whole model draws, code by code, with guidance by the plain formula."""

import copy
import functools

import jax
import numpy as np
import pytest

from ringworld.errors import UserError
from ringworld.generate.drawing import IMAGE, Drawer, Drawing, Guidance
from ringworld.generate.sampling import Sampling, knobs_of
from ringworld.vision.stream import VisionIds
from tests.ringworld.generate.test_engine import prompt
from tests.thorough import thorough

IDS, GRID = VisionIds(272, 16), 3
GREEDY = Guidance(3.0, 0, temperature=0.0)
FREE = Guidance(1.0, 0, temperature=0.0)


@pytest.fixture(scope="module")
def drawer(seeing):
    """A function from a mesh and sizes to a drawer; each is compiled once."""

    @functools.cache
    def make(mesh: str = "data=1", at_once: int = 2) -> Drawer:
        return Drawer(seeing.programs(mesh), IDS, GRID, context=300, at_once=at_once, chunk=64)

    return make


def drawn(made: Drawer, drawings, *how, **more) -> list[np.ndarray]:
    found = list(made.draw(drawings, *how, **more))
    assert [index for index, _ in found] == list(range(len(drawings)))
    return [codes for _, codes in found]


def guided(model, known, without, how: Guidance, last: int = 1) -> np.ndarray:
    """float64 [last, 16]: the logits of what follows each of the last tokens, by two forward passes."""
    asked, unasked = (model.logits(ids, 1)[-last:, : IDS.codebook].astype(np.float64) for ids in (known, without))
    return unasked + how.scale * (asked - unasked)


def ranks(model, drawing: Drawing, codes: np.ndarray, guidance) -> list[int]:
    """How many codes were likelier than each that was drawn, all those before it given; all zeros: greedy."""
    known, without, found = drawing.ids, drawing.without, []
    for frame, how in zip(codes.reshape(len(codes), -1), guidance, strict=True):
        tokens = IDS.offset + frame
        known, without = (np.concatenate([ids, tokens]) for ids in (known, without))
        logits = guided(model, known[:-1], without[:-1], how, len(frame))
        found += (logits > logits[np.arange(len(frame)), frame][:, None]).sum(-1).tolist()
        known, without = (np.append(ids, IDS.eof) for ids in (known, without))
    return found


def test_greedy_codes_are_those_of_a_loop_over_the_whole_model(seeing, drawer):
    drawing, by_hand = Drawing(prompt(30, 3), prompt(2, 4)), []
    for _ in range(GRID * GRID):
        tokens = IDS.offset + np.array(by_hand, int)
        known, without = (np.concatenate([ids, tokens]) for ids in (drawing.ids, drawing.without))
        by_hand.append(int(guided(seeing, known, without, GREEDY)[0].argmax()))
    assert drawn(drawer(), [drawing], 1, GREEDY)[0].reshape(-1).tolist() == by_hand


@pytest.mark.parametrize("mesh", [thorough("data=1"), "data=2,tensor=2,ring=2"])
def test_each_clip_of_several_is_drawn_as_the_whole_model_says_on_every_mesh(seeing, drawer, mesh):
    drawings = [Drawing(prompt(n, 3), prompt(2, 4)) for n in (1, 30, 90)]
    found = drawn(drawer(mesh), drawings, 3, GREEDY, FREE)
    for drawing, codes in zip(drawings, found, strict=True):
        assert codes.shape == (3, GRID, GRID)
        assert ranks(seeing, drawing, codes, [GREEDY, FREE, FREE]) == [0] * 27
    assert len({codes.tobytes() for codes in found}) == 3


def test_later_frames_may_be_guided_too_and_the_first_not(seeing, drawer):
    drawing = Drawing(prompt(20, 3), prompt(2, 4))
    [codes] = drawn(drawer(), [drawing], 2, FREE, GREEDY)
    assert ranks(seeing, drawing, codes, [FREE, GREEDY]) == [0] * 18


def test_what_is_without_the_caption_matters_under_guidance_alone(drawer):
    one, other = Drawing(prompt(20, 3), prompt(2, 4)), Drawing(prompt(20, 3), prompt(30, 9))
    guided, guided_by_other = drawn(drawer(), [one, other], 1, GREEDY)
    free, also_free = drawn(drawer(), [one, other], 1, FREE)
    assert guided.tolist() != guided_by_other.tolist()
    np.testing.assert_array_equal(free, also_free)


def test_codes_are_among_the_likeliest_under_guidance_and_follow_the_seed(seeing, drawer):
    how = Guidance(2.0, top_k=3, temperature=5.0)
    base = Drawing(prompt(20, 3), prompt(2, 4))
    seeds = [Drawing(base.ids, base.without, seed) for seed in (7, 8, 7)]
    first, second, again = drawn(drawer(), seeds, 2, how, how)
    np.testing.assert_array_equal(first, again)
    assert first.tolist() != second.tolist()
    assert set(ranks(seeing, base, first, [how, how])) == {0, 1, 2}  # hot, so all three come up, and no other


def test_a_drawing_is_the_same_alone_and_among_others(drawer):
    drawings = [Drawing(prompt(20, n), prompt(2, 4), seed=n) for n in range(5)]
    made = drawer()
    together = drawn(made, drawings, 1, IMAGE)
    for n, drawing in enumerate(drawings):
        np.testing.assert_array_equal(drawn(made, [drawing], 1, IMAGE)[0], together[n])
    assert len({codes.tobytes() for codes in together}) == 5


def changed(made: Drawer, change) -> Drawer:
    """The same drawer of a model with another vision head; nothing new is compiled."""
    programs, vision = copy.copy(made._programs), made._programs._weights["vision"]
    programs._weights = {**programs._weights, "vision": {**vision, "head": change(vision["head"])}}
    other = copy.copy(made)
    other._programs, other._frame = programs, copy.copy(made._frame)
    other._frame._programs = programs
    return other


def test_no_end_and_no_spare_id_is_drawn_inside_of_a_frame(drawer):
    loud = changed(drawer(), lambda head: head.at[:, IDS.codebook :].multiply(1000))
    drawing = Drawing(prompt(20, 3), prompt(2, 4))
    [codes], [quiet] = drawn(loud, [drawing], 2, GREEDY, FREE), drawn(drawer(), [drawing], 2, GREEDY, FREE)
    np.testing.assert_array_equal(codes, quiet)
    silent = changed(drawer(), lambda head: head * 0)
    assert drawn(silent, [drawing], 1, GREEDY)[0].max() == 0  # the head that was changed is the one that draws


def test_each_code_has_random_numbers_of_its_own(drawer):
    equal = changed(drawer(), lambda head: head * 0)  # all codes are equally likely, so nothing but chance tells
    hot = Guidance(3.0, 0), Guidance(1.0, 0)
    [clip, other] = drawn(equal, [Drawing(prompt(20, 3), prompt(2, 4), seed) for seed in (1, 2)], 3, *hot)
    codes = np.concatenate([clip, other]).reshape(6, -1)
    assert len(np.unique(codes)) > 12
    for one in range(6):
        assert all((codes[one] != codes[two]).sum() > 4 for two in range(one))


def test_a_model_whose_output_is_no_number_is_told_of(drawer):
    broken = changed(drawer(), lambda head: head.at[0, 5].set(np.nan))
    with pytest.raises(UserError, match="no number"):
        drawn(broken, [Drawing(prompt(20, 3), prompt(2, 4))], 1, GREEDY)


def test_frames_without_guidance_are_drawn_by_half_the_rows(drawer, monkeypatch):
    made, rows = drawer(), []
    advance = made._frame.advance

    def counted(cache, state, *more):
        rows.append(jax.tree.leaves(cache)[0].shape[0])
        return advance(cache, state, *more)

    monkeypatch.setattr(made._frame, "advance", counted)
    steps = []
    drawn(made, [Drawing(prompt(9, n), prompt(2, 4)) for n in range(2)], 3, GREEDY, FREE,
          on_progress=lambda done, of: steps.append((done, of)))  # fmt: skip
    assert rows == [4] * GRID + [2] * 2 * GRID
    assert steps == [(done, 29) for done in (3, 6, 10, 13, 16, 20, 23, 26, 29)]


def test_the_loop_over_codes_copies_no_cache(drawer):
    frame, programs = drawer()._frame, drawer()._programs
    cache, state = programs.make_cache(4, 1024), frame.state(np.zeros(4, np.int32), np.zeros(4, np.int32), 2)
    knobs = knobs_of([Sampling(1.0, 5)] * 2)
    given = (cache, state, np.float32(2), knobs, np.int32(0), np.int32(9))
    compiled = frame._advance(True).lower(*programs.weights, *given).compile().as_text()
    whole = "f32[4,2,1024,8]"
    assert f"{whole}" in compiled
    assert not [line for line in compiled.splitlines() if f"= {whole}" in line and " copy(" in line]


def test_what_cannot_be_drawn_is_refused_in_words(model, seeing, drawer):
    fine = Drawing(prompt(20, 3), prompt(2, 4))

    def refused(made, *how) -> str:
        with pytest.raises(UserError) as error:
            drawn(made(), *how)
        return str(error.value)

    assert "text model" in refused(lambda: Drawer(model.programs(), IDS, GRID, context=300), [fine])
    assert "at_once=1: a multiple of the 2" in refused(lambda: drawer("data=2,tensor=2,ring=2", 1), [fine])
    assert "frames=0" in refused(drawer, [fine], 0)
    assert "where 28 fit" in refused(drawer, [fine], 29)
    assert "outside of the model's vocabulary" in refused(drawer, [Drawing(np.array([999]), fine.ids)])
    assert "empty" in refused(drawer, [Drawing(fine.ids, fine.ids[:0])])
    assert "vision_vocabulary=24" in refused(lambda: Drawer(seeing.programs(), VisionIds(272, 64), 3, context=99), [])
    for wrong in ({"scale": -1}, {"scale": float("nan")}, {"top_k": -2}, {"temperature": -1}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Guidance(**{"scale": 1.0, "top_k": 0, **wrong})
