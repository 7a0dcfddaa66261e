"""Hashed words against a regular expression and Python's own sets: the same words, the same places."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from ringworld.data.words import chunks, runs, words

TEXT = "Call me Ishmael. SOME years ago\u2014never mind how long\u2014précisément, «ÉTÉ» in 1851_was x+y==3!\n" * 3


def test_words_are_runs_of_letters_and_digits_in_lower_case_at_their_places() -> None:
    found = words(TEXT)
    expected = list(re.finditer(r"[^\W_]+", TEXT))
    assert [(match.start(), match.end()) for match in expected] == list(
        zip(found.starts.tolist(), found.ends.tolist(), strict=True)
    )
    hashed: dict[str, int] = {}
    for match, value in zip(expected, found.hashes.tolist(), strict=True):
        assert hashed.setdefault(match[0].lower(), value) == value
    assert len(set(hashed.values())) == len(hashed)


def test_a_word_has_its_hash_wherever_it_stands() -> None:
    [ten] = set(words("été Été ÉTÉ\nété").hashes.tolist())
    assert words("x" * 70_000 + " été").hashes[-1] == ten
    assert words("ab").hashes[0] != words("ba").hashes[0]


def test_punctuation_is_words_where_marks_are_asked_for() -> None:
    assert len(words("a + b")) == 2
    assert words("a + b", marks=True).hashes.tolist() != words("a - b", marks=True).hashes.tolist()
    assert words("f(x)", marks=True).starts.tolist() == [0, 1, 2, 3]


def test_letters_of_scripts_without_spaces_are_words() -> None:
    found = words("吾輩は猫、である cat 한국어 नमस्ते")
    pieces = ["吾", "輩", "は", "猫", "で", "あ", "る", "cat", "한국어", "नमस्ते"]
    assert len(found) == len(pieces)
    assert len(words("\U00031350\U00031351")) == 2


@pytest.mark.parametrize("marks", [False, True])
def test_chunks_hold_each_run_of_words_once(marks: bool) -> None:
    rng = random.Random(0)
    text = " ".join(rng.choice(["whale", "sea,", "Ahab", "«é»", "x" * 300]) for _ in range(60_000))
    whole = words(text, marks)
    parts = list(chunks(text, overlap=4, marks=marks))
    assert len(parts) > 3
    assert np.array_equal(np.concatenate([runs(part.hashes, 5) for part in parts]), runs(whole.hashes, 5))
    for part in parts:
        assert np.array_equal(words(text[part.starts[9] : part.ends[19]], marks).hashes, part.hashes[9:20])


@pytest.mark.parametrize("length", [1, 2, 3, 5, 13, 50])
def test_runs_are_equal_where_the_words_are(length: int) -> None:
    rng = random.Random(length)
    names = rng.choices("abc", k=400)
    hashes = runs(words(" ".join(names)).hashes, length).tolist()
    grams = [tuple(names[at : at + length]) for at in range(400 - length + 1)]
    assert len(hashes) == len(grams)
    assert len(set(zip(grams, hashes, strict=True))) == len(set(grams)) == len(set(hashes))


def test_texts_without_words_have_none() -> None:
    assert len(words("")) == len(words(" .,\n")) == len(runs(words("one two").hashes, 3)) == 0
