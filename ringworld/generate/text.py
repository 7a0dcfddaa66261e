"""Tokens to text as they come: whole characters only, and never a part of a stop string.

A character may need several tokens (bytes of UTF-8), and a token may end in the middle of a stop string. So text is
held back while it could still change or turn out to be the beginning of a stop string; the text of a finished request
is exactly what was handed out piece by piece.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ringworld.data.tokenizers import Tokenizer

_BROKEN = "\N{REPLACEMENT CHARACTER}"
# A character of UTF-8 has at most four bytes, so after so many tokens it is whole, or was none.
_LONGEST = 4
# Tokens before a text that a decoder may look at to decide on its first space.
_CONTEXT = 6


def legible(ids: Iterable[int], tokenizer: Tokenizer) -> list[int]:
    """The ids that a tokenizer has a text for: not those of pictures, nor a model's spare ones."""
    return [int(token) for token in ids if token < tokenizer.vocabulary_size]


@dataclass
class Characters:
    """The text of tokens that arrive one at a time. `before`: the tokens ahead of the first, for its leading space."""

    tokenizer: Tokenizer
    before: Sequence[int] = ()
    _ids: list[int] = field(init=False)
    _known: int = field(init=False)  # of _ids, those whose text was handed out

    def __post_init__(self) -> None:
        self._ids = legible(self.before, self.tokenizer)[-_CONTEXT:]
        self._known = len(self._ids)

    def push(self, token: int) -> str:
        """What this token adds; empty while its last character may be unfinished."""
        self._ids.append(int(token))
        shown = ""
        while self._ahead().endswith(_BROKEN):
            if len(self._ids) - self._known < _LONGEST:
                return shown
            # The oldest token began no character, or it would be whole by now.
            shown += self._text(self._ids[: self._known + 1])
            self._known += 1
        return shown + self._hand_out()

    def end(self) -> str:
        """What was held back; a character that never became whole is U+FFFD."""
        return self._hand_out()

    def _ahead(self) -> str:
        return self._text(self._ids)

    def _text(self, ids: Sequence[int]) -> str:
        """What ids add to those whose text is known."""
        return self.tokenizer.decode(ids)[len(self.tokenizer.decode(self._ids[: self._known])) :]

    def _hand_out(self) -> str:
        text = self._ahead()
        self._ids = self._ids[-_CONTEXT:]
        self._known = len(self._ids)
        return text


@dataclass
class Stops:
    """Cuts a text that arrives in pieces at the first of its stop strings, which is left out."""

    stops: Sequence[str] = ()
    found: str | None = None
    _held: str = ""

    def push(self, piece: str) -> str:
        """What can be shown now. Once `found` is set, nothing more."""
        if self.found is not None:
            return ""
        self._held += piece
        at, stop = min(((at, stop) for stop in self.stops if (at := self._held.find(stop)) >= 0), default=(-1, None))
        if stop is not None:
            shown, self._held, self.found = self._held[:at], "", stop
            return shown
        keep = max((_overlap(self._held, stop) for stop in self.stops), default=0)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(shown) :]
        return shown

    def end(self) -> str:
        """What was held back because it could have become a stop string."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """The length of the longest beginning of `stop`, not all of it, that `text` ends with."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
