"""A document as chunks: disjoint, in order, together the whole text, each of about as many tokens as asked for.

- A text is cut into equal parts, and each cut moves to the best place near it: the end of a paragraph, else of a
  sentence, else of a line, else a space. So no chunk is a small rest, and none has over a quarter more than `tokens`.
- A word is never cut. In scripts without spaces each letter is a word; a run of more than 256 letters is none.
- The cuts depend on text, tokenizer and `tokens` alone: whoever cuts the same text again gets the same chunks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ringworld.data.tokenizers import Tokenizer
from ringworld.data.words import words
from ringworld.errors import UserError
from ringworld.synthesis.records import Chunk, Split

TOKENS = 1000
SPACE, LINE, SENTENCE, PARAGRAPH = range(4)

_REACH = 8  # a cut moves by at most one such part of a chunk
_LONGEST_WORD = 256
# The space after a sentence belongs to it. Chinese and Japanese put none after their marks.
_GAP = re.compile(
    r"(?P<mark>[.!?\u2026][\"')\]\u201d\u2019\u00bb*_]*)?\s+|[\u3002\uff01\uff1f]+[\u300d\u300f\u201d\uff09]*\s*"
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Messrs|Mme|Dr|Prof|St|Capt|Col|Gen|Lt|Sgt|Rev|Hon|Jr|Sr|No|Nos|Vol|Fig|vs|cf|al|ca|approx|e\.g|i\.e"
    r"|z\.B|bzw|usw)|\b[A-Z])\.$"
)


@dataclass(frozen=True)
class Span:
    """text[start:end], of about so many tokens."""

    start: int
    end: int
    tokens: int


def cut(text: str, tokenizer: Tokenizer, tokens: int = TOKENS) -> list[Span]:
    """The spans of a text's chunks; none of an empty one. UserError for `tokens` below 16."""
    if tokens < 16:
        raise UserError(f"chunk_tokens={tokens}: a chunk that a question can be asked about needs 16 or more")
    ends, kinds = _units(text, step=max(1, tokens // _REACH))
    if not len(ends):
        return []
    starts = np.append(0, ends[:-1])
    # A space is a token with the word after it: it is counted there, though the chunk before has it.
    counted = [end - (text[end - 1] == " ") for end in ends[:-1].tolist()]
    parts = zip([0, *counted], [*counted, len(text)], strict=True)
    total = np.cumsum([len(ids) for ids in tokenizer.encode_batch([text[start:end] for start, end in parts])])
    last = [*_places(total, kinds, tokens), len(ends) - 1]
    first = [0, *(place + 1 for place in last[:-1])]
    before = np.append(0, total)
    return [
        Span(int(starts[begin]), int(ends[end]), int(before[end + 1] - before[begin]))
        for begin, end in zip(first, last, strict=True)
    ]


def chunks_of(
    document: str, sha256: str, split: Split, text: str, tokenizer: Tokenizer, tokens: int = TOKENS
) -> list[Chunk]:
    """The chunks of one document (a piece, where documents have cuts), numbered from 0. UserError as for `cut`."""
    return [
        Chunk(document, sha256, number, span.start, span.end, span.tokens, split, text[span.start : span.end])
        for number, span in enumerate(cut(text, tokenizer, tokens))
    ]


def boundaries(text: str) -> Iterator[tuple[int, int]]:
    """(end, kind) of each place where a sentence, line or paragraph ends and the next begins, in order.

    Between them, not given here, lie the spaces. The end of the text is none.
    """
    for gap in _GAP.finditer(text):
        end, lines = gap.end(), gap[0].count("\n")
        if end == len(text):
            return
        if lines > 1:
            yield end, PARAGRAPH
        elif not gap[0][0].isspace() and not _abbreviated(text, gap):
            yield end, SENTENCE
        elif lines:
            yield end, LINE


def _abbreviated(text: str, gap: re.Match[str]) -> bool:
    """Whether what looks like the end of a sentence is the point of `Dr.`, or a word goes on in lower case."""
    if text[gap.end()].islower():
        return True
    return gap["mark"] == "." and _ABBREVIATION.search(text, max(0, gap.start() - 12), gap.start() + 1) is not None


def _units(text: str, step: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 ends and kinds of the smallest parts that are counted; a long one is parted at spaces, about `step` apart.

    A token has at least a character, or is a part of one, so parts of `step` characters lie closely enough.
    """
    ends: list[int] = []
    kinds: list[int] = []
    begin = 0
    for end, kind in [*boundaries(text), *([(len(text), PARAGRAPH)] if text else [])]:
        for at in _parted(text, begin, end, step):
            ends.append(at)
            kinds.append(SPACE)
        ends.append(end)
        kinds.append(kind)
        begin = end
    return np.array(ends, np.int64), np.array(kinds, np.int64)


def _parted(text: str, begin: int, end: int, step: int) -> Iterator[int]:
    """Places between begin and end where words end, at most about `step` apart."""
    while end - begin > 2 * step:
        begin = _word_end(text, begin, step)
        if begin >= end:
            return
        yield begin


def _word_end(text: str, begin: int, step: int) -> int:
    """A place after `begin`, at most `step` further where that is possible, that lies in no word."""
    space = text.rfind(" ", begin + 1, begin + step)
    if space > begin:
        return space + 1
    found = words(text[begin : begin + step + _LONGEST_WORD])
    near = found.ends[found.ends <= step]
    if len(near):
        return begin + int(near[-1])
    begun = len(found) and found.starts[0] < step
    return begin + (int(found.ends[0]) if begun else step)


def _places(total: np.ndarray, kinds: np.ndarray, tokens: int) -> list[int]:
    """After which units to cut, ascending; without the last. total: tokens up to the end of each."""
    count = -(-int(total[-1]) // tokens)
    places: list[int] = []
    for part in range(1, count):
        ideal = part * int(total[-1]) / count
        first = int(np.searchsorted(total, ideal - tokens / _REACH))
        end = int(np.searchsorted(total, ideal + tokens / _REACH, side="right"))
        near = np.arange(first, max(end, first + 1))
        best = near[kinds[near] == kinds[near].max()]
        place = int(best[np.argmin(np.abs(total[best] - ideal))])
        if place < len(total) - 1 and (not places or place > places[-1]):
            places.append(place)
    return places
