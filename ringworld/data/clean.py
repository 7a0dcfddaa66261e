"""A document's text made fit for training, and the reason when it is not. Pure functions of one text.

The cleaned text is what gets hashed, so two copies that differ in line endings, in a byte order mark or in the licence
that Project Gutenberg wraps around a book are the same document.
"""

from __future__ import annotations

import re
import unicodedata

# Controls, DEL and C1 (tab and newline stay), byte order marks, and halves of surrogate pairs, which no UTF-8 can hold.
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_NEWLINES = re.compile("\r\n|\r|\x85|\u2028|\u2029")
_BLANK_LINES = re.compile(r"\n[ \t]*\n(?:[ \t]*\n){2,}")

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


def clean(text: str) -> str:
    """`normalize`, and no Gutenberg wrapper, at most two blank lines in a row."""
    return _BLANK_LINES.sub("\n\n\n", cut_gutenberg(normalize(text))).strip()


def normalize(text: str) -> str:
    """Newlines as \\n, Unicode NFC, no control characters, no halves of surrogate pairs."""
    text = _NEWLINES.sub("\n", text)
    text = _SURROGATES.sub("\ufffd", _CONTROLS.sub("", text))
    return unicodedata.normalize("NFC", text)


def cut_gutenberg(text: str) -> str:
    """The book without Project Gutenberg's header, credits and licence; any other text unchanged.

    A marker counts only near its end of the text, so a document that quotes one in its middle keeps everything.
    """
    start = _GUTENBERG_START.search(text, 0, _GUTENBERG_HEADER_CHARACTERS)
    if start is None:
        return text
    text = text[start.end() :].lstrip()
    if credit := _GUTENBERG_CREDIT.match(text):
        text = text[credit.end() :].lstrip()
    end = _GUTENBERG_END.search(text, max(0, len(text) - _GUTENBERG_FOOTER_CHARACTERS))
    return text[: end.start()].rstrip() if end else text


def unusable(text: str, minimum_bytes: int) -> str | None:
    """Why a cleaned text cannot be a document (`empty`, `too short`); None when it can."""
    if not text:
        return "empty"
    # A character takes at most four bytes: encode only what may be too short.
    if len(text) < minimum_bytes and len(text.encode()) < minimum_bytes:
        return "too short"
    return None
