"""Questions without a model: of prose and of code, read back by the parser, and kept by our own rules."""

from __future__ import annotations

import inspect
import textwrap

import pytest

from ringworld.data.tokenizers import ByteTokenizer
from ringworld.synthesis.chunks import chunks_of
from ringworld.synthesis.extractive import GAP, write
from ringworld.synthesis.records import Pair
from ringworld.synthesis.replies import parse
from ringworld.synthesis.verify import Rules, verify

PROSE = """The Pequod had been three days out of Nantucket, and nobody had seen the old man. In the cabin Starbuck was
reading the log of 1838, which his wife had given him when they parted. When Captain Boomer of the Enderby came aboard
they drank to the white whale, and the mate wrote all of it down."""


def asked(text: str, seed: int) -> Pair:
    pair = parse(write(text, seed))
    assert isinstance(pair, Pair)
    return pair


def test_a_sentence_of_the_text_is_asked_for_the_name_that_it_lacks() -> None:
    found = {asked(PROSE, seed).answer for seed in range(60)}
    assert found == {"Pequod", "Nantucket", "Starbuck", "1838", "Captain Boomer", "Enderby"}
    plain = " ".join(PROSE.split())
    for seed in range(10):
        pair = asked(PROSE, seed)
        assert pair == asked(PROSE, seed)
        quoted = pair.question.split('"')[1]
        assert quoted.count(GAP) == 1
        assert quoted.replace(GAP, pair.answer) in plain


def test_of_code_a_line_is_asked_for_a_name_of_a_thing() -> None:
    code = textwrap.dedent(
        """
        def read_documents(place: str, rows: int = 64) -> Iterator[list[Document]]:
            with open_to_read(place) as opened:
                yield from batches(opened, rows, columns=wanted)
        """
    )
    found = {asked(code, seed).answer for seed in range(40)}
    assert "read_documents" in found
    assert "open_to_read" not in found  # too little is left of its line to find it by
    question = next(asked(code, seed).question for seed in range(40) if asked(code, seed).answer == "read_documents")
    assert question == (
        "What fills the gap in this line of the text: "
        f"`def {GAP}(place: str, rows: int = 64) -> Iterator[list[Document]]:`?"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "the sea was calm and nobody said a word to the others that night. " * 5,
        "x = 1\ny = 2\n",
        "#### ----\n" * 40,
    ],
)
def test_a_chunk_with_nothing_to_ask_for_gets_no_question(text: str) -> None:
    assert write(text, 0) == ""


def test_a_sentence_that_says_the_name_twice_is_not_asked() -> None:
    text = "The men of the Pequod were proud of the Pequod and of nothing else on the sea that year."
    assert write(text, 0) == ""


def test_the_question_is_in_the_language_of_the_text() -> None:
    german = (
        "Im Hafen von Bremen lag damals ein altes Schiff, das niemand mehr kaufen wollte. Der Kapit\u00e4n hatte es "
        "nach dem Sturm von 1838 verlassen und war in die Berge gezogen, wo er bis zu seinem Ende wohnte. "
    )
    assert asked(german, 1).question.startswith("Was f\u00fcllt die L\u00fccke in diesem Satz des Textes: ")


def test_our_own_source_gets_questions_that_our_own_rules_keep() -> None:
    """Of a module's docstrings and code, in chunks of about the tiny curriculum's size."""
    import ringworld.data.packing
    import ringworld.data.words

    asked_about = kept = 0
    for module in (ringworld.data.packing, ringworld.data.words):
        for chunk in chunks_of(module.__name__, "a" * 64, "train", inspect.getsource(module), ByteTokenizer(), 800):
            pair = parse(write(chunk.text, chunk.number))
            if isinstance(pair, Pair):
                asked_about += 1
                kept += verify(chunk, pair, Rules()).kept
    assert asked_about >= 15
    assert kept >= 0.9 * asked_about
