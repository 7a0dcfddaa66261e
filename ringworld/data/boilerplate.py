"""What surrounds a text and is no part of it, cut: each function gives a text without one kind of boilerplate.

- `gutenberg`: the header, the credits and the licence that Project Gutenberg wraps around a book.
- `pages`: page numbers and running headers that a scan left between the lines; a sentence they cut in two is joined.
- `license_headers`: comments of source code that state a copyright and a licence.
- `web_lines`: menus, notices on cookies and other lines of a page of the web that are no sentences, by C4's rules
  (Raffel et al. 2020, arXiv:1910.10683).

All ask for more than one sign, since what is cut wrongly is lost: a text that quotes a marker keeps it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, pairwise
from typing import NamedTuple

# The title inside the stars may wrap over lines. Before 2003 the small print ended in *END*.
_GUTENBERG_START = re.compile(
    r"^\*{3} ?START OF (?:THE|THIS) PROJECT GUTENBERG EBOOK[^*]{0,400}\*{3}[^\n]*$"
    r"|^\*END\*? ?THE SMALL PRINT![^\n]*\*END\*[^\n]*$",
    re.MULTILINE | re.IGNORECASE,
)
_GUTENBERG_END = re.compile(
    r"^\*{3} ?END OF (?:THE|THIS) PROJECT GUTENBERG EBOOK|^End of (?:the |this )?Project Gutenberg(?:'s|\u2019s|\b)",
    re.MULTILINE | re.IGNORECASE,
)
_GUTENBERG_CREDIT = re.compile(r"(?:Produced by|E-text prepared by|Transcribed (?:by|from))[^\n]*(?:\n[^\n]+)*")
_GUTENBERG_HEADER_CHARACTERS = 40_000
_GUTENBERG_FOOTER_CHARACTERS = 40_000
GUTENBERG_LICENSE = "Project Gutenberg License"

# A line that is a number, or a few words with a number before or after them; digits stand nowhere else in it.
_NUMBERED = re.compile(
    r"\W{0,6}([0-9]{1,4})[\])}>\-\u2013\u2014. \t]{0,6}([^0-9]{0,60})"
    r"|([^0-9]{1,60}?)[ \t\[(\-\u2013\u2014]{1,6}([0-9]{1,4})\W{0,3}"
)
_NUMBER_AT_AN_END = (re.compile(r"\n[^\w\n]{0,6}[0-9]"), re.compile(r"[0-9][^\w\n]{0,3}(?=\n|\Z)"))
_NUMBERED_CHARACTERS = 80  # of such a line
_INLINE_PAGE = re.compile(r"\[(?:Pg|Page|pg|p\.) ?[0-9ivxlc]{1,6}\] ?")
_SENTENCE_END = (".", "!", "?", ":", ";", '"', "'", ")", "]", "\u2019", "\u201d", "\u2026", "\u3002", "*", "_")
_LEAST_PAGES = 8
_LEAST_HEADERS = 3
_IN_ORDER, _STEP = 0.8, 4  # of the page numbers this share follows the one before within so many pages
_IN_SENTENCES = 0.25  # and this share of them stands in the middle of a sentence, where no heading would
_HEADER_CHARACTERS = 80
_REACH = 4 * _HEADER_CHARACTERS  # in which the lines next to a place are looked for

_LICENSE = re.compile(
    r"SPDX-License-Identifier|Copyright (?:\([cC]\)|\u00a9|[12]\d{3})|Licensed under the "
    r"|Permission is hereby granted|Redistribution and use in source|is free software[:;,] you can redistribute"
)
_SPDX = re.compile(r"SPDX-License-Identifier:[ \t]*([A-Za-z0-9.+\-]+(?: (?:AND|OR|WITH) [A-Za-z0-9.+\-]+)*)")
_COMMENT = re.compile(r"[ \t]*(#+|//+|--+|;+|%+|!+|/\*|\*)")
_MOST_COMMENT_LINES = 60

_WEB_END = (".", "?", "!", '"', "'", "\u201d", "\u2019", "\u3002", "\uff01", "\uff1f", "\u061f", "\u0964")
_WEB_NOTICES = (
    "javascript",
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
_WEB_LEAST_WORDS = 3
_UNSPACED_LINE = 10  # characters without a space, not ASCII: a sentence of a script that uses none


def gutenberg(text: str) -> str:
    """A marker counts only near its end of the text, so a document that quotes one in its middle keeps everything."""
    start = _GUTENBERG_START.search(text, 0, _GUTENBERG_HEADER_CHARACTERS)
    if start is None:
        return text
    begin = _after_space(text, start.end())
    if credit := _GUTENBERG_CREDIT.match(text, begin):
        begin = _after_space(text, credit.end())
    end = _GUTENBERG_END.search(text, max(begin, len(text) - _GUTENBERG_FOOTER_CHARACTERS))
    return text[begin : end.start() if end else len(text)].rstrip()


def _after_space(text: str, place: int) -> int:
    while text[place : place + 1].isspace():
        place += 1
    return place


class _Numbered(NamedTuple):
    """A line with a page number, if that is what it is. words: without the number. [start, end): with its newline."""

    number: int
    words: str
    start: int
    end: int


def pages(text: str) -> str:
    """Numbered lines go when there are many of the same words, in order, and many of them interrupt a sentence."""
    text = _INLINE_PAGE.sub("", text)
    groups: dict[str, list[_Numbered]] = defaultdict(list)
    for line in _numbered(text):
        groups[line.words].append(line)
    found = sorted(line for group in groups.values() if _are_pages(text, group) for line in group)
    if not found:
        return text
    return _without(text, [*((line.start, line.end) for line in found), *_running_headers(text, found)])


def _numbered(text: str) -> list[_Numbered]:
    lines: dict[int, _Numbered] = {}
    for pattern in _NUMBER_AT_AN_END:
        for near in pattern.finditer(text):
            end = text.find("\n", near.end())
            end = len(text) if end < 0 else end
            start = text.rfind("\n", 0, near.end())
            if start < 0 or start in lines or end - start > _NUMBERED_CHARACTERS:
                continue
            if match := _NUMBERED.fullmatch(text, start + 1, end):
                number, after, before, last = match.groups()
                words = (after or before or "").strip(" \t-\u2013\u2014.[]()").lower()
                lines[start] = _Numbered(int(number or last), words, start, end)
    return [lines[start] for start in sorted(lines)]


def _are_pages(text: str, group: list[_Numbered]) -> bool:
    steps = [after.number - before.number for before, after in pairwise(group)]
    return (
        len(group) >= _LEAST_PAGES
        and sum(1 <= step <= _STEP for step in steps) >= _IN_ORDER * len(steps)
        and sum(_in_sentence(text, line.start, line.end) for line in group) >= _IN_SENTENCES * len(group)
    )


def _in_sentence(text: str, start: int, end: int) -> bool:
    """Whether [start, end) stands in a sentence: none ends before it, and one of the two lines after it goes on."""
    before = text[max(0, start - _REACH) : start].rstrip()
    if not before or before.endswith(_SENTENCE_END):
        return False
    after = (line.lstrip() for line in text[end : end + _REACH].split("\n"))
    return any(line[0].islower() for line in islice(filter(None, after), 2))


def _running_headers(text: str, found: Iterable[_Numbered]) -> Iterator[tuple[int, int]]:
    """The lines next to page numbers that say the same again and again."""
    beside = [span for line in found for span in _neighbours(text, line.start, line.end)]
    counts = Counter(text[start:end].strip().lower() for start, end in beside)
    for start, end in beside:
        words = text[start:end].strip()
        if len(words) <= _HEADER_CHARACTERS and counts[words.lower()] >= _LEAST_HEADERS:
            yield start, end


def _neighbours(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The lines before and after that are not blank, each with the newline before it."""
    before = text[max(0, start - _REACH) : start].rstrip()
    last = max(0, start - _REACH) + len(before)
    if (begin := text.rfind("\n", 0, last)) >= 0 and begin < last:
        yield begin, last
    after = text[end : end + _REACH]
    first = end + len(after) - len(after.lstrip())
    if first > end and (stop := text.find("\n", first, end + _REACH)) >= 0:
        yield text.rfind("\n", 0, first), stop


def _without(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """The text without these lines; where they stood in a sentence, also without the blank lines around them."""
    parts, done = [], 0
    for start, end in _merged(text, spans):
        if _in_sentence(text, start, end):
            parts.append(text[done:start].rstrip() + "\n")
            done = _after_space(text, end)
        else:
            parts.append(text[done:start])
            done = end
    return "".join([*parts, text[done:]])


def _merged(text: str, spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """In order, with neighbours that only blank lines part as one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(set(spans)):
        if merged and (start <= merged[-1][1] or not text[merged[-1][1] : start].strip()):
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def license_headers(text: str) -> str:
    """Whole comments only, of at most 60 lines; what states a licence outside of a comment is a text about it."""
    parts, done = [], 0
    for match in _LICENSE.finditer(text):
        if match.start() < done:
            continue
        comment = _comment_around(text, match.start())
        if comment and comment[0] >= done and text.count("\n", *comment) <= _MOST_COMMENT_LINES:
            parts.append(text[done : comment[0]])
            done = comment[1]
    return "".join([*parts, text[done:]]) if parts else text


def license_of(text: str) -> str | None:
    """What the text says of its own licence: an SPDX expression, or Project Gutenberg's."""
    if found := _SPDX.search(text, 0, _GUTENBERG_HEADER_CHARACTERS):
        return found[1]
    return GUTENBERG_LICENSE if _GUTENBERG_START.search(text, 0, _GUTENBERG_HEADER_CHARACTERS) else None


def _comment_around(text: str, place: int) -> tuple[int, int] | None:
    """The comment, with its last newline, that holds the line of this place."""
    start = text.rfind("\n", 0, place) + 1
    sign = _COMMENT.match(text, start)
    if sign is None or sign.end() > place:
        return None
    if sign[1] in ("/*", "*"):
        begin, end = text.rfind("/*", 0, place), text.find("*/", place)
        if begin < 0 or end < 0 or text.find("*/", begin, place) >= 0:
            return None
        return begin, _line_end(text, end)
    while start and (above := text.rfind("\n", 0, start - 1) + 1) < start and _is_comment(text, above, sign[1][0]):
        start = above
    end = _line_end(text, place)
    while end < len(text) and _is_comment(text, end, sign[1][0]):
        end = _line_end(text, end)
    return start, end


def _is_comment(text: str, start: int, sign: str) -> bool:
    """Whether the line begins so; `#!` and the encoding are no comments to those who run the file."""
    line = text[start : min(_line_end(text, start), start + 200)].lstrip(" \t")
    return line.startswith(sign) and not line.startswith("#!") and "coding:" not in line[:20]


def _line_end(text: str, place: int) -> int:
    return text.find("\n", place) + 1 or len(text)


def web_lines(text: str) -> str:
    """C4's lines: that end as a sentence does, of three words or more, that do not speak of cookies or scripts."""
    kept = [line for line in text.split("\n") if not line.strip() or _is_sentence(line.strip())]
    return "\n".join(kept)


def _is_sentence(line: str) -> bool:
    if not line.endswith(_WEB_END) or line.endswith("..."):
        return False
    unspaced = len(line) >= _UNSPACED_LINE and " " not in line and not line.isascii()
    if len(line.split(None, _WEB_LEAST_WORDS)) < _WEB_LEAST_WORDS and not unspaced:
        return False
    lower = line.lower()
    return not any(notice in lower for notice in _WEB_NOTICES)


CUTS: dict[str, Callable[[str], str]] = {
    "gutenberg": gutenberg,
    "pages": pages,
    "license_headers": license_headers,
    "web_lines": web_lines,
}
