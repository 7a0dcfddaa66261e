"""Chunks are the whole text, about equally long, and end where a reader would pause; never inside a word."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringworld.data.tokenizers import ByteTokenizer, train_bpe
from ringworld.data.words import words
from ringworld.errors import UserError
from ringworld.synthesis.chunks import Span, boundaries, chunks_of, cut
from tests.ringworld.corpus import prose

BYTES = ByteTokenizer()


def parts(text: str, tokens: int) -> list[str]:
    return [text[span.start : span.end] for span in cut(text, BYTES, tokens)]


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "whale ",
                "Ahab. ",
                "Who? ",
                "sea\n",
                "end.\n\n",
                "\n",
                " ",
                "x" * 90,
                "\u9be8\u9c7c\u3002",
                "-" * 40,
                "\u00e9",
            ]
        ),
        max_size=80,
    ),
    st.sampled_from([16, 50, 300]),
)
def test_chunks_are_the_whole_text_in_order_and_cut_no_word(pieces: list[str], tokens: int) -> None:
    text = "".join(pieces)
    spans = cut(text, BYTES, tokens)
    assert "".join(text[span.start : span.end] for span in spans) == text
    assert all(span.end > span.start for span in spans)
    assert [before.end for before in spans[:-1]] == [after.start for after in spans[1:]]
    assert sum(span.tokens for span in spans) == len(text.encode())
    found = words(text)
    for span in spans[1:]:
        inside = (found.starts < span.start) & (span.start < found.ends)
        assert not (inside & (found.ends - found.starts <= 256)).any()


def test_a_cut_is_at_a_paragraph_else_a_sentence_else_a_line_else_a_space() -> None:
    sentence = "The whale sailed north with him. "
    paragraphs = "\n\n".join([(sentence * 3).strip()] * 29)
    assert all(part.endswith("\n\n") for part in parts(paragraphs, 810)[:-1])
    sentences = "\n".join([sentence.strip().replace(" north", "\nnorth")] * 37)
    assert all(part.endswith("him.\n") for part in parts(sentences, 390)[:-1])
    lines = "\n".join(["the whale sailed north"] * 40)
    assert all(part.endswith("\n") for part in parts(lines, 300)[:-1])
    spaces = "the whale sailed north " * 40
    assert all(part.endswith(" ") for part in parts(spaces, 300)[:-1])
    assert len(parts(spaces, 300)) == 4


def test_the_point_of_an_abbreviation_ends_no_sentence() -> None:
    text = 'Mr. J. Starbuck met Dr. Bunger, e.g. at 3. "Who?" he said. "Nobody." Then 3.5 hours went by... and so on.'
    ends = [text[:end].rstrip()[-9:] for end, _ in boundaries(text)]
    assert ends == ["ger, e.g. at 3."[-9:], " he said.", '"Nobody."']


def test_what_has_no_spaces_is_cut_between_letters_of_such_scripts_and_in_runs_that_are_no_words() -> None:
    chinese = "\u9be8\u9c7c\u6e38\u5411\u5317\u65b9" * 100
    sizes = [len(part) for part in parts(chinese, 300)]
    assert len(sizes) == 6
    assert max(sizes) <= 125
    blob = "f" * 5000
    assert max(len(part) for part in parts(blob, 1000)) <= 1250
    ruled = parts(("-" * 90 + "ab") * 30, 160)
    assert 110 <= min(map(len, ruled)) <= max(map(len, ruled)) <= 200
    word = "f" * 200
    assert parts(f"a {word} b", 64) == ["a ", f"{word} b"] or word in "|".join(parts(f"a {word} b", 64))


def test_chunks_are_about_equally_long_and_none_is_a_rest() -> None:
    text = prose(1, 1700)
    tokenizer = train_bpe([text], 400)
    total = len(tokenizer.encode(text))
    spans = cut(text, tokenizer, 1000)
    tokens = np.array([span.tokens for span in spans])
    assert len(spans) == -(-total // 1000)
    assert 700 <= tokens.min() <= tokens.max() <= 1250
    real = [len(tokenizer.encode(text[span.start : span.end])) for span in spans]
    assert np.abs(tokens - real).max() <= 4
    assert cut(text, tokenizer, 1000) == spans


def test_chunks_carry_where_they_are_from() -> None:
    text = prose(2, 40)
    chunks = chunks_of("book.txt#2", "ab" * 32, "held_out", text, BYTES, 200)
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    assert {(chunk.document, chunk.sha256, chunk.split) for chunk in chunks} == {("book.txt#2", "ab" * 32, "held_out")}
    assert all(text[chunk.start : chunk.end] == chunk.text for chunk in chunks)
    assert all(before.end == after.start for before, after in pairwise(chunks))
    assert cut("", BYTES) == []
    assert cut("Short.", BYTES) == [Span(0, 6, 6)]
    with pytest.raises(UserError, match="chunk_tokens=4"):
        cut(text, BYTES, 4)
