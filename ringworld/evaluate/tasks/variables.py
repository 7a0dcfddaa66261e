"""Variable tracking (RULER, appendix B): `VAR A = 12345`, `VAR B = VAR A`, ... in noise; which ones have the value?

Before the question stands a worked example with variables of three letters, as in RULER.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ringworld.data.conversations import Turn
from ringworld.evaluate.tasks import wording
from ringworld.evaluate.tasks.needles import noise
from ringworld.evaluate.tasks.pieces import Pieces, Placed, any_breaks, place
from ringworld.evaluate.tasks.task import Ask, Draft, Growth, Scored

_NAMES, _PLACES, _EXAMPLE = range(3)  # purposes of random numbers
_LETTERS, _EXAMPLE_LETTERS = 5, 3
_LINE = len(wording.NOISE.split())  # words of a line of noise
# Of noise in the worked example; as many as fit this many tokens, which is RULER's bound.
_EXAMPLE_LINES, _EXAMPLE_TOKENS = (10, 5), 470


@dataclass(frozen=True)
class Chain:
    """names: of the variables, each but the first assigned the one before. value: of the first."""

    names: tuple[str, ...]
    value: str

    def assignments(self) -> list[str]:
        # The space at the end of the later ones is RULER's.
        later = [f"VAR {name} = VAR {before} " for before, name in zip(self.names, self.names[1:], strict=False)]
        return [f"VAR {self.names[0]} = {self.value}", *later]


@dataclass(frozen=True, eq=False)
class Variables:
    """hops: assignments after the first. worked: whether an example stands before the question."""

    name: str = "vt"
    hops: int = 4
    worked: bool = True
    room: int = 30
    scored: Scored = "all"
    placed: bool = False

    def growth(self, ask: Ask) -> Growth:
        rng = ask.rng(_NAMES)
        chain = _chain(self.hops, _LETTERS, rng)
        hay = noise(ask.length, ask.prompting.count, end="\n ")
        shown = _chain(self.hops, _EXAMPLE_LETTERS, rng)
        example = self._example(shown, ask) if self.worked else ""

        def draft(pieces: int) -> Draft:
            places = any_breaks(hay, pieces, len(chain.names), ask.rng(_PLACES))
            found = tracked(hay, pieces, chain, places)
            said = example + asked(chain, found)
            return Draft((Turn("user", said),), answered(chain), chain.names, found.text, found.needles)

        return Growth(draft, _LINE * len(chain.names), len(hay), hay.per)

    def _example(self, shown: Chain, ask: Ask) -> str:
        made = ""
        for count in _EXAMPLE_LINES:
            lines = noise(count * _LINE, ask.prompting.count, end="\n ")
            places = any_breaks(lines, len(lines), len(shown.names), ask.rng(_EXAMPLE))
            question = asked(shown, tracked(lines, len(lines), shown, places))
            # The two spaces, and the empty lines, are RULER's.
            made = f"{question} {answered(shown)}  {' '.join(shown.names)}\n\n\n\n"
            if ask.prompting.count([made])[0] <= _EXAMPLE_TOKENS:
                break
        return made


def tracked(hay: Pieces, pieces: int, chain: Chain, places: Sequence[int]) -> Placed:
    """The noise with a chain's assignments in it, at ascending places."""
    return place(hay, pieces, list(zip(places, chain.assignments(), strict=True)))


def asked(chain: Chain, placed: Placed) -> str:
    return wording.TRACK.format(context=placed.text, query=chain.value)


def answered(chain: Chain) -> str:
    return wording.TRACKED.format(count=len(chain.names), query=chain.value)


def _chain(hops: int, letters: int, rng: np.random.Generator) -> Chain:
    names: dict[str, None] = {}
    while len(names) <= hops:
        names.setdefault("".join(string.ascii_uppercase[i] for i in rng.integers(26, size=letters)))
    return Chain(tuple(names), str(rng.integers(10_000, 100_000)))
