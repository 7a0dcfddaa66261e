"""Cleaned text: what two copies of a document have in common."""

from __future__ import annotations

import pytest

from ringworld.data.clean import clean, cut_gutenberg, unusable

HEADER = "The Project Gutenberg EBook of X, by Y\n\nThis eBook is for the use of anyone\n\n"
FOOTER = "\n\nUpdated editions will replace the previous one.\n" + "licence text\n" * 100


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("*** START OF THIS PROJECT GUTENBERG EBOOK X ***", "*** END OF THIS PROJECT GUTENBERG EBOOK X ***"),
        ("***START OF THE PROJECT GUTENBERG EBOOK X***", "***END OF THE PROJECT GUTENBERG EBOOK X***"),
        ("*** START OF THE PROJECT GUTENBERG EBOOK A VERY\nLONG TITLE ***", "End of Project Gutenberg's X, by Y"),
        ("*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*", "End of The Project Gutenberg Etext of X"),
    ],
)
@pytest.mark.parametrize("credit", ["", "Produced by A. Volunteer and\nthe Team\n\n\n"])
def test_gutenberg_headers_and_footers_are_cut(start: str, end: str, credit: str) -> None:
    book = "CHAPTER 1\n\nIt was a day.\n\nTHE END"
    assert clean(f"{HEADER}{start}\n\n{credit}{book}\n\n{end}{FOOTER}") == book


def test_a_text_that_quotes_the_markers_keeps_everything() -> None:
    text = "a\n" * 30_000 + "*** START OF THIS PROJECT GUTENBERG EBOOK X ***\n" + "b\n" * 30_000
    assert cut_gutenberg(text) == text
    code = 'MARK = "*** START OF THIS PROJECT GUTENBERG EBOOK X ***"\nrest = 1'
    assert cut_gutenberg(code) == code


def test_copies_that_differ_in_form_become_equal() -> None:
    assert clean("\ufeffcafe\u0301\r\nb\x00\x07\rc\n") == clean("caf\u00e9\nb\nc") == "caf\u00e9\nb\nc"


def test_any_string_of_json_can_be_stored_as_utf_8() -> None:
    assert clean("a\ud800b").encode() == "a\ufffdb".encode()


def test_tabs_indentation_and_two_blank_lines_stay() -> None:
    assert clean("def f():\n\treturn 1\n\n\n    x\n\n\n\n\n\ny") == "def f():\n\treturn 1\n\n\n    x\n\n\ny"


def test_reasons() -> None:
    assert unusable(clean(" \x00\n"), 10) == "empty"
    assert unusable("nine char", 10) == "too short"
    assert unusable("éééééé", 10) is None
