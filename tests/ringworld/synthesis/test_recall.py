"""Documents to look things up in: what counts can be found before, and nothing else of it can be known."""

from __future__ import annotations

import numpy as np
import pytest

from ringworld.data.tokenizers import ByteTokenizer
from ringworld.synthesis.recall import Phrases, copy_document, needle_document, passage_document

TOKENIZER = ByteTokenizer()


@pytest.fixture(scope="module")
def phrases():
    return Phrases.of(TOKENIZER, 0)


def test_a_document_with_needles_asks_for_each_once_after_it_was_said(phrases):
    rng, text = np.random.default_rng(0), TOKENIZER.encode("x " * 2000)
    for length in (phrases.pair * 5 // 4, 512, 1700):
        for _ in range(8):
            ids, marks = needle_document(text, length, phrases, 0.0, rng)
            assert len(ids) == len(marks) == length + 1
            said, asked = {}, {}
            for part in TOKENIZER.decode(ids).split("The special magic ")[1:]:
                city, _, rest = part.partition(" number is: ")
                (asked if city in said else said)[city] = rest[:7]
            assert said == asked
            assert said
            assert sorted(TOKENIZER.decode(ids[marks == 1]).split()) == sorted(asked.values())


def test_a_needle_stands_at_each_depth_of_the_test_and_right_before_its_question_too(phrases):
    rng, text, places = np.random.default_rng(4), TOKENIZER.encode("x" * 4000), []
    for _ in range(300):
        before, *asked = TOKENIZER.decode(needle_document(text, 600, phrases, 0.0, rng)[0]).split("\nWhat is")
        if len(asked) == 1 and set(asked[0].split("number is:")[1][9:]) <= {"\n"}:  # one question, at the end
            filled = before.replace("x", "")
            places.append(before.index(filled) / (len(before) - len(filled)))
    assert len(places) > 50
    assert np.histogram(places, [0, 0.001, 0.5, 0.999, 1.001])[0].min() > 3


def test_a_passage_that_comes_again_counts_from_its_second_token_on(phrases):
    rng = np.random.default_rng(1)
    for length in (64, 256, 999):
        for _ in range(20):
            ids, marks = passage_document(np.arange(length) + 10_000, length, phrases, 0.0, rng)
            assert len(ids) == len(marks) == length + 1
            assert 0.2 < marks[:-2].mean() < 0.8
            bigrams = set()
            for before, token, counts in zip(ids.tolist(), ids[1:-2].tolist(), marks[1:-2].tolist(), strict=False):
                assert not counts or (before, token) in bigrams
                bigrams.add((before, token))


def test_a_copied_passage_comes_over_and_over_and_holds_no_special_id(phrases):
    rng = np.random.default_rng(2)
    for _ in range(20):
        ids, marks = copy_document(64, phrases, rng)
        size = int(np.argmax(marks))
        assert len(ids) == len(marks) == 65
        assert 8 <= size <= 32
        assert ids[:63].max() < 256
        np.testing.assert_array_equal(ids[size:63], ids[: 63 - size])
        assert marks[size:-1].all()


def test_text_counts_by_the_share_that_was_asked_for(phrases):
    text = np.arange(20_000) + 10_000
    ids, marks = needle_document(text, 20_000, phrases, 0.25, np.random.default_rng(3))
    assert marks[ids >= 10_000].mean() == pytest.approx(0.25, abs=0.02)
