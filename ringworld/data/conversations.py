"""One record of a chat data set to turns, and turns to token ids with the marks of their answers.

- Three shapes of record are known: `{"messages": [{"role", "content"}, ...]}`, UltraChat's `{"data": [text, ...]}`
  (user first, then by turns) and ShareGPT's `{"conversations": [{"from", "value"}, ...]}`.
- What is kept of a record is what can be learned from: turns before the first question and after the last answer are
  dropped. A record that is broken inside is refused with a countable reason (`REASONS`), never mended.
- A template makes parts of turns: text that is given, or an answer, which ends with the end-of-text id. Each part is
  encoded by itself: no token lies half in an answer, and a prompt has the ids that it has when a model is asked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ringworld.data.clean import normalize
from ringworld.data.tokenizers import Tokenizer

Role = Literal["system", "user", "assistant"]

FIELDS = ("messages", "data", "conversations")
REASONS = ("no such field", "empty", "broken turn", "unknown role", "empty turn", "out of turn", "no answer")

# What LWM's prompts begin with (scripts/eval_needle.py of its repository) unless a record brings its own system turn.
LWM_SYSTEM = "You are a helpful assistant."

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


@dataclass(frozen=True)
class Part:
    """A stretch of a rendered conversation. answer: whether the loss counts it; then end-of-text follows it."""

    text: str
    answer: bool


@dataclass(frozen=True, eq=False)
class Encoded:
    """ids int32 [tokens]; answer bool [tokens]: True for the tokens of answers and the end-of-text id after each."""

    ids: np.ndarray
    answer: np.ndarray


Template = Callable[[Sequence[Turn]], list[Part]]


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


def plain(turns: Sequence[Turn]) -> list[Part]:
    """LWM's template: `You are a helpful assistant. USER: question ASSISTANT: answer` end-of-text `USER: ...`."""
    parts: list[Part] = []
    opening = "" if turns and turns[0].role == "system" else f"{LWM_SYSTEM} "
    for turn in turns:
        if turn.role == "system":
            opening = f"{turn.text} "
        elif turn.role == "user":
            parts.append(Part(f"{opening}USER: {turn.text} ASSISTANT:", answer=False))
            opening = ""
        else:
            parts.append(Part(f" {turn.text}", answer=True))
    return parts


def encode(tokenizer: Tokenizer, conversations: Iterable[Sequence[Part]]) -> list[Encoded]:
    """The ids of each conversation's parts and which of them are answers."""
    conversations = list(conversations)
    parts = [part for parts in conversations for part in parts]
    cut = _joins_by_space(tokenizer)
    ids = iter(tokenizer.encode_batch([part.text.removeprefix(" ") if cut else part.text for part in parts]))
    end = np.array([tokenizer.eos_id], np.int32)
    encoded = []
    for conversation in conversations:
        pieces = [np.concatenate([next(ids), end]) if part.answer else next(ids) for part in conversation]
        answer = [np.full(len(piece), part.answer) for piece, part in zip(pieces, conversation, strict=True)]
        encoded.append(Encoded(np.concatenate(pieces), np.concatenate(answer)))
    return encoded


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


def _joins_by_space(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer puts a space before each text, as SentencePiece does, so that a part gives its own up."""
    whole, first, second = tokenizer.encode_batch(["a b", "a", "b"])
    return np.array_equal(whole, np.concatenate([first, second]))


def _type(value: Any) -> str:
    return "null" if value is None else type(value).__name__
