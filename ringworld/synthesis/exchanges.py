"""Questions with answers that a document's own words make, and the conversations that they form."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ringworld.data.conversations import Turn
from ringworld.errors import UserError

Kind = Literal["docstrings", "dialogue", "questions"]

_SENTENCE = re.compile(r"[.!?][\"'\u2019\u201d)\]`*]*(?=\s+[\"'\u2018\u201c(\[`*]?[A-Z0-9])")
_LINE_BREAKS = re.compile(r"\s+")


@dataclass(frozen=True)
class TalkRules:
    """per_document: conversations at most. exchanges: questions with answers at most, of one conversation.

    question_characters, answer_characters: least and most. A longer answer is cut after a sentence, a longer question
    is none.
    """

    per_document: int = 24
    exchanges: int = 6
    question_characters: tuple[int, int] = (12, 400)
    answer_characters: tuple[int, int] = (2, 600)

    def __post_init__(self) -> None:
        for name in ("per_document", "exchanges"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: 1 or more")
        for name in ("question_characters", "answer_characters"):
            least, most = getattr(self, name)
            if not 1 <= least <= most:
                raise UserError(f"{name}={[least, most]}: give the least and the most, 1 or more")

    def is_question(self, text: str) -> bool:
        least, most = self.question_characters
        return least <= len(text) <= most

    def answer(self, text: str) -> str | None:
        """An answer of the length asked for: the text, or as many of its first sentences as fit; None where none do."""
        least, most = self.answer_characters
        if len(text) > most:
            ends = [found.end() for found in _SENTENCE.finditer(text, 0, most + 2) if found.end() <= most]
            text = text[: ends[-1]] if ends else ""
        return text if len(text) >= least else None


@dataclass(frozen=True)
class Exchange:
    """A question and its answer. start, end: the characters of the document's text that it is made of."""

    question: str
    answer: str
    start: int
    end: int


@dataclass(frozen=True)
class Conversation:
    kind: Kind
    exchanges: tuple[Exchange, ...]

    @property
    def turns(self) -> tuple[Turn, ...]:
        return tuple(
            turn
            for exchange in self.exchanges
            for turn in (Turn("user", exchange.question), Turn("assistant", exchange.answer))
        )


def grouped(kind: Kind, exchanges: list[Exchange], most: int) -> Iterator[Conversation]:
    """Exchanges that belong together, as conversations of nearly equal length, each of at most `most` of them."""
    if not exchanges:
        return
    count = -(-len(exchanges) // most)
    edges = [len(exchanges) * number // count for number in range(count + 1)]
    for start, end in pairwise(edges):
        yield Conversation(kind, tuple(exchanges[start:end]))


def unwrapped(text: str) -> str:
    """A paragraph without its line breaks."""
    return _LINE_BREAKS.sub(" ", text).strip()
