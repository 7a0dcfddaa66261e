"""Which language a text is in, by py3langid: a naive Bayes classifier of byte n-grams, its model in the package.

A text is asked in at most 8 places of 256 characters, spread evenly. So the cost of a book is that of a page, and the
share of the places that agree tells a text in one language from a mixture.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Any, NamedTuple

UNKNOWN = "und"  # ISO 639-2 for undetermined

_PLACES = 8
_CHARACTERS = 256
_LEAST_LETTERS = 0.5  # of a place: lists of numbers would be guessed too


class Language(NamedTuple):
    """code: ISO 639-1, or 639-3 for a language that has none there; `und` for a text without letters.

    share: of the places that are in it, 0 to 1.
    """

    code: str
    share: float


def identify(text: str) -> Language:
    votes = Counter(_classifier().classify(place)[0] for place in _places(text))
    if not votes:
        return Language(UNKNOWN, 0.0)
    # Of as many votes the first in the alphabet, so that the order of the places does not count.
    code, count = min(votes.items(), key=lambda vote: (-vote[1], vote[0]))
    return Language(code, count / votes.total())


def _places(text: str) -> list[str]:
    number = max(1, min(_PLACES, len(text) // _CHARACTERS))
    step = (len(text) - _CHARACTERS) / max(1, number - 1)
    places = [text[begin : begin + _CHARACTERS] for begin in (max(0, round(step * place)) for place in range(number))]
    return [place for place in places if sum(map(str.isalpha, place)) >= _LEAST_LETTERS * len(place) > 0]


@lru_cache(maxsize=1)
def _classifier() -> Any:
    # A second and 120 MB, which only who asks for a language should pay.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)
