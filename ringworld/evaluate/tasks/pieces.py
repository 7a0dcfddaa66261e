"""Text in pieces that a prompt is filled with, and needles put between them.

A piece is a word with the space or newline after it, so that a prompt can be filled to the word. A needle stands only
where a sentence or a line ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_CLOSING = "\"')]\N{RIGHT DOUBLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}"

Count = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True, eq=False)
class Pieces:
    """texts: the pieces. breaks: bool [pieces], whether a needle may stand before each. tokens: float [pieces], about
    how many each takes."""

    texts: Sequence[str]
    breaks: np.ndarray
    tokens: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def per(self) -> float:
        return float(self.tokens.mean()) if len(self) else 1.0


@dataclass(frozen=True)
class Placed:
    """A text with needles in it: each as (begin, end) in characters, in the order given."""

    text: str
    needles: tuple[tuple[int, int], ...]


def pieces_of(texts: Sequence[str], breaks: np.ndarray, count: Count) -> Pieces:
    """With the tokens of each, which are counted once for every different piece."""
    names = list(dict.fromkeys(texts))
    # A word is nearly always tokenized with the space before it.
    costs = dict(zip(names, count([f" {name.strip()}" for name in names]).tolist(), strict=True))
    return Pieces(texts, breaks, np.array([costs[text] for text in texts], np.float64))


def words_of(text: str) -> tuple[list[str], np.ndarray]:
    """A text's words, each with a space after it; and bool [words], whether a sentence begins with each."""
    words = text.split()
    ends = np.array([word.rstrip(_CLOSING).endswith((".", "!", "?")) for word in words], bool)
    return [f"{word} " for word in words], np.concatenate([np.ones(1, bool), ends[:-1]]) if words else ends


def lines_of(line: str, count: int, end: str = "\n") -> tuple[list[str], np.ndarray]:
    """The first `count` words of a line said again and again, `end` after each; and where a line begins."""
    words = line.split()
    made = [f"{word} " for word in words[:-1]] + [words[-1] + end]
    repeats = -(-count // len(words))
    return (made * repeats)[:count], np.arange(count) % len(words) == 0


def nearest_break(pieces: Pieces, used: int, depth: float) -> int:
    """The place 0..used, measured in tokens, that is nearest to a depth of the first `used` pieces."""
    before = np.concatenate([np.zeros(1), np.cumsum(pieces.tokens[:used])])
    places = np.flatnonzero(pieces.breaks[:used]) if used else np.zeros(1, np.int64)
    return int(places[np.argmin(np.abs(before[places] - depth * before[-1]))]) if len(places) else 0


def any_breaks(pieces: Pieces, used: int, count: int, rng: np.random.Generator) -> list[int]:
    """So many places, ascending; different ones while there are enough."""
    places = np.flatnonzero(pieces.breaks[:used]) if used else np.zeros(1, np.int64)
    return sorted(rng.choice(places, count, replace=len(places) < count).tolist())


def place(pieces: Pieces, used: int, needles: Sequence[tuple[int, str]], gap: str = " ") -> Placed:
    """The first `used` pieces with each needle (place, text) before the piece there, and `gap` after it.

    Needles of one place keep their order.
    """
    parts: list[str] = []
    spans: dict[int, tuple[int, int]] = {}
    length = begin = 0
    for number in sorted(range(len(needles)), key=lambda number: needles[number][0]):
        at, needle = needles[number]
        stretch = "".join(pieces.texts[begin:at])
        parts += [stretch, needle, gap]
        length, begin = length + len(stretch), at
        spans[number] = (length, length + len(needle))
        length += len(needle) + len(gap)
    text = "".join([*parts, *pieces.texts[begin:used]])
    # What follows the last piece, or needle, is the prompt's own.
    return Placed(text[:-1] if text[-1:].isspace() else text, tuple(spans[number] for number in range(len(needles))))
