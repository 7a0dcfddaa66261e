"""One record of a chat data set to turns, or the reason why it is no conversation.

- Three shapes of record are known: `{"messages": [{"role", "content"}, ...]}`, UltraChat's `{"data": [text, ...]}`
  (user first, then by turns) and ShareGPT's `{"conversations": [{"from", "value"}, ...]}`.
- What is kept of a record is what can be learned from: turns before the first question and after the last answer are
  dropped. A record that is broken inside is refused with a countable reason (`REASONS`), never mended.
- What becomes of turns is `ringworld.data.templates`' business.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ringworld.data.clean import normalize

Role = Literal["system", "user", "assistant"]

FIELDS = ("messages", "data", "conversations")
REASONS = ("no such field", "empty", "broken turn", "unknown role", "empty turn", "out of turn", "no answer")

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}


@dataclass(frozen=True)
class Turn:
    role: Role
    text: str


@dataclass(frozen=True)
class Refused:
    """Why a record is no conversation: one of `REASONS`, and what exactly was found."""

    reason: str
    detail: str = ""


def parse(record: Any) -> tuple[Turn, ...] | Refused:
    """The turns of a record: at most one system turn, then user and assistant by turns, the last an assistant's.

    Turns of the assistant before the first question, and questions after the last answer, are dropped: there is nothing
    to condition on, and nothing to learn. Refused: see `REASONS`; `out of turn` is a role twice in a row, or a system
    turn inside.
    """
    said = _said(record)
    if isinstance(said, Refused):
        return said
    turns: list[Turn] = []
    for number, (role_name, text) in enumerate(said, start=1):
        if not isinstance(role_name, str) or not isinstance(text, str):
            return Refused("broken turn", f"turn {number}: role {role_name!r:.40} and a text that is {_type(text)}")
        role = _ROLES.get(role_name.strip().lower())
        if role is None:
            return Refused("unknown role", f"turn {number}: {role_name!r:.60}; known: {', '.join(_ROLES)}")
        turns.append(Turn(role, normalize(text).strip()))
    return _usable(turns)


def digest(turns: Sequence[Turn]) -> str:
    """sha256 (64 hexadecimal digits) of what is said and by whom."""
    said = json.dumps([[turn.role, turn.text] for turn in turns], ensure_ascii=True)
    return hashlib.sha256(said.encode()).hexdigest()


def _said(record: Any) -> list[tuple[Any, Any]] | Refused:
    """(role, text) of each turn as the record has them, unchecked."""
    if not isinstance(record, Mapping):
        return Refused("no such field", f"a record is an object with one of {', '.join(FIELDS)}, not {_type(record)}")
    name = next((name for name in FIELDS if record.get(name) is not None), None)
    if name is None:
        return Refused("no such field", f"none of {', '.join(FIELDS)}; has: {', '.join(map(str, record))}"[:300])
    found = record[name]
    if not isinstance(found, list):
        return Refused("broken turn", f"{name} is {_type(found)}, not a list")
    if not found:
        return Refused("empty", f"{name} has no turns")
    if name == "data":
        return [(("user", "assistant")[number % 2], text) for number, text in enumerate(found)]
    role, text = ("role", "content") if name == "messages" else ("from", "value")
    if not all(isinstance(turn, Mapping) for turn in found):
        return Refused("broken turn", f"{name} holds something else than objects with {role} and {text}")
    return [(turn.get(role), turn.get(text)) for turn in found]


def _usable(turns: list[Turn]) -> tuple[Turn, ...] | Refused:
    system = turns[:1] if turns[0].role == "system" and turns[0].text else []
    talk = turns[1:] if turns[0].role == "system" else turns
    asked = next((number for number, turn in enumerate(talk) if turn.role == "user"), len(talk))
    answered = max((number for number, turn in enumerate(talk) if turn.role == "assistant"), default=-1)
    if answered < asked:
        return Refused("no answer", f"{len(talk)} turns, and no assistant's after a user's")
    talk = talk[asked : answered + 1]
    for number, turn in enumerate(talk):
        if turn.role != ("user", "assistant")[number % 2]:
            return Refused("out of turn", f"turn {number + asked + 1} is the {turn.role}'s")
        if not turn.text:
            return Refused("empty turn", f"turn {number + asked + 1}, the {turn.role}'s, says nothing")
    return (*system, *talk)


def _type(value: Any) -> str:
    return "null" if value is None else type(value).__name__
