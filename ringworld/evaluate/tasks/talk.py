"""A needle in a chat: a user reads a text to the assistant, part by part, and says a magic number in one of the parts.

Always put through the model's chat template, whatever the other tasks are put through.
"""

from __future__ import annotations

from dataclasses import dataclass

from ringworld.data.conversations import Turn
from ringworld.evaluate.tasks import wording
from ringworld.evaluate.tasks.haystack import Haystack
from ringworld.evaluate.tasks.pieces import Pieces, nearest_break, place
from ringworld.evaluate.tasks.task import Ask, Draft, Growth, Scored
from ringworld.evaluate.tasks.vocabulary import draw

_KEY, _PLACE, _HAY = range(3)  # purposes of random numbers
_PART = 200  # words of a turn
_OPENING = "I am going to read you a text in parts. Remember what it says.\n\n"
_HEARD = "I have it. Go on."
_QUESTION = "What is the special magic number for {key} that I told you? Answer with the number only."


@dataclass(frozen=True, eq=False)
class Talk:
    haystack: Haystack
    name: str = "niah_chat"
    room: int = 64
    scored: Scored = "all"
    placed: bool = True

    def growth(self, ask: Ask) -> Growth:
        rng = ask.rng(_KEY)
        key, value = draw("words", rng), draw("numbers", rng)
        needle = wording.NEEDLE.format(kinds="numbers", key=key, value=value)
        hay = self.haystack.from_random_sentence(ask.rng(_HAY))

        def draft(pieces: int) -> Draft:
            depth = float(ask.rng(_PLACE).random()) if ask.depth is None else ask.depth
            at = nearest_break(hay, pieces, depth)
            turns: list[Turn] = []
            context, span = "", (0, 0)
            for first in range(0, max(pieces, 1), _PART):
                last = min(first + _PART, pieces)
                # A place between two parts is the end of the earlier one.
                here = first < at <= last or (at == first == 0)
                part = Pieces(hay.texts[first:last], hay.breaks[first:last], hay.tokens[first:last])
                placed = place(part, last - first, [(at - first, needle)] if here else [])
                if here:
                    begin, end = placed.needles[0]
                    span = (len(context) + begin, len(context) + end)
                context += placed.text + "\n"
                turns += [Turn("user", placed.text if turns else _OPENING + placed.text), Turn("assistant", _HEARD)]
            asked = Turn("user", _QUESTION.format(key=key))
            return Draft((*turns, asked), "", (value,), context, (span,))

        return Growth(draft, 1, len(hay), hay.per, self.haystack.short)
