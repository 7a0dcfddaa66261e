"""Is a text worth learning from? Published rules, as bounds on what is counted in it. Pure; numpy.

- For prose those of Gopher (Rae et al. 2021, arXiv:2112.11446, A.1.1), for pages of the web also those of C4 (Raffel et
  al. 2020, arXiv:1910.10683), for code two of Codex and StarCoder (arXiv:2107.03374, arXiv:2305.06161).
- A text is measured window by window (64K characters, cut at a line's end) and the counts are added up. So a book costs
  as much per character as a page, memory does not grow with it, and a rule that was made for pages says of a book what
  it says of its pages.
- Words are what spaces separate. Scripts without spaces have none, so rules on words are not applied to them; the stop
  words are English, and asked of English alone.
- The first rule that fails, in the order of `_CHECKS`, is the reason; its measure and its threshold are the detail.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

import numpy as np

from ringworld.data.repetition import DUPLICATE_NGRAMS, TOP_NGRAMS, WINDOW, repetition
from ringworld.data.words import words
from ringworld.errors import UserError

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))  # Gopher's

_KNOWN = 0x30000  # code points above are rare, and taken for signs
_SPACE, _ALPHA, _ALPHANUMERIC = 1, 2, 4
_BULLETS = np.array([ord(sign) for sign in "-*\u2013\u2022\u2023\u25aa\u25cf\u25e6"], np.uint32)
_DOT, _ELLIPSIS, _NEWLINE = ord("."), ord("\u2026"), ord("\n")
_SENTENCE_END = re.compile(r"""[.!?]["'\u2019\u201d)\]]*(?=\s|\Z)""")
_UNSPACED_SHARE = 0.3  # of the words: above it a text has a script without spaces


@dataclass(frozen=True)
class Rules:
    """Bounds of a document that is kept; None: no such rule. `GOPHER` has the published ones. Shares are of 1.

    words: fewest and most. mean_word: characters, least and most. hashes, ellipses: most for each word. bullet_lines,
    ellipsis_lines: most of the lines that begin with a bullet, that end in an ellipsis. words_with_letters: the least
    share. stop_words: how many of the eight must be there.
    duplicate_*, top_ngrams (of 2, 3, 4 words), duplicate_ngrams (of 5 to 10): the most that may be repeated, see
    `ringworld.data.repetition`; of the characters, and for duplicate_lines and duplicate_paragraphs of their number.
    C4's, for pages of the web: sentences: the fewest; no_braces: no `{`; no_lorem_ipsum.
    For code: mean_line: most characters; alphanumeric: the least share of the characters.
    """

    words: tuple[int, int | None] | None = None
    mean_word: tuple[float, float] | None = None
    hashes: float | None = None
    ellipses: float | None = None
    bullet_lines: float | None = None
    ellipsis_lines: float | None = None
    words_with_letters: float | None = None
    stop_words: int | None = None
    duplicate_lines: float | None = None
    duplicate_line_characters: float | None = None
    duplicate_paragraphs: float | None = None
    duplicate_paragraph_characters: float | None = None
    top_ngrams: tuple[float, float, float] | None = None
    duplicate_ngrams: tuple[float, float, float, float, float, float] | None = None
    sentences: int | None = None
    no_braces: bool = False
    no_lorem_ipsum: bool = False
    mean_line: float | None = None
    alphanumeric: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            for bound in value if isinstance(value, tuple) else (value,):
                if bound is not None and bound < 0:
                    raise UserError(f"{field.name}={value}: bounds are 0 or more, or null for no such rule")


GOPHER = Rules(
    words=(50, 100_000),
    mean_word=(3.0, 10.0),
    hashes=0.1,
    ellipses=0.1,
    bullet_lines=0.9,
    ellipsis_lines=0.3,
    words_with_letters=0.8,
    stop_words=2,
    duplicate_lines=0.30,
    duplicate_line_characters=0.20,
    duplicate_paragraphs=0.30,
    duplicate_paragraph_characters=0.20,
    top_ngrams=(0.20, 0.18, 0.16),
    duplicate_ngrams=(0.15, 0.14, 0.13, 0.12, 0.11, 0.10),
)


class Failure(NamedTuple):
    """reason: the rule; detail: what was measured, and what is allowed."""

    reason: str
    detail: str


@dataclass
class Measures:
    """Counts over the windows of a text. Words are separated by spaces; lines are those that are not blank."""

    characters: int = 0
    alphanumeric: int = 0
    words: int = 0
    word_characters: int = 0
    words_with_letters: int = 0
    unspaced: int = 0  # letters of scripts without spaces that follow one another
    hashes: int = 0
    ellipses: int = 0
    lines: int = 0
    bullet_lines: int = 0
    ellipsis_lines: int = 0
    duplicate_lines: int = 0
    duplicate_line_characters: int = 0
    paragraphs: int = 0
    duplicate_paragraphs: int = 0
    duplicate_paragraph_characters: int = 0
    top_ngrams: tuple[int, ...] = (0,) * len(TOP_NGRAMS)
    duplicate_ngrams: tuple[int, ...] = (0,) * len(DUPLICATE_NGRAMS)

    @property
    def spaced(self) -> bool:
        return self.unspaced <= _UNSPACED_SHARE * (self.words + self.unspaced)


def assess(text: str, rules: Rules, language: str | None = None) -> Failure | None:
    """The first rule that the text fails; None when it keeps them all. language: ISO 639, where it is known."""
    counts = measure(text)
    for check in _CHECKS:
        if check.of_words and not counts.spaced:
            continue
        if (failure := check.failure(counts, rules)) is not None:
            return failure
    return _by_reading(text, rules, language)


def measure(text: str) -> Measures:
    """Time and memory: linear, constant."""
    counts = Measures()
    for window in windows(text):
        _count(window, counts)
    return counts


def windows(text: str) -> Iterator[str]:
    """The text in order, in parts of at most `WINDOW` characters, cut after a newline or a space where one is near."""
    begin = 0
    while begin < len(text):
        end = begin + WINDOW
        if end < len(text):
            near = max(text.rfind("\n", end - WINDOW // 2, end), 0) or max(text.rfind(" ", end - WINDOW // 2, end), 0)
            end = near + 1 if near else end
        yield text[begin:end]
        begin = end


def _count(window: str, counts: Measures) -> None:
    points = _code_points(window)
    kinds = _kinds()[points]
    spaces = (kinds & _SPACE).astype(bool)
    edges = np.diff(spaces.view(np.int8), prepend=1, append=1)
    starts, ends = np.flatnonzero(edges == -1), np.flatnonzero(edges == 1)
    letters = np.concatenate([[0], np.cumsum(kinds & _ALPHA != 0)])
    # The first and the last word of each line that has one.
    breaks = np.searchsorted(starts, np.flatnonzero(points == _NEWLINE))
    firsts = np.unique(np.concatenate([[0], breaks]))
    firsts = firsts[firsts < len(starts)]
    lasts = np.append(firsts[1:], len(starts)) - 1 if len(firsts) else firsts
    found = words(window)
    repeated = repetition(window, found)

    counts.characters += len(window)
    counts.alphanumeric += int(np.count_nonzero(kinds & _ALPHANUMERIC))
    counts.words += len(starts)
    counts.word_characters += int((ends - starts).sum())
    counts.words_with_letters += int(np.count_nonzero(letters[ends] > letters[starts]))
    counts.unspaced += int(np.count_nonzero(found.starts[1:] == found.ends[:-1]))
    counts.hashes += window.count("#")
    counts.ellipses += window.count("...") + window.count("\u2026")
    counts.lines += repeated.lines
    counts.bullet_lines += int(np.isin(points[starts[firsts]], _BULLETS).sum())
    counts.ellipsis_lines += int(_ends_in_ellipsis(points, ends[lasts]).sum())
    counts.duplicate_lines += repeated.duplicate_lines
    counts.duplicate_line_characters += repeated.duplicate_line_characters
    counts.paragraphs += repeated.paragraphs
    counts.duplicate_paragraphs += repeated.duplicate_paragraphs
    counts.duplicate_paragraph_characters += repeated.duplicate_paragraph_characters
    counts.top_ngrams = _added(counts.top_ngrams, repeated.top)
    counts.duplicate_ngrams = _added(counts.duplicate_ngrams, repeated.duplicate)


def _added(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(one, other, strict=True))


def _code_points(window: str) -> np.ndarray:
    """uint8 or uint32 [characters]."""
    if window.isascii():
        return np.frombuffer(window.encode("ascii"), np.uint8)
    points = np.frombuffer(window.encode("utf-32-le", "surrogatepass"), np.uint32)
    return np.minimum(points, _KNOWN - 1)


def _ends_in_ellipsis(points: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """bool: whether what ends at each of `ends` ends in three dots or in one sign."""
    dots = ends >= 3
    for back in (1, 2, 3):
        dots &= points[np.maximum(ends - back, 0)] == _DOT
    return dots | (points[ends - 1] == _ELLIPSIS)


@lru_cache(maxsize=1)
def _kinds() -> np.ndarray:
    """uint8 [code points]: the kinds of each, as bits."""
    kinds = np.zeros(_KNOWN, np.uint8)
    for point in range(_KNOWN - 1):  # the last stands for all above
        sign = chr(point)
        kinds[point] = _SPACE * sign.isspace() | _ALPHA * sign.isalpha() | _ALPHANUMERIC * sign.isalnum()
    return kinds


@dataclass(frozen=True)
class _Check:
    """A rule: `value` of the measures, if the rule's field is set, within bounds. of_words: needs words."""

    name: str
    bounds: Callable[[Rules], tuple[float | None, float | None]]
    value: Callable[[Measures], float]
    of_words: bool = False

    def failure(self, counts: Measures, rules: Rules) -> Failure | None:
        least, most = self.bounds(rules)
        if least is None and most is None:
            return None
        value = self.value(counts)
        if least is not None and value < least:
            return Failure(self.name, f"{value:.4g}, at least {least:g}")
        if most is not None and value > most:
            return Failure(self.name, f"{value:.4g}, at most {most:g}")
        return None


def _of(count: float, total: float) -> float:
    return count / max(total, 1)


def _nth(values: tuple[float, ...] | None, number: int) -> tuple[None, float | None]:
    return None, None if values is None else values[number]


def _top(number: int, length: int) -> _Check:
    return _Check(
        f"gopher: most frequent {length}-gram",
        lambda r: _nth(r.top_ngrams, number),
        lambda m: _of(m.top_ngrams[number], m.characters),
        True,
    )


def _repeated(number: int, length: int) -> _Check:
    return _Check(
        f"gopher: duplicate {length}-grams",
        lambda r: _nth(r.duplicate_ngrams, number),
        lambda m: _of(m.duplicate_ngrams[number], m.characters),
        True,
    )


_CHECKS = (
    _Check("gopher: number of words", lambda r: r.words or (None, None), lambda m: m.words, True),
    _Check(
        "gopher: mean word length",
        lambda r: r.mean_word or (None, None),
        lambda m: _of(m.word_characters, m.words),
        True,
    ),
    _Check("gopher: hash signs", lambda r: (None, r.hashes), lambda m: _of(m.hashes, m.words), True),
    _Check("gopher: ellipses", lambda r: (None, r.ellipses), lambda m: _of(m.ellipses, m.words), True),
    _Check("gopher: bullet lines", lambda r: (None, r.bullet_lines), lambda m: _of(m.bullet_lines, m.lines)),
    _Check("gopher: ellipsis lines", lambda r: (None, r.ellipsis_lines), lambda m: _of(m.ellipsis_lines, m.lines)),
    _Check(
        "gopher: words with letters",
        lambda r: (r.words_with_letters, None),
        lambda m: _of(m.words_with_letters, m.words),
        True,
    ),
    _Check("gopher: duplicate lines", lambda r: (None, r.duplicate_lines), lambda m: _of(m.duplicate_lines, m.lines)),
    _Check(
        "gopher: characters in duplicate lines",
        lambda r: (None, r.duplicate_line_characters),
        lambda m: _of(m.duplicate_line_characters, m.characters),
    ),
    _Check(
        "gopher: duplicate paragraphs",
        lambda r: (None, r.duplicate_paragraphs),
        lambda m: _of(m.duplicate_paragraphs, m.paragraphs),
    ),
    _Check(
        "gopher: characters in duplicate paragraphs",
        lambda r: (None, r.duplicate_paragraph_characters),
        lambda m: _of(m.duplicate_paragraph_characters, m.characters),
    ),
    *(_top(number, length) for number, length in enumerate(TOP_NGRAMS)),
    *(_repeated(number, length) for number, length in enumerate(DUPLICATE_NGRAMS)),
    _Check("code: mean line length", lambda r: (None, r.mean_line), lambda m: _of(m.characters, m.lines)),
    _Check("code: alphanumeric", lambda r: (r.alphanumeric, None), lambda m: _of(m.alphanumeric, m.characters)),
)


def _by_reading(text: str, rules: Rules, language: str | None) -> Failure | None:
    """The rules that look for something, and stop once they have seen enough of it."""
    if rules.no_braces and "{" in text:
        return Failure("c4: curly bracket", "holds a {")
    if rules.no_lorem_ipsum and any("lorem ipsum" in window.lower() for window in windows(text)):
        return Failure("c4: lorem ipsum", "holds lorem ipsum")
    if rules.sentences is not None:
        ends = sum(1 for _ in islice(_SENTENCE_END.finditer(text), rules.sentences))
        if ends < rules.sentences:
            return Failure("c4: number of sentences", f"{ends}, at least {rules.sentences}")
    if rules.stop_words is not None and language in (None, "en"):
        seen: set[str] = set()
        for window in windows(text):
            seen |= STOP_WORDS.intersection(window.lower().split())
            if len(seen) >= rules.stop_words:
                return None
        return Failure("gopher: stop words", f"{len(seen)}, at least {rules.stop_words}")
    return None
