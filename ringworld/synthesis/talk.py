"""Conversations made from a document's own words, without a model: what it says of itself, asks and answers.

A document is a text, a file of source code, or a package whose files stand under headings of their paths (see
`ringworld.data.readers`). Of Python source docstrings are asked for, of prose its dialogue and its questions are taken.
Pure and deterministic: text in, conversations out, with the places of their words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ringworld.data.conversations import digest
from ringworld.data.sources import kind_of
from ringworld.synthesis import dialogue, docstrings
from ringworld.synthesis.exchanges import Conversation, TalkRules, grouped

# The headings that `ringworld.data.readers` puts over the files of a package.
_HEADING = re.compile(r"(?:\A|(?<=\n\n))# ((?:[^\s/#]+/)*[^\s/#]+\.\w{1,8}|[^\s#]+/(?:METADATA|PKG-INFO))\n\n")
_PIECE = re.compile(r"#\d+$")
_PYTHON = (".py", ".pyi")


def talks(text: str, document: str, rules: TalkRules) -> list[Conversation]:
    """At most `rules.per_document` conversations, in the order of the text; no two the same.

    document: its name, by whose suffix source code is told from prose. Of more than asked for, those of the smallest
    hashes stay, so that they come from all parts of the document.
    """
    found: dict[str, Conversation] = {}
    for conversation in _all(text, document, rules):
        found.setdefault(digest(conversation.turns), conversation)
    chosen = set(sorted(found)[: rules.per_document])
    kept = [conversation for key, conversation in found.items() if key in chosen]
    return sorted(kept, key=lambda conversation: conversation.exchanges[0].start)


def files_of(text: str, document: str) -> Iterator[tuple[str, int, int]]:
    """(path, start, end) of each file in a document, in characters; the whole of one that is no package."""
    headings = list(_HEADING.finditer(text))
    if not headings:
        # A module's name is that of its file, where nothing says in which folder its package begins.
        parts = _PIECE.sub("", document).split("/")
        yield "/".join(parts[-2:] if parts[-1].startswith("__init__.") else parts[-1:]), 0, len(text)
        return
    ends = [*(heading.start() for heading in headings[1:]), len(text)]
    for heading, end in zip(headings, ends, strict=True):
        yield heading[1], heading.end(), end


def _all(text: str, document: str, rules: TalkRules) -> Iterator[Conversation]:
    seen: set[str] = set()
    for path, start, end in files_of(text, document):
        part = text[start:end]
        if path.endswith(_PYTHON):
            found = docstrings.exchanges(part, path, start, rules, seen)
            for conversation in grouped("docstrings", found, rules.exchanges):
                first, *rest = conversation.exchanges
                yield Conversation("docstrings", (docstrings.opened(first, path), *rest))
        elif kind_of(path) != "code":
            for run in dialogue.dialogues(part, start, rules):
                yield Conversation("dialogue", tuple(run))
            for run in dialogue.questions(part, start, rules):
                yield from grouped("questions", run, rules.exchanges)
