"""Special tokens in a rendered conversation: those that its template writes, told apart from those that a turn spells.

Before a template sees a turn, each special token that the turn spells is hidden behind a private character; in what the
template has made of it, each special token that still stands there is the template's own, and becomes one private
character too. So a position, a prefix and a cut never lie inside of one, and every one is an id or letters for good.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ringworld.data.tokenizers import FastTokenizer, Tokenizer

_FIRST, _LAST = 0xF0000, 0x10FFFF  # the private planes of Unicode, which have no characters of their own
_BEGIN, _END = chr(_LAST - 2), chr(_LAST - 3)  # names for the ids of tokenizers that have none
_PRIVATE = re.compile(f"[{chr(_FIRST)}-{chr(_LAST)}]")
_NEVER = r"(?!)"

Span = tuple[int, int]


@dataclass(frozen=True)
class Special:
    """A special token. lstrip, rstrip: it takes the space before or after it along."""

    content: str
    id: int
    lstrip: bool = False
    rstrip: bool = False


class SpecialTokens:
    """Those of one tokenizer. begin, end: what a template writes for them; empty where there is no beginning."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        fast = isinstance(tokenizer, FastTokenizer)
        self._model = _model(tokenizer) if fast else None
        self.begin = "" if tokenizer.bos_id is None else self._name(tokenizer.bos_id) or _BEGIN
        self.end = self._name(tokenizer.eos_id) or _END
        # Longest first, so that none is taken for a part of another.
        self.all = sorted(self._found(), key=lambda special: (-len(special.content), special.content))
        self._number = {special.content: number for number, special in enumerate(self.all)}
        self._spelled = re.compile("|".join(re.escape(special.content) for special in self.all) or _NEVER)
        self._written = re.compile("|".join(map(_pattern, self.all)) or _NEVER)

    @cached_property
    def begins_anew(self) -> bool:
        """Whether the tokenizer treats text after a special token as it treats the beginning of a text."""
        first = next(
            (special for special in self.all if not special.rstrip and not _PRIVATE.match(special.content)), None
        )
        if self._model is None or first is None:
            return True
        ids = self._model.encode(f"{first.content}a", add_special_tokens=False).ids
        return ids == [first.id, *self._tokenizer.encode("a").tolist()]

    def among(self, texts: Iterable[str]) -> Atoms:
        """Private characters for the special tokens that stand in none of a conversation's texts."""
        count = 2 * len(self.all)
        base = _FIRST
        for taken in sorted({ord(found) for text in texts for found in _PRIVATE.findall(text)}):
            if taken >= base + count:
                break
            base = max(base, taken + 1)
        return Atoms(self.all, self._number, self._spelled, self._written, base)

    def _found(self) -> list[Special]:
        found = {}
        for token, added in self._model.get_added_tokens_decoder().items() if self._model is not None else ():
            if added.special and added.content:
                found[added.content] = Special(added.content, token, added.lstrip, added.rstrip)
        for name, token in ((self.begin, self._tokenizer.bos_id), (self.end, self._tokenizer.eos_id)):
            if name and token is not None:
                found.setdefault(name, Special(name, token))
        return list(found.values())

    def _name(self, token: int) -> str | None:
        return None if self._model is None else self._model.id_to_token(token)


@dataclass(frozen=True)
class Atoms:
    """The private characters of one conversation: from `base`, those that hide what turns spell, then the template's.

    spelled, written: patterns of special tokens in a turn, and in what a template writes.
    """

    specials: Sequence[Special]
    number: dict[str, int]
    spelled: re.Pattern[str]
    written: re.Pattern[str]
    base: int

    def hide(self, turn: str) -> str:
        """A turn's text without special tokens."""
        return self.spelled.sub(lambda found: chr(self.base + self.number[found.group()]), turn)

    def mark(self, rendered: str, spans: Iterable[Sequence[int]] = ()) -> tuple[str, list[Span]]:
        """What a template made of hidden turns, a character for each special token; and spans of it, moved along."""
        made: list[str] = []
        moved: list[Span] = [(0, 0)]  # so far in what was rendered, and in what is made
        for found in self.written.finditer(rendered):
            done, there = moved[-1]
            made += [rendered[done : found.start()], chr(self._middle + (found.lastindex or 0) - 1)]
            moved.append((found.end(), there + found.start() - done + 1))
        made.append(rendered[moved[-1][0] :])

        def place(at: int) -> int:
            after = next((number for number, (end, _) in enumerate(moved) if end > at), len(moved))
            end, there = moved[after - 1]
            # A place inside of a token, or of the space that it takes along, is the place after it.
            return min(there + at - end, moved[after][1] if after < len(moved) else _LAST)

        return "".join(made), [(place(start), place(end)) for start, end in spans]

    def end_of_next(self, marked: str, start: int, limit: int) -> int | None:
        """Where the first of the template's special tokens ends that stands at `start` or after."""
        found = self._templates_own.search(marked, start, limit)
        return found.end() if found else None

    def pieces(self, marked: str) -> tuple[str | int, ...]:
        """The texts, as they were given, and the ids of the template's special tokens between them."""
        found: list[str | int] = []
        for piece in self._templates_own.split(marked):
            if self._templates_own.fullmatch(piece):
                found.append(self.specials[ord(piece) - self._middle].id)
            elif piece:
                found.append(self._turns_own.sub(lambda at: self.specials[ord(at.group()) - self.base].content, piece))
        return tuple(found)

    @property
    def _middle(self) -> int:
        return self.base + len(self.specials)

    @cached_property
    def _turns_own(self) -> re.Pattern[str]:
        return re.compile(f"[{chr(self.base)}-{chr(self._middle - 1)}]")

    @cached_property
    def _templates_own(self) -> re.Pattern[str]:
        return re.compile(f"([{chr(self._middle)}-{chr(self._middle + len(self.specials) - 1)}])")


def _pattern(special: Special) -> str:
    return r"\s*" * special.lstrip + f"({re.escape(special.content)})" + r"\s*" * special.rstrip


def _model(tokenizer: Tokenizer) -> Any:
    """The tokenizer's model, reading special tokens as such."""
    from tokenizers import Tokenizer as Model

    return Model.from_buffer(tokenizer.files["tokenizer.json"])
