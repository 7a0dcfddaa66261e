"""Needles: RULER's eight kinds, a pass key, and LWM's several cities of which some are asked.

RULER (arXiv 2404.06654, appendix B) plants `One of the special magic numbers for KEY is: VALUE.` and varies what stands
around it (repeated noise, essays, or needles with other keys), what keys and values are, how many keys there are, how
many values each has and how many are asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ringworld.data.conversations import Turn
from ringworld.evaluate.needle import CITIES
from ringworld.evaluate.tasks import wording
from ringworld.evaluate.tasks.haystack import Haystack
from ringworld.evaluate.tasks.pieces import (
    Count,
    Pieces,
    Placed,
    any_breaks,
    lines_of,
    nearest_break,
    place,
)
from ringworld.evaluate.tasks.task import Ask, Draft, Growth, Refused, Scored
from ringworld.evaluate.tasks.vocabulary import distinct, draw, kinds_of

Kind = Literal["words", "numbers", "uuids"]
_KEYS, _ORDER, _PLACES, _HAY = range(4)  # purposes of random numbers
_COUNTED = 64  # lines of a haystack of needles whose tokens are counted
_NOISE_WORDS = 1 << 24  # more than any prompt takes: noise repeats itself by design


@dataclass(frozen=True, eq=False)
class Needles:
    """One of RULER's kinds. haystack: documents, or None for repeated noise, or "needles" for ones with other keys.

    planted: how many keys. values: how many each has. asked: how many keys are asked for, of all their values.
    """

    name: str
    haystack: Haystack | Literal["noise", "needles"]
    keys: Kind = "words"
    kind: Kind = "numbers"
    planted: int = 1
    values: int = 1
    asked: int = 1
    room: int = 128
    scored: Scored = "all"

    @property
    def placed(self) -> bool:
        return self.asked * self.values == 1

    def growth(self, ask: Ask) -> Growth:
        rng = ask.rng(_KEYS)
        keys = distinct(self.keys, self.planted, rng)
        drawn = iter(distinct(self.kind, self.planted * self.values, rng))
        values = {key: [next(drawn) for _ in range(self.values)] for key in keys}
        asked = keys[: self.asked]
        needles = [(key, self._said(key, value)) for key in keys for value in values[key]]
        order = ask.rng(_ORDER).permutation(len(needles))
        needles = [needles[number] for number in order]
        own = [number for number, (key, _) in enumerate(needles) if key in asked]
        answers = tuple(value for key in asked for value in values[key])
        hay = self._hay(ask, set(keys))
        least = 0 if self.haystack != "noise" else 1

        def draft(pieces: int) -> Draft:
            texts = [text for _, text in needles]
            depth = ask.depth if self.placed else None
            placed = scatter(
                hay, pieces, texts, own, depth, ask, gap=" " if isinstance(self.haystack, Haystack) else "\n"
            )
            return _question(self.kind, asked, answers, placed, own)

        short = self.haystack.short if isinstance(self.haystack, Haystack) else ""
        return Growth(draft, least, len(hay), hay.per, short)

    def _said(self, key: str, value: str) -> str:
        return wording.NEEDLE.format(kinds=self.kind, key=key, value=value)

    def _hay(self, ask: Ask, taken: set[str]) -> Pieces:
        if isinstance(self.haystack, Haystack):
            return self.haystack.from_random_sentence(ask.rng(_HAY))
        if self.haystack == "noise":
            return noise(ask.length, ask.prompting.count)
        rng = ask.rng(_HAY)
        # No line takes fewer than a token a word.
        lines = ask.length // len(wording.NEEDLE.split()) + 1
        if lines + len(taken) > kinds_of(self.keys):
            raise Refused(
                f"{self.name} at {ask.length} needs {lines} different {self.keys}; there are {kinds_of(self.keys)}"
            )
        others = [key for key in distinct(self.keys, lines + len(taken), rng) if key not in taken][:lines]
        words = len(wording.NEEDLE.split())
        texts: list[str] = []
        for key in others:
            texts += lines_of(self._said(key, draw(self.kind, rng)), words)[0]
        # A line takes about as many tokens as another; to count all their different words takes longer than all else.
        counted = ask.prompting.count([f" {text.strip()}" for text in texts[: _COUNTED * words]])
        costs = counted.reshape(-1, words).mean(0)
        return Pieces(texts, np.arange(len(texts)) % words == 0, np.tile(costs, len(others)))


@dataclass(frozen=True, eq=False)
class Passkey:
    """A number of five digits in repeated noise (Mohtashami and Jaggi 2023)."""

    name: str = "passkey"
    room: int = 16
    scored: Scored = "all"
    placed: bool = True

    def growth(self, ask: Ask) -> Growth:
        value = str(ask.rng(_KEYS).integers(10_000, 100_000))
        hay = noise(ask.length, ask.prompting.count)

        def draft(pieces: int) -> Draft:
            needle = wording.PASSKEY_NEEDLE.format(value=value)
            placed = scatter(hay, pieces, [needle], [0], ask.depth, ask, gap="\n")
            said = wording.PASSKEY.format(context=placed.text)
            return Draft((Turn("user", said),), wording.PASSKEY_FOUND, (value,), placed.text, placed.needles)

        return Growth(draft, 1, len(hay), hay.per)


@dataclass(frozen=True, eq=False)
class Cities:
    """`planted` cities with magic numbers in documents, of which `asked` are asked for, as in LWM's evaluation."""

    name: str
    haystack: Haystack
    planted: int
    asked: int
    room: int = 128
    scored: Scored = "all"

    @property
    def placed(self) -> bool:
        return self.planted == 1

    def growth(self, ask: Ask) -> Growth:
        rng = ask.rng(_KEYS)
        cities = [CITIES[number] for number in rng.permutation(len(CITIES))[: self.planted].tolist()]
        values = distinct("numbers", self.planted, rng)
        asked, own = cities[: self.asked], list(range(self.asked))
        hay = self.haystack.from_random_sentence(ask.rng(_HAY))
        query = listed(asked)
        question, found = (
            (wording.CITY, wording.CITY_FOUND) if self.asked == 1 else (wording.CITIES, wording.CITIES_FOUND)
        )

        def draft(pieces: int) -> Draft:
            needles = [
                wording.CITY_NEEDLE.format(city=city, value=value) for city, value in zip(cities, values, strict=True)
            ]
            # On lines of their own, as LWM has them; the newline before is taken for part of the needle.
            needles = [f"\n{needle}" for needle in needles]
            placed = scatter(hay, pieces, needles, own, ask.depth if self.placed else None, ask, gap="\n")
            said = question.format(context=placed.text, query=query)
            spans = tuple(placed.needles[number] for number in own)
            return Draft(
                (Turn("user", said),), found.format(query=query), tuple(values[: self.asked]), placed.text, spans
            )

        return Growth(draft, 0, len(hay), hay.per, self.haystack.short)


def scatter(
    hay: Pieces, pieces: int, needles: Sequence[str], own: Sequence[int], depth: float | None, ask: Ask, gap: str
) -> Placed:
    """Needles in the first pieces of a haystack: all at random places, or the first of `own` at a depth."""
    places = any_breaks(hay, pieces, len(needles), ask.rng(_PLACES))
    if depth is not None:
        places[own[0]] = nearest_break(hay, pieces, depth)
    return place(hay, pieces, list(zip(places, needles, strict=True)), gap)


def noise(length: int, count: Count, end: str = "\n") -> Pieces:
    """Enough of the repeated noise for any prompt of a length: no word of it takes less than a token."""
    words = wording.NOISE.split()
    texts, begins = lines_of(wording.NOISE, min(length, _NOISE_WORDS), end)
    costs = count([f" {word}" for word in words]).astype(np.float64)
    return Pieces(texts, begins, np.resize(costs, len(texts)))


def listed(names: Sequence[str]) -> str:
    """`a`, or `a, and b`, or `a, b, and c`: as RULER and LWM name what is asked."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])}, and {names[-1]}"


def _question(kind: str, asked: Sequence[str], answers: tuple[str, ...], placed: Placed, own: Sequence[int]) -> Draft:
    spans = tuple(placed.needles[number] for number in own)
    several = len(answers) > 1
    named = kind if several else kind[:-1]
    question, found = (
        (wording.FIND_SEVERAL, wording.FOUND_SEVERAL) if several else (wording.FIND_ONE, wording.FOUND_ONE)
    )
    query = listed(asked)
    said = question.format(kind=named, context=placed.text, query=query)
    return Draft((Turn("user", said),), found.format(kind=named, query=query), answers, placed.text, spans)
