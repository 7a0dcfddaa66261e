"""Examples token by token: orders, frames, marks and questions; nothing is cut, and what is left out is counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringworld.data.conversations import Turn
from ringworld.data.templates import with_template
from ringworld.data.tokenizers import ByteTokenizer, Tokenizer, train_bpe
from ringworld.errors import UserError
from ringworld.vision.examples import (
    QUESTIONS,
    REASONS,
    REQUESTS,
    CodedClip,
    Example,
    ExampleOptions,
    Left,
    Maker,
    first_frames,
    spread_frames,
)
from ringworld.vision.stream import CLIP, VisionIds, clip_ids, frames_of, spans_of

BYTES = ByteTokenizer()
IDS = VisionIds(300, 64)
GRID = 3
FRAME = GRID * GRID + 1
PAIRS = ExampleOptions("pairs", 1 << 14)
CHAT = ExampleOptions("chat", 1 << 14, frames=0)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LWM = "You are a helpful assistant. "
IMAGE = CodedClip("cat.png", "image", "0a" * 32, "A red cat")
BOTH = ("A red cat<vision>*</vision>|", "<vision>*</vision>A red cat|")
FILM = CodedClip("film.mp4", "video", "0b" * 32, "A film", (), 4.0)


def codes(frames: int, seed: int = 0) -> np.ndarray:
    """No two frames alike, each with its number first."""
    found = np.random.default_rng(seed).integers(0, 64, (frames, GRID, GRID))
    found[:, 0, 0], found[:, 0, 1] = np.arange(frames) // 64, np.arange(frames) % 64
    return found


def one(how: ExampleOptions, clip: CodedClip, frames: np.ndarray, tokenizer: Tokenizer = BYTES) -> Example:
    [made] = Maker(how, tokenizer, IDS).make(clip, frames)
    assert isinstance(made, Example), made
    return made


def chat(how: ExampleOptions, clip: CodedClip, frames: np.ndarray, tokenizer: Tokenizer = BYTES) -> list[Any]:
    return Maker(how, tokenizer, IDS).make(clip, frames)


def held(example: Example) -> np.ndarray:
    """The frames of the one clip of an example."""
    [(begin, end)] = spans_of(example.ids, IDS)
    return frames_of(example.ids[begin:end], IDS, GRID)


def numbers(example: Example) -> list[int]:
    frames = held(example)
    return (frames[:, 0, 0] * 64 + frames[:, 0, 1]).tolist()


def text_of(ids: np.ndarray) -> str:
    """Text ids in letters, each run of vision ids as one star, the end-of-text as a bar."""
    told, before = "", False
    for token in ids.tolist():
        vision = token >= IDS.offset
        told += "*" if vision and not before else "" if vision else "|" if token == BYTES.eos_id else chr(token)
        before = vision
    return told


def test_a_pair_is_caption_and_clip_in_either_order_and_all_of_it_counts() -> None:
    frames, told = codes(1), set()
    for seed in range(8):
        example = one(replace(PAIRS, seed=seed), IMAGE, frames)
        told.add((example.how, text_of(example.ids)))
        np.testing.assert_array_equal(held(example), frames)
        assert example.answer.all()
        assert example.answer.shape == example.ids.shape
        assert (example.corpus, example.frames, example.wanted, example.ids.dtype) == ("image", 1, 1, np.int32)
    assert told == set(zip(("text first", "vision first"), BOTH, strict=True))


def test_orders_are_drawn_for_each_example_and_are_the_same_again() -> None:
    clips = [replace(IMAGE, sha256=f"{number:064x}") for number in range(200)]
    drawn = [[one(replace(PAIRS, seed=seed), clip, codes(1)).how for clip in clips] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert 70 < drawn[0].count("text first") < 130
    held = Maker(PAIRS, BYTES, IDS).make(replace(IMAGE, held_out=True), codes(1))
    assert [text_of(example.ids) for example in held if isinstance(example, Example)] == list(BOTH)
    both = {one(PAIRS, replace(IMAGE, caption=f"Caption {number}"), codes(1)).how for number in range(10)}
    assert len(both) == 2  # of one picture's captions too


def test_pairs_take_the_first_frames_at_the_rate() -> None:
    assert numbers(one(PAIRS, FILM, codes(1000))) == list(range(30))
    assert numbers(one(PAIRS, replace(FILM, rate=8.0), codes(1000))) == list(range(0, 60, 2))
    assert numbers(one(replace(PAIRS, rate=3.0, frames=5), FILM, codes(1000))) == [0, 1, 2, 4, 5]
    slow = one(PAIRS, replace(FILM, rate=0.5), codes(7))
    assert (numbers(slow), slow.wanted) == (list(range(7)), 7)
    every = one(replace(PAIRS, frames=0, rate=2.0), FILM, codes(7))
    assert (numbers(every), every.wanted) == ([0, 2, 4, 6], 4)
    for stored_rate, rate, stored in ((25.0, 4.0, 250), (30000 / 1001, 4.0, 100), (4.0, 4.0, 1), (3.9, 4.0, 11)):
        times = first_frames(stored, stored_rate, rate) / stored_rate
        wanted = np.arange(len(times)) / min(rate, stored_rate)
        assert (times <= wanted + 1e-6).all()
        assert (wanted - times < 1 / stored_rate).all()
        assert len(times) == int(np.ceil(stored / max(1.0, stored_rate / rate)))
    assert first_frames(1, None, 4.0).tolist() == [0]


def test_what_does_not_fit_gets_fewer_frames_and_never_a_part_of_one() -> None:
    """An example of n ids fills n - 1 slots."""
    whole = len(one(replace(PAIRS, frames=1), FILM, codes(3)).ids)
    for sequence in range(whole - 1, whole + 3 * FRAME):
        example = one(replace(PAIRS, sequence=sequence), FILM, codes(1000))
        assert example.frames == (sequence + 1 - (whole - FRAME)) // FRAME
        assert sequence - FRAME < len(example.ids) - 1 <= sequence
        assert (numbers(example), example.wanted) == (list(range(example.frames)), 30)
    [left] = Maker(replace(PAIRS, sequence=whole - 2), BYTES, IDS).make(FILM, codes(1000))
    assert left == Left("video", "too long", f"6 ids of text and one frame of {FRAME}, sequence={whole - 2}")


def test_a_clip_of_a_thousand_frames_is_spread_into_a_short_example() -> None:
    for sequence in (400, 401, 1000, 2000):
        for example in chat(replace(CHAT, sequence=sequence), FILM, codes(1000)):
            shown = numbers(example)
            assert len(shown) == example.frames == len(set(shown))
            assert sequence - FRAME < len(example.ids) - 1 <= sequence
            gaps = np.diff([-shown[0] - 1, *shown, 2 * 1000 - shown[-1]])
            assert gaps.max() - gaps.min() <= 2  # evenly, from the beginning to the end
            assert example.wanted == 1000
    assert spread_frames(1000, 4).tolist() == [125, 375, 625, 875]
    assert spread_frames(5, 5).tolist() == [0, 1, 2, 3, 4]
    few = chat(replace(CHAT, frames=8), FILM, codes(1000))
    assert [(example.frames, example.wanted) for example in few] == [(8, 8)] * 2


@pytest.mark.parametrize("kind", ["image", "video"])
def test_chat_asks_about_a_clip_and_for_a_clip_and_answers_alone_count(kind: Any) -> None:
    clip = replace(FILM if kind == "video" else IMAGE, caption="A red cat", kind=kind)
    asked, drawn = chat(CHAT, clip, codes(2))
    assert (asked.corpus, drawn.corpus) == (f"{kind}-question", f"{kind}-generation")
    assert (asked.how, drawn.how) == ("wording", "wording")
    question = next(one for one in QUESTIONS[kind] if one in text_of(asked.ids))
    assert text_of(asked.ids) == f"{LWM}USER: <vision>*</vision>\n{question} ASSISTANT: A red cat|"
    assert text_of(asked.ids[asked.answer]) == " A red cat|"
    request = next(one for one in REQUESTS[kind] if one.replace("{caption}", "A red cat") in text_of(drawn.ids))
    request = request.replace("{caption}", "A red cat")
    assert text_of(drawn.ids) == f"{LWM}USER: {request} ASSISTANT: <vision>*</vision>|"
    assert text_of(drawn.ids[drawn.answer]) == " <vision>*</vision>|"
    assert (drawn.ids[drawn.answer] >= IDS.offset).sum() == 2 * FRAME
    for example in (asked, drawn):
        np.testing.assert_array_equal(held(example), codes(2))


def test_the_marks_are_those_of_the_template(tmp_path: Path) -> None:
    """Another tokenizer and a template of Hugging Face's kind: between its prompt and its end of turn."""
    (tmp_path / "chatml.jinja").write_text(CHATML)
    bpe = train_bpe(["user assistant <vision> </vision> A red cat What is in the picture?"] * 4, 290)
    tokenizer = with_template(bpe, str(tmp_path / "chatml.jinja"))
    asked, drawn = chat(CHAT, IMAGE, codes(1), tokenizer)
    for example, said in ((asked, "A red cat"), (drawn, "<vision></vision>")):
        answered = example.ids[example.answer]
        assert tokenizer.decode(answered[answered < IDS.offset]) == said
        assert answered[-1] == tokenizer.eos_id
        assert np.diff(np.flatnonzero(example.answer)).max() == 1
        prompt = tokenizer.decode(example.ids[: int(np.argmax(example.answer))])
        assert prompt.endswith("<|im_start|>assistant\n")


def test_wordings_are_drawn_and_the_same_again() -> None:
    clips = [replace(IMAGE, sha256=f"{number:064x}") for number in range(60)]
    for which, wordings in ((0, QUESTIONS["image"]), (1, [one.partition("{")[0] for one in REQUESTS["image"]])):
        told = [text_of(chat(CHAT, clip, codes(1))[which].ids) for clip in clips]
        assert told == [text_of(chat(CHAT, clip, codes(1))[which].ids) for clip in clips]
        assert all(sum(wording in one for one in told) > 3 for wording in wordings)
        assert told != [text_of(chat(replace(CHAT, seed=1), clip, codes(1))[which].ids) for clip in clips]


def test_a_conversation_keeps_its_turns_and_the_clip_stands_where_it_is_marked() -> None:
    turns = (
        Turn("system", "Be brief."),
        Turn("user", f"Look{CLIP} at it: <video> Well?"),
        Turn("assistant", "A film."),
        Turn("user", "Why?"),
        Turn("assistant", "For fun."),
    )
    asked, drawn = chat(CHAT, replace(FILM, caption=None, conversation=turns), codes(2))
    assert asked.how == "conversation"
    assert text_of(asked.ids) == (
        "Be brief. USER: Look at it: <vision>*</vision> Well? ASSISTANT: A film.|USER: Why? ASSISTANT: For fun.|"
    )
    assert text_of(asked.ids[asked.answer]) == " A film.| For fun.|"
    assert drawn == Left("video-generation", "no caption")
    unmarked = (Turn("user", "Well?"), Turn("assistant", "A cat."))
    asked, drawn = chat(CHAT, replace(IMAGE, conversation=unmarked), codes(1))
    assert text_of(asked.ids) == f"{LWM}USER: <vision>*</vision>\nWell? ASSISTANT: A cat.|"
    assert drawn.corpus == "image-generation"


def test_what_becomes_no_example_says_why() -> None:
    for caption in (None, "", " \n", CLIP):
        silent = replace(IMAGE, caption=caption)
        assert chat(PAIRS, silent, codes(1)) == [Left("image", "no caption")]
        assert chat(CHAT, silent, codes(1)) == [
            Left(f"image-{task}", "no caption") for task in ("question", "generation")
        ]
    for left in chat(replace(CHAT, sequence=50), IMAGE, codes(1)):
        assert left.reason == "too long"
        assert left.detail.endswith("sequence=50")
        assert left.reason in REASONS
    assert chat(replace(PAIRS, kinds=("video",)), IMAGE, codes(1)) == []
    with pytest.raises(UserError, match="offset=200: the tokenizer has 258 ids"):
        Maker(PAIRS, BYTES, VisionIds(200, 64))
    for wrong in ({"form": "talk"}, {"sequence": 0}, {"frames": -1}, {"rate": 0.0}, {"kinds": ()}, {"kinds": ("gif",)}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            replace(PAIRS, **wrong)


def test_a_pair_is_what_its_parts_are() -> None:
    """By parts that share no code with the maker."""
    example = one(replace(PAIRS, frames=3), FILM, codes(9))
    clip = [*b"<vision>", *clip_ids(codes(9)[:3], IDS).tolist(), *b"</vision>"]
    caption = [*b"A film"]
    parts = [*caption, *clip] if example.how == "text first" else [*clip, *caption]
    assert example.ids.tolist() == [*parts, BYTES.eos_id]
