"""What surrounds a text is cut, and what only looks like it stays."""

from __future__ import annotations

import random

import pytest

from ringworld.data.boilerplate import GUTENBERG_LICENSE, gutenberg, license_headers, license_of, pages, web_lines

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
    text = f"{HEADER}{start}\n\n{credit}{book}\n\n{end}{FOOTER}"
    assert gutenberg(text) == book
    assert license_of(text) == GUTENBERG_LICENSE


def test_a_text_that_quotes_the_markers_keeps_everything() -> None:
    text = "a\n" * 30_000 + "*** START OF THIS PROJECT GUTENBERG EBOOK X ***\n" + "b\n" * 30_000
    assert gutenberg(text) == text
    code = 'MARK = "*** START OF THIS PROJECT GUTENBERG EBOOK X ***"\nrest = 1'
    assert gutenberg(code) == code


def novel(lines: int = 1200) -> list[str]:
    """Lines of a novel: sentences that run over several of them, and paragraphs."""
    rng = random.Random(0)
    made: list[str] = []
    for line in range(lines):
        words = [rng.choice(("the", "whale", "sea", "and", "a", "ship", "was", "far")) for _ in range(11)]
        made.append(" ".join(words) + ("." if line % 10 == 9 else ""))
        if line % 10 == 9:
            made.append("")
    return made


def printed(style: str) -> str:
    """The novel in pages, as a scan gives it."""
    lines, made = novel(), []
    for page, begin in enumerate(range(0, len(lines), 32), 17):
        made += lines[begin : begin + 32]
        even, odd = f"{page} THE VOYAGE", f"CHAPTER OF THE SEA     {page}"
        made += {
            "bare": ["", str(page), ""],
            "dashes": ["", f"- {page} -", "", "THE VOYAGE", ""],
            "words": [f"Page {page}"],
            "header": [even if page % 2 else odd],
        }[style]
    return "\n".join(made)


@pytest.mark.parametrize("style", ["bare", "dashes", "words", "header"])
def test_page_numbers_and_running_headers_are_cut_and_sentences_joined(style: str) -> None:
    found = pages(printed(style))
    assert found.split() == "\n".join(novel()).split()
    paragraphs = [part for part in "\n".join(novel()).split("\n\n") if part.strip()]
    assert len([part for part in found.split("\n\n") if part.strip()]) == len(paragraphs)


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(f"Chapter {number}" for number in range(1, 40)) + "\n" + "\n".join(novel()),  # contents
        "\n\n".join(f"{number}\n\nA sonnet stands here.\nIt has a second line." for number in range(1, 60)),
        "\n".join(f"{year} was a year of war" for year in range(1801, 1860)),
        "\n".join(f"Hamlet.\nWords, words, words {line}, my lord" for line in range(50)),
        "1\n2\n3\n4\n5\n6\n7\n8\n9\n10",
    ],
)
def test_chapters_sonnets_years_and_tables_keep_their_numbers(text: str) -> None:
    assert pages(text) == text


def test_marks_of_pages_inside_lines_are_cut() -> None:
    assert pages("the [Pg 12] whale [Page xii] swam") == "the whale swam"


LICENSED = """#!/usr/bin/env python
# Copyright 2018 The Authors.
#
# Licensed under the Apache License, Version 2.0
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

import os  # Copyright (c) in a line of code stays
# a comment on what follows
"""


def test_comments_that_state_a_license_are_cut() -> None:
    kept = "#!/usr/bin/env python\n\nimport os  # Copyright (c) in a line of code stays\n# a comment on what follows\n"
    assert license_headers(LICENSED) == kept
    assert license_of(LICENSED) == "Apache-2.0 WITH LLVM-exception"
    block = "/*\n * Copyright (c) 2020 X\n * Permission is hereby granted\n */\nint x; /* mine */\n"
    assert license_headers(block) == "int x; /* mine */\n"
    package = (
        "# a/b.py\n\n# Copyright 2019 X\n# All rights reserved.\n\nx = 1\n\n# c.c\n\n// Copyright 2020 Y\nint y;\n"
    )
    assert license_headers(package) == "# a/b.py\n\n\nx = 1\n\n# c.c\n\nint y;\n"


def test_a_text_about_licenses_stays() -> None:
    for text in (
        "Licensed under the Apache License, Version 2.0, this program\nmay be copied.",
        'TEXT = """Copyright 2018"""\n',
        "# Copyright 2018\n" + "# a chapter of a long comment\n" * 100,
    ):
        assert license_headers(text) == text
        assert license_of(text) is None


def test_of_a_page_of_the_web_its_sentences_stay() -> None:
    page = "Home\nAbout us\n\nThe whale swam on.\n\nWe use cookies to improve this page.\nRead more...\nOh no!\n"
    page += "Please enable JavaScript to see this.\n“And it was so,” she said.\n话说天下大势，分久必合，合久必分。"  # noqa: RUF001
    lines = [line for line in web_lines(page).split("\n") if line]
    assert lines[:2] == ["The whale swam on.", "“And it was so,” she said."]
    assert len(lines) == 2 + 1
