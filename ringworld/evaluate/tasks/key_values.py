"""Key-value retrieval (Liu et al. 2023, Lost in the Middle): a JSON object of UUIDs, one key's value is asked for.

The object stays whole, so a prompt is filled to less than one pair under its length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ringworld.data.conversations import Turn
from ringworld.evaluate.tasks import wording
from ringworld.evaluate.tasks.task import Ask, Draft, Growth, Scored
from ringworld.evaluate.tasks.vocabulary import draw

_PAIRS, _PLACE = range(2)  # purposes of random numbers
_PAIR_CHARACTERS = 79
_LONGEST_TOKEN = 16  # characters of a UUID that one token could hold, at the most


@dataclass(frozen=True, eq=False)
class KeyValues:
    name: str = "kv"
    room: int = 64
    scored: Scored = "all"
    placed: bool = True

    def growth(self, ask: Ask) -> Growth:
        most = max(2, ask.length * _LONGEST_TOKEN // _PAIR_CHARACTERS)
        pairs = _Pairs(ask.rng(_PAIRS))
        per = float(ask.prompting.count([pairs.line(number) for number in range(8)]).mean())

        def draft(pieces: int) -> Draft:
            depth = float(ask.rng(_PLACE).random()) if ask.depth is None else ask.depth
            at = round(depth * (pieces - 1))
            # The pair that is asked for is the first that was drawn, so that it is the same at any size.
            order = [*range(1, at + 1), 0, *range(at + 1, pieces)]
            lines = [pairs.line(number) for number in order]
            context = "{" + ",\n ".join(lines) + "}"
            begin = 1 + sum(len(line) + 3 for line in lines[:at])
            said = wording.LOOK_UP.format(context=context, query=pairs.key(0))
            span = (begin, begin + len(lines[at]))
            return Draft((Turn("user", said),), wording.LOOKED_UP, (pairs.value(0),), context, (span,))

        return Growth(draft, 2, most, per)


class _Pairs:
    """Keys and values, drawn as they are needed."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng, self._drawn = rng, []

    def _get(self, number: int) -> str:
        while len(self._drawn) <= number:
            self._drawn.append(draw("uuids", self._rng))
        return self._drawn[number]

    def key(self, number: int) -> str:
        return self._get(2 * number)

    def value(self, number: int) -> str:
        return self._get(2 * number + 1)

    def line(self, number: int) -> str:
        return f'"{self.key(number)}": "{self.value(number)}"'
