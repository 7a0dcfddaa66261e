"""Common words and frequent words (RULER, appendix B): what stands most often in a list as long as the prompt?"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ringworld.data.conversations import Turn
from ringworld.evaluate.tasks import wording
from ringworld.evaluate.tasks.task import Ask, Draft, Growth, Refused, Scored
from ringworld.evaluate.tasks.vocabulary import PAIRS, list_words

_WORDS, _ORDER, _EXAMPLE = range(3)  # purposes of random numbers
_SHORT = 4096  # RULER's lists repeat their words less below this length
_COMMON = 10


@dataclass(frozen=True)
class Repeats:
    """How often the common words and the others stand in a list."""

    common: int
    others: int


@dataclass(frozen=True, eq=False)
class CommonWords:
    """A numbered list in which ten words stand 30 times and the others 3 times (6 and 1 below 4,096 tokens).

    The list grows by one place at a time, so the last word may stand there less often than the others. worked: whether
    a shorter list with its answer stands before the question, as in RULER; lm-eval leaves it out.
    """

    name: str = "cwe"
    worked: bool = True
    room: int = 120
    scored: Scored = "all"
    placed: bool = False

    def growth(self, ask: Ask) -> Growth:
        short = ask.length < _SHORT
        repeats = Repeats(6, 1) if short else Repeats(30, 3)
        shown, shown_repeats = (20, Repeats(3, 1)) if short else (40, Repeats(10, 3))
        # A place takes three tokens at the least: a number, a dot and a word.
        most = min(ask.length // 3, (PAIRS - _COMMON) * repeats.others)
        # Which words, decided once for the longest list, so that a longer one only adds to a shorter one.
        words = list_words(_COMMON + -(-most // repeats.others), ask.rng(_WORDS))
        before = ""
        if self.worked:
            other = list_words(shown, ask.rng(_EXAMPLE))
            places = (shown - _COMMON) * shown_repeats.others
            example = self._list(other, places, shown_repeats, ask.rng(_EXAMPLE, _ORDER))
            before = f"{example} {wording.COUNTED_COMMON} {_numbered(other[:_COMMON])}\n"

        def draft(pieces: int) -> Draft:
            said = before + self._list(words, pieces, repeats, ask.rng(_ORDER))
            return Draft((Turn("user", said),), wording.COUNTED_COMMON, tuple(words[:_COMMON]), "")

        # A place is a number of up to seven digits and a word.
        per = float(ask.prompting.count([f" {most}. {word}" for word in words[:64]]).mean())
        return Growth(draft, repeats.others, max(repeats.others, most), per)

    def _list(self, words: Sequence[str], places: int, repeats: Repeats, rng: np.random.Generator) -> str:
        others = [words[_COMMON + place // repeats.others] for place in range(places)]
        whole = [*list(words[:_COMMON]) * repeats.common, *others]
        return wording.COUNT_COMMON.format(context=_numbered([whole[place] for place in rng.permutation(len(whole))]))


@dataclass(frozen=True, eq=False)
class FrequentWords:
    """Made-up words of six letters whose counts fall with the square of their rank (Zipf, alpha 2); the first is `...`,
    the next three are asked for."""

    name: str = "fwe"
    room: int = 50
    scored: Scored = "all"
    placed: bool = False

    def growth(self, ask: Ask) -> Growth:
        words = coded_words(max(ask.length // 50, 8), ask.rng(_WORDS))

        def draft(pieces: int) -> Draft:
            counts = zipf_counts(pieces, len(words))
            whole = [word for word, count in zip(words, counts.tolist(), strict=True) for _ in range(count)]
            order = ask.rng(_ORDER).permutation(len(whole))
            said = wording.COUNT_FREQUENT.format(context=" ".join(whole[place] for place in order.tolist()))
            return Draft((Turn("user", said),), wording.COUNTED_FREQUENT, tuple(words[1:4]), "")

        least = next((n for n in range(1, ask.length) if _is_clear(zipf_counts(n, len(words)))), 0)
        if not least:
            raise Refused(
                f"{self.name} at {ask.length}: three words cannot be told to stand most often in so short a list"
            )
        # Dots are a token or three, other words several.
        per = float(ask.prompting.count([f" {word}" for word in words[:8]]).mean())
        return Growth(draft, least, max(least, ask.length), per)


def coded_words(count: int, rng: np.random.Generator) -> list[str]:
    """The vocabulary by rank: `...`, then different made-up words."""
    found: dict[str, None] = {"...": None}
    while len(found) < count:
        found.setdefault("".join(string.ascii_lowercase[i] for i in rng.integers(26, size=6)))
    return list(found)


def zipf_counts(words: int, vocabulary: int) -> np.ndarray:
    """int64 [vocabulary]: the whole part of words k^-2 / zeta(2), for the ranks k = 1, 2, ..."""
    ranks = np.arange(1, vocabulary + 1, dtype=np.float64)
    return (words * ranks**-2 / (math.pi**2 / 6)).astype(np.int64)


def _is_clear(counts: np.ndarray) -> bool:
    return bool((np.diff(counts[1:5]) < 0).all())


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, start=1))
