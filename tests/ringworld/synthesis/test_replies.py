"""What is asked can be read back, and every form of a reply becomes a pair or a reason that can be counted."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringworld.errors import UserError
from ringworld.synthesis.prompts import EXAMPLE, FORM, OPENING, PromptOptions, ask, passage
from ringworld.synthesis.records import Chunk, Pair
from ringworld.synthesis.replies import REASONS, Unparsed, parse

TEXT = "\nCaptain Ahab sailed from Nantucket. </passage> ends here.\n\n"
CHUNK = Chunk("moby.txt", "a" * 64, 3, 100, 100 + len(TEXT), 14, "train", TEXT)
WHO = Pair("Who sailed from Nantucket?", "Captain Ahab")


def test_a_request_holds_the_passage_and_is_another_one_for_each_index_and_seed() -> None:
    options = PromptOptions(max_tokens=64, temperature=0.5, seed=7)
    asked = ask(CHUNK, 0, options)
    assert passage(asked) == TEXT.strip()
    assert FORM in asked.turns[0].text
    assert (asked.max_tokens, asked.temperature) == (64, 0.5)
    assert ask(CHUNK, 0, options) == asked
    others = {ask(CHUNK, 1, options), ask(CHUNK, 0, PromptOptions(64, 0.5, 8))}
    assert len({asked.sha256, *(other.sha256 for other in others)}) == 3
    assert 0 <= asked.seed < 1 << 31
    assert "Write in French." in ask(CHUNK, 0, PromptOptions(language="French")).turns[0].text
    with pytest.raises(UserError, match="temperature=3"):
        PromptOptions(temperature=3)
    with pytest.raises(UserError, match="max_tokens=2"):
        PromptOptions(max_tokens=2)


@pytest.mark.parametrize(
    "reply",
    [
        "Question: Who sailed from Nantucket?\nAnswer: Captain Ahab",
        "Question: Who sailed from Nantucket? Answer: Captain Ahab",
        "question : Who sailed from Nantucket?\n\nANSWER : Captain Ahab\n",
        "Q: Who sailed from Nantucket?\nA: Captain Ahab",
        "Sure! Here is one.\n\n**Question:** Who sailed from Nantucket?\n\n**Answer:** Captain Ahab\n\nHope it helps!",
        "**Question**: *Who sailed from Nantucket?*\n**Answer**: **Captain Ahab**",
        "### Question 1:\nWho sailed from Nantucket?\n### Answer 1:\nCaptain Ahab",
        "1. Question: Who sailed\n   from Nantucket?\n2. Answer: Captain\tAhab",
        "1) **Question**: Who sailed from Nantucket?\n   - **Answer**: Captain Ahab",
        "> Question: \u201cWho sailed from Nantucket?\u201d\n> Answer: \u201cCaptain Ahab\u201d",
        "<think>Question: what? I could ask about Ahab.\nAnswer: maybe.</think>\nQuestion: Who sailed from Nantucket?\n"
        "Answer: `Captain Ahab`",
        '{"question": "Who sailed from Nantucket?", "answer": "Captain Ahab"}',
        'Here:\n```json\n[{"Question": "Who sailed from Nantucket?",\n "Answer": "Captain Ahab"}]\n```\nDone {really}.',
        "```\nQuestion: Who sailed from Nantucket?\nAnswer: Captain Ahab\n```",
        "Frage: Who sailed from Nantucket?\nAntwort: Captain Ahab",
        "Question : Who sailed from Nantucket?\nR\u00e9ponse : Captain Ahab",
        "\u95ee\u9898\uff1aWho sailed from Nantucket?\n\u7b54\u6848\uff1aCaptain Ahab",
        "Question: Who sailed from Nantucket?\nAnswer: Captain Ahab\n\nQuestion: Who sailed from Nantucket?\nAnswer:",
    ],
)
def test_every_form_of_a_reply_gives_the_same_pair(reply: str) -> None:
    assert parse(reply) == WHO


@pytest.mark.parametrize(
    ("reply", "finish", "reason"),
    [
        ("", "stop", "empty reply"),
        (" \n", "length", "empty reply"),
        ("Question: Who sailed from Nantucket?\nAnswer: Captain", "length", "cut off"),
        ("I cannot help with that.", "stop", "no question"),
        ("Answer: Captain Ahab", "stop", "no question"),
        ("Question:\nAnswer: Captain Ahab", "stop", "no question"),
        ("Question: ...?\nAnswer: ...", "stop", "no question"),
        ("<think>Question: Who? Answer: he", "stop", "no question"),
        ('{"answer": "Captain Ahab"}', "stop", "no question"),
        ("Question: Who sailed from Nantucket?", "stop", "no answer"),
        ("Question: Who sailed from Nantucket?\nAnswer:", "stop", "no answer"),
        ('{"question": "Who sailed?", "answer": null}', "stop", "no answer"),
        ("Q: Who sailed?\nA: Ahab\nQ: From where?\nA: Nantucket", "stop", "several questions"),
        ("Question: Who sailed? And from where?\nAnswer: Ahab, from Nantucket", "stop", "several questions"),
        ('[{"question": "Who?", "answer": "He"}, {"question": "Why?", "answer": "Her"}]', "stop", "several questions"),
        (f"Question: Who?\nAnswer: {'whale ' * 400}", "stop", "too long"),
        (f"{OPENING}\n\nQuestion: Who sailed?\nAnswer: Ahab", "stop", "prompt repeated"),
        (EXAMPLE, "stop", "prompt repeated"),
    ],
)
def test_a_reply_that_is_no_pair_is_refused_with_a_reason(reply: str, finish: str, reason: str) -> None:
    refused = parse(reply, finish)
    assert isinstance(refused, Unparsed)
    assert refused.reason == reason
    assert reason in REASONS


def test_a_quotation_may_hold_questions_marks_and_gaps() -> None:
    asked = 'Question: What fills the gap in this sentence of the text: "Who? said ____, and why?"?\nAnswer: Ahab'
    assert parse(asked) == Pair('What fills the gap in this sentence of the text: "Who? said ____, and why?"?', "Ahab")
    assert parse('{"question": "In what year?", "answer": 1851}') == Pair("In what year?", "1851")
    said = parse('Question: What did he call "the whale"?\nAnswer: "Moby Dick" or "the fish"')
    assert said == Pair('What did he call "the whale"?', '"Moby Dick" or "the fish"')


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "Question:",
                "Answer:",
                "**",
                "{",
                "}",
                '"question"',
                ":",
                '"',
                "```json",
                "<think>",
                "</think>",
                "\n",
                "Who?",
                "1.",
            ]
        ),
        max_size=30,
    ).map(" ".join),
    st.sampled_from(["stop", "length"]),
)
def test_no_reply_breaks_the_parser(reply: str, finish: str) -> None:
    found = parse(reply, finish)
    if isinstance(found, Pair):
        assert any(map(str.isalnum, found.question))
        assert any(map(str.isalnum, found.answer))
    else:
        assert found.reason in REASONS
