"""What is asked in a conversation, what the true answer says, and how deep in the prompt it is given.

A token store keeps no record of what a question was made from, so the depth of an answer is looked up. The text that a
conversation gives is what comes before its first question: its first turn up to the last blank line, which is how
questions about a text are put. Where the answer's words stand there, from 0 at the prompt's beginning to 1 at the
question, is its depth; of several places it is the one whose surroundings share most words with the question, of equals
the last. An answer that is not given in these words has no depth, and neither has one where no text is given.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ringworld.data.tokenizers import Tokenizer

_AROUND = 200  # characters before and after an answer that are compared with its question
_SHOWN = 300  # characters of a question, and of the text around an answer
_EDGES = string.whitespace + string.punctuation
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Passage:
    """question: as the template writes it, its end where it is long. depth: 0..1, None where it is not known.

    excerpt: what stands around the answer's place; the end of the text that is given, where it has none.
    """

    question: str
    truth: str
    depth: float | None
    excerpt: str


def passages(
    ids: np.ndarray, answers: Sequence[tuple[int, int]], tokenizer: Tokenizer, ends: frozenset[int]
) -> Iterator[Passage]:
    """Of each answer of a conversation, given as (start, stop) in its ids [tokens]. ends: ids that end an answer."""
    text, before, end = "", 0, 0  # before: characters of the turns that are over
    for turn, (start, stop) in enumerate(answers):
        given = tokenizer.decode(ids[end:start])
        truth = tokenizer.decode([token for token in ids[start:stop].tolist() if token not in ends])
        if turn == 0:
            text, question = _divided(given)
        else:
            question = given
        at = place_of(truth, text, question)
        depth = None if at is None else at / (before + len(given) - len(question))
        yield Passage(_end_of(question.strip()), truth.strip(), depth, _excerpt(text, at))
        before, end = before + len(given) + len(truth), stop


def place_of(answer: str, text: str, question: str) -> int | None:
    """The character of `text` at which the answer's words stand; None where they do not. See the module's rule."""
    said = answer.strip(_EDGES).split()
    if not said:
        return None
    pattern = re.compile(r"(?<!\w)" + r"\s+".join(map(re.escape, said)) + r"(?!\w)", re.IGNORECASE)
    wanted = _telling(question)
    best, most = None, -1
    for found in pattern.finditer(text):
        around = text[max(0, found.start() - _AROUND) : found.end() + _AROUND]
        shared = len(wanted & _telling(around))
        if shared >= most:
            best, most = found.start(), shared
    return best


def _divided(given: str) -> tuple[str, str]:
    """A first turn as the text that it gives, and the question."""
    at = given.rstrip().rfind("\n\n")
    return (given[: at + 2], given[at + 2 :]) if at >= 0 else ("", given)


def _telling(text: str) -> set[str]:
    """Words that tell passages apart: the longer ones."""
    found = {word.lower() for word in _WORD.findall(text)}
    return {word for word in found if len(word) > 3} or found


def _excerpt(text: str, at: int | None) -> str:
    if at is None:
        return _end_of(text.strip())
    first = max(0, at - _SHOWN * 2 // 3)
    return text[first : first + _SHOWN].strip()


def _end_of(text: str) -> str:
    return text if len(text) <= _SHOWN else f"…{text[-_SHOWN:]}"
