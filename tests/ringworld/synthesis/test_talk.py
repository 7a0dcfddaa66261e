"""Conversations say what the document says, where they say it is; a reader would call them conversations."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringworld.data.conversations import parse
from ringworld.errors import UserError
from ringworld.synthesis.docstrings import first_paragraph
from ringworld.synthesis.exchanges import Conversation, TalkRules
from ringworld.synthesis.talk import files_of, talks

RULES = TalkRules()

DECODER = '''"""Implementation of a decoder.

More about it.
"""
import re


class Decoder:
    """Simple decoder \u2013 with *né* in it

    Performs the following translations.
    """

    def __init__(self, hook: int = 3, *, strict=True) -> None:
        """Never asked: its class is."""

    def decode(self, text, _w=None) -> object:
        """Return the Python representation of
        ``text`` by :class:`~json.Scanner`.

        :param text: what is decoded.
        """

    @property
    def depth(self):
        """How deep the decoder is at present."""

    @staticmethod
    def make(a, /, b):
        """Makes a decoder of two things.

        Args:
            a: one
        """

    def _private(self):
        """Not for anyone to ask about."""


def dash(mark="né"): """Puts a dash between the two."""


def test_decode():
    """A test is no documentation."""


async def fetch(url, *urls, timeout: float = 1.5, **kw):
    """Fetches all of the urls:

    - the first
    """


def plain():
    """TODO: say what it does at some time."""
'''
PACKAGE = f"""# demo/METADATA

Name: demo

## Why another decoder?

Because the others
are too slow.

## Usage?

    code

# demo/decoder.py

{DECODER}

# demo/broken.py

def f(:
    \"\"\"This one cannot be parsed.\"\"\"


# demo/__init__.py

'''The demo of a package, in short.'''

def again():
    '''Return the Python representation of `text` by `json.Scanner`.'''
"""


def said(conversation: Conversation) -> list[tuple[str, str]]:
    return [(exchange.question, exchange.answer) for exchange in conversation.exchanges]


def words(conversation: Conversation, text: str) -> list[str]:
    return [text[start:end] for start, end in ((e.start, e.end) for e in conversation.exchanges)]


def test_a_package_is_talked_about_file_by_file() -> None:
    text = PACKAGE.strip()
    assert [path for path, _, _ in files_of(text, "installed:demo")] == [
        "demo/METADATA", "demo/decoder.py", "demo/broken.py", "demo/__init__.py",
    ]  # fmt: skip
    metadata, decoder, package = talks(text, "installed:demo", TalkRules(exchanges=12))
    assert said(metadata) == [("Why another decoder?", "Because the others are too slow.")]
    assert (metadata.kind, decoder.kind, package.kind) == ("questions", "docstrings", "docstrings")

    answers = {question: answer for question, answer in said(decoder) if not answer.startswith("`")}
    assert list(answers.values()) == [
        "Implementation of a decoder.",
        "Simple decoder \u2013 with *né* in it.",
        "Return the Python representation of `text` by `json.Scanner`.",
        "How deep the decoder is at present.",
        "Makes a decoder of two things.",
        "Puts a dash between the two.",
    ]
    names = ["`demo.decoder`", "`Decoder`", "`Decoder.decode`", "`Decoder.depth`", "`Decoder.make`", "`dash`"]
    assert all(name in question for name, question in zip(names, answers, strict=True))
    calls = dict.fromkeys(answer for _, answer in said(decoder) if answer.startswith("`"))
    possible = {
        "`dash(mark='né')`",
        "`Decoder(hook: int=3, *, strict=True)`",
        "`decode(text, _w=None) -> object`",
        "`make(a, /, b)`",
    }
    assert calls
    assert set(calls) <= possible
    # The same answer is given once in a document.
    assert [answer for _, answer in said(package)] == ["The demo of a package, in short."]


def test_the_places_of_answers_are_where_their_words_stand() -> None:
    text = PACKAGE.strip()
    _, decoder, package = talks(text, "installed:demo", TalkRules(exchanges=12))
    for (_, answer), place in zip(said(decoder), words(decoder, text), strict=True):
        if answer.startswith("`"):
            assert place.startswith("def ")
            assert answer[1 : answer.index("(")] in ("Decoder", place[4 : place.index("(")])
            assert place.rstrip().endswith(":")
        else:
            assert place.startswith('"""')
            assert place.endswith('"""')
            assert answer.split()[0] in place
    assert words(package, text) == ["'''The demo of a package, in short.'''"]


def test_a_conversation_about_a_module_names_it_and_is_of_bounded_length() -> None:
    source = "\n\n".join(f'def name{n}(a):\n    """Returns the number {n} of the things."""' for n in range(20))
    found = talks(source, "/src/deep/shapes.py#2", TalkRules(exchanges=4))
    sizes = [len(conversation.exchanges) for conversation in found]
    assert sum(sizes) > 20
    assert max(sizes) == 4
    assert min(sizes) >= 3
    for conversation in found:
        first, *others = said(conversation)
        assert first[0].startswith("In `shapes`, ")
        assert not any("`shapes`" in question for question, _ in others)
    few = talks(source, "/src/deep/shapes.py#2", TalkRules(exchanges=4, per_document=3))
    assert len(few) == 3
    assert [conversation for conversation in found if conversation in few] == few


def test_source_that_is_nested_too_deep_makes_no_talk() -> None:
    told = '    """Says what it does, to the end."""'
    assert talks(f"def f(a):\n{told}", "a.py", RULES)
    for depth in (700, 5000):
        assert talks(f"def f(a={'+'.join('1' * depth)}):\n{told}", "a.py", RULES) == []
    assert talks(f"def f(a={'(' * 500}:\n{told}", "a.py", RULES) == []


NOVEL = (
    """The sea was calm.

“Have ye clapped eye on Captain Ahab?” asked the old man,
with a look.

“Who is _Captain_ Ahab, sir?”

“Aye, aye,” said he, “I thought so. He is
the Captain.”

“I am mistaken then,” I said. “I thought so.”

“Too long to go on with.” """
    + ("He walked. " * 20)
    + """

“And this is no reply?”

The wind rose.

“A statement opens nothing.”

“Is this the question, then?”

“A speech that goes on below

“in a second paragraph.”

“What is not closed?” he said, “and goes on

“That is no reply.”

The wind fell.

"What is not closed?" he said, "and goes on

"That is no reply."

  “A block quote?” asked one.

“That is no dialogue.”

"Straight quotes too?" he cried.

"Yes," said she; "why not?"
"""
)


def test_dialogue_is_what_is_spoken_by_turns() -> None:
    first, second = talks(NOVEL, "moby.txt", RULES)
    assert {first.kind, second.kind} == {"dialogue"}
    assert said(first) == [
        ("Have ye clapped eye on Captain Ahab?", "Who is Captain Ahab, sir?"),
        ("Aye, aye, I thought so. He is the Captain.", "I am mistaken then. I thought so."),
    ]
    assert words(first, NOVEL)[0].startswith("“Have ye")
    assert words(first, NOVEL)[0].endswith("sir?”")
    assert said(second) == [("Straight quotes too?", "Yes, why not?")]


def test_long_dialogues_are_cut_where_another_question_opens() -> None:
    lines = [f"“Is it number {n} of them?”\n\n“It is number {n}.”" for n in range(10)]
    found = talks("\n\n".join(lines), "a.txt", TalkRules(exchanges=4))
    assert [len(conversation.exchanges) for conversation in found] == [4, 4, 2]


FAQ = """Introduction

Q: How is it installed?
A: By the usual command,
which takes a minute.

Q2. What does it need?

A2. Nothing at all.

**Can it be undone?**

Not that anybody knows.

Is there more?
--------------

- a list
- no prose

### What about `x = {1: 2}` then? ###

{"a": 1, "b": [2, 3]}.
"""


def test_questions_with_their_answers_are_found_in_all_their_forms() -> None:
    [found] = talks(FAQ, "faq.md", RULES)
    assert found.kind == "questions"
    assert said(found) == [
        ("How is it installed?", "By the usual command, which takes a minute."),
        ("What does it need?", "Nothing at all."),
        ("Can it be undone?", "Not that anybody knows."),
    ]
    assert words(found, FAQ)[0] == "Q: How is it installed?\nA: By the usual command,\nwhich takes a minute."
    assert talks(FAQ, "faq.c", RULES) == []


@pytest.mark.parametrize(
    ("docstring", "told"),
    [
        ("\n    Title\n    =====\n\n    Says what it does.\n    ", "Says what it does."),
        ("name(a, b) -> c\n\nReturns what there is to return.", "Returns what there is to return."),
        ("Returns the value of it\n    :param x: any", "Returns the value of it."),
        ("Runs it now or later.\n>>> run()", "Runs it now or later."),
        ("Too short.", None),
        ("See the other one for that.", None),
        ("What follows is a list of things:", None),
        ("0x00 0x01 0x02 0x03 == {}", None),
        ("", None),
    ],
)
def test_the_first_paragraph_is_told_only_where_it_tells(docstring: str, told: str | None) -> None:
    assert first_paragraph(docstring) == told


def test_an_answer_is_cut_after_a_sentence() -> None:
    rules = TalkRules(answer_characters=(2, 40))
    assert rules.answer("One of them. Two (of them). Three of them. Four.") == "One of them. Two (of them)."
    assert rules.answer("A single sentence, of e.g. many words, that does not end in time.") is None
    with pytest.raises(UserError, match=r"answer_characters=\[5, 4\]"):
        TalkRules(answer_characters=(5, 4))
    with pytest.raises(UserError, match="exchanges=0"):
        TalkRules(exchanges=0)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.sampled_from(['"', "“", "”", "Who is it?", "No.", "\n", "\n\n", " ", "# a/b.py\n\n", "def f():\n", "  ",
                         "Q: ", "A: ", '"""', "What is this thing?", "é", "## "]), max_size=40,
    ),
    st.sampled_from(["a.txt", "b.py", "installed:x", ""]),
)  # fmt: skip
def test_every_text_gives_conversations_that_can_be_trained_on(parts: list[str], document: str) -> None:
    text = "".join(parts)
    for conversation in talks(text, document, RULES):
        record = {"messages": [{"role": turn.role, "content": turn.text} for turn in conversation.turns]}
        assert parse(record) == conversation.turns
        spans = [(exchange.start, exchange.end) for exchange in conversation.exchanges]
        assert all(0 <= start < end <= len(text) for start, end in spans)
        assert talks(text, document, RULES) == talks(text, document, RULES)
