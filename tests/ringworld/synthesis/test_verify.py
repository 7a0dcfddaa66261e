"""A pair is kept when its chunk supports the answer and only the chunk can answer; every rule has its reason."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ringworld.data.words import words
from ringworld.errors import UserError
from ringworld.synthesis.records import Chunk, Pair
from ringworld.synthesis.verify import REASONS, Holders, Rules, anchors, near_duplicates, stands_in, verify

TEXT = """The old captain of the Pequod was called Ahab, and he had lost his leg to a whale in 1838. "Where is the
boat?" asked Starbuck, the chief mate, who had come from Nantucket with his
wife\u2019s blessing. The mates of the ship, Stubb and Flask, were laughing at the cook. It was a very cold evening in
the old December, and they all went below to eat the soup. The harpooneers had rubbed the iron with oil and sharpened
it on the grindstone before they slept."""


def chunk(text: str, number: int = 0) -> Chunk:
    return Chunk("moby.txt", "a" * 64, number, 0, len(text), 100, "train", text)


def verdict(question: str, answer: str) -> tuple[str, str]:
    found = verify(chunk(TEXT), Pair(question, answer), Rules())
    assert found.kept == (found.reason == "")
    assert found.kept or (found.reason in REASONS and found.detail and found.start is None)
    return found.reason, "" if found.start is None or found.end is None else TEXT[found.start : found.end]


@pytest.mark.parametrize(
    ("question", "answer", "stands"),
    [
        ("Who was the captain of the Pequod?", "Ahab", "Ahab"),
        ("In which year did Ahab lose his leg?", "1838.", "1838"),
        # Case, line ends, quotation marks and the shape of an apostrophe decide nothing.
        ("What did Starbuck come from Nantucket with?", "HIS wife's 'blessing'", "his\nwife\u2019s blessing"),
        ("Who laughed at the cook of the Pequod?", "Stubb  and Flask", "Stubb and Flask"),
        # In other words: what says something stands in one stretch.
        (
            "What did the harpooneers of the Pequod do with the iron?",
            "they rubbed it with oil and they sharpened the iron on a grindstone",
            "rubbed the iron with oil and sharpened\nit on the grindstone",
        ),
        ("What month was it when the mates ate soup?", "December", "December"),
    ],
)
def test_a_supported_answer_is_kept_and_told_where_it_stands(question: str, answer: str, stands: str) -> None:
    assert verdict(question, answer) == ("", stands)


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("Who is Ahab?", "the captain", "question too short"),
        (f"Who is Ahab, {'and who is he, ' * 20} and what is he?", "the old captain", "question too long"),
        ("Who was the captain of the Pequod?", "he was " + "the old captain " * 20, "answer too long"),
        ("Tell me who commanded the Pequod.", "Ahab", "no question mark"),
        ("Was Ahab the captain of the Pequod?", "Yes", "answer says nothing"),
        ("Who was called Ahab by the mates?", "he", "answer says nothing"),
        ("Who was called Ahab by the mates?", "...", "answer says nothing"),
        ("Who was the cook of the Pequod?", "Fleece", "not supported"),
        # A number must stand there, however much of the rest does.
        (
            "What happened to the captain of the Pequod?",
            "the captain called Ahab had lost his leg to a whale in 1851",
            "not supported",
        ),
        # All words are in the chunk, but far from each other.
        ("What did Stubb do at the grindstone?", "the captain called for soup and grindstone", "not supported"),
        ("Who was the captain called Ahab?", "captain Ahab", "answer in the question"),
        ("What does the author say about the mates in the passage?", "laughing at the cook", "refers to the passage"),
        ("What did they all go below to eat?", "the soup", "no name or number"),
        ("\u00bfQui\u00e9n era el capit\u00e1n del viejo barco llamado Pequod?", "Ahab", "other language"),
    ],
)
def test_what_fails_a_rule_is_dropped_with_its_reason(question: str, answer: str, reason: str) -> None:
    assert verdict(question, answer) == (reason, "")


def test_what_makes_a_name() -> None:
    assert anchors(TEXT) == {"pequod", "ahab", "1838", "starbuck", "nantucket", "stubb", "flask", "december"}
    # Words in capitals everywhere, first words of sentences, of speech and of lines, and function words are none.
    told = 'CHAPTER ONE IN WHICH HE SAILS\n\nThe End. "Never," he said. Whales, a Whale, the whale. I and I, Nor.\nSea'
    assert anchors(told) == {"end"}
    code = "def read_index(path, is_open=True):\n    return TokenIndex(path, x1).rows"
    assert anchors(code) == {"read_index", "is_open", "tokenindex", "x1"}
    assert anchors("When Mr. Casaubon met Dr. Lydgate") >= {"casaubon", "lydgate"}


def test_a_quotation_or_a_rare_word_anchors_a_question_too() -> None:
    plain = "In the passage, what did they do after \u201cit was a very cold evening in\u201d it?"
    assert verdict(plain, "they all went below") == ("", "they all went below")
    asked = Pair("What were the harpooneers rubbing it with?", "with oil")
    others = [
        chunk(f"The mates went below to eat soup in the {place}.", n) for n, place in enumerate(["cabin"] * 40, 1)
    ]
    holders = Holders.of([chunk(TEXT), *others])
    assert verify(chunk(TEXT), asked, Rules()).reason == "no name or number"
    assert verify(chunk(TEXT), asked, Rules(), holders).kept
    common = Holders.of([chunk(TEXT), *(chunk(f"{TEXT} {n}", n) for n in range(1, 41))])
    assert verify(chunk(TEXT), asked, Rules(), common).reason == "no name or number"
    assert verify(chunk(TEXT), asked, replace(Rules(), rare=0.0), holders).reason == "no name or number"
    # Where every word stands in few chunks, none is rare.
    assert verify(chunk(TEXT), asked, Rules(), Holders.of([chunk(TEXT)])).reason == "no name or number"


def test_rules_for_names_and_languages_hold_only_where_they_can_be_judged() -> None:
    chinese = (
        "\u8001\u8239\u957f\u53eb\u4e9a\u54c8\uff0c\u4ed6\u5728\u6d77\u4e0a\u5931\u53bb\u4e86\u4e00\u6761\u817f\u3002"
        * 5
    )
    asked = Pair("\u8001\u8239\u957f\u53eb\u4ec0\u4e48\u540d\u5b57\uff1f", "\u4e9a\u54c8")
    assert verify(chunk(chinese), asked, Rules()).kept
    spanish = Pair("\u00bfQui\u00e9n era el capit\u00e1n del viejo barco llamado Pequod?", "Ahab")
    assert verify(chunk(TEXT), spanish, Rules(same_language=False)).kept
    # Too short to tell its language.
    assert verify(chunk(TEXT), Pair("Ahab est de quel navire?", "Pequod"), Rules()).kept


def test_where_words_stand_is_found_word_for_word() -> None:
    text = words("One two three two three four")
    assert stands_in(text, words("two, three FOUR")).tolist() == [3]
    assert stands_in(text, words("Two three")).tolist() == [1, 3]
    assert len(stands_in(text, words("three two four"))) == 0
    assert len(stands_in(text, words(""))) == 0
    assert len(stands_in(words("one"), words("one two"))) == 0


def test_of_an_answer_that_stands_often_the_place_that_the_question_is_about_is_told() -> None:
    men = "The men of Ahab slept. The dog of Ahab barked at the moon. The wife of Ahab wept. The sea was calm."
    for asked, at in (("Whose dog barked at the moon?", 1), ("Whose wife was it that wept?", 2)):
        found = verify(chunk(men), Pair(asked, "Ahab"), Rules())
        assert found.start == [place for place in range(len(men)) if men.startswith("Ahab", place)][at]


def test_of_near_duplicate_questions_the_first_stays() -> None:
    rng = np.random.default_rng(0)
    pool = [f"w{n}" for n in range(400)]
    different = [f"What is {' '.join(rng.choice(pool, 9))} in the end?" for _ in range(300)]
    questions = [
        *(
            "Who was the old captain of the Pequod at that time?",
            *different,
            "WHO was the old captain of the Pequod, at that time",
        ),
        *(
            "Who was the old captain of the Rachel at that time?",
            "Who was the old captain of the Pequod at that time now?",
        ),
    ]
    found = near_duplicates(questions, Rules())
    last = len(questions) - 1
    assert {n: int(of) for n, of in enumerate(found) if of >= 0} == {last - 2: 0, last: 0}
    assert near_duplicates([], Rules()).tolist() == []
    assert near_duplicates(["Who?", "Who?", "?", "!"], Rules()).tolist()[:2] == [-1, 0]
    again = near_duplicates(questions[::-1], Rules())
    assert np.flatnonzero(again >= 0).tolist() == [2, last]  # who stays is who comes first
    assert set(again[again >= 0].tolist()) == {0}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"question_words": (9, 3)}, r"question_words=\[9,3\]"),
        ({"support": 0.0}, "support=0.0"),
        ({"similar": 1.5}, r"similar=1\.5"),
        ({"rare": 1.0}, r"rare=1\.0"),
        ({"quoted": 0}, "quoted=0"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        replace(Rules(), **wrong)
