"""What a task is: a recipe of prompts that grow to a length, each with answers that can be found in it alone.

A task says how a prompt of n pieces reads (`Growth.draft`, a pure function of n); `make` finds the n at which prompt
and answer together fill a length, counted by the model's own tokenizer through whatever the prompt is put into, and
measures in tokens where the needles came to lie. Nothing is ever cut off a prompt afterwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from ringworld.data.conversations import Turn
from ringworld.evaluate.tasks.fitting import largest

Scored = Literal["all", "part"]


class Refused(Exception):
    """A length that a task cannot be asked at, with the reason."""


@dataclass(frozen=True)
class Draft:
    """A prompt as text.

    turns: one of the user's, or a conversation that ends with one. prefix: what the answer begins with, where the
    prompt is not put into a chat. answers: all of them are right (see `Task.scored`). context: the text in which
    `needles` stand, each as (begin, end) in characters.
    """

    turns: tuple[Turn, ...]
    prefix: str
    answers: tuple[str, ...]
    context: str
    needles: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Growth:
    """How a prompt grows. draft: the prompt with n pieces, least <= n <= most, longer with every piece.

    per: about how many tokens a piece takes. short: said where even `most` pieces do not fill a length.
    """

    draft: Callable[[int], Draft]
    least: int
    most: int
    per: float
    short: str = ""


class Prompting(Protocol):
    """From text to the tokens of one model: how a draft is put to it."""

    def ids(self, draft: Draft) -> np.ndarray:
        """int32 [tokens]: all that the model reads."""
        ...

    def count(self, texts: Sequence[str]) -> np.ndarray:
        """int64 [texts]: tokens of each by itself."""
        ...


@dataclass(frozen=True, eq=False)
class Ask:
    """One example that is wanted. length: tokens of prompt and answer. depth: 0..1, or None where a task places its
    needles itself. seed: of everything that is drawn."""

    length: int
    depth: float | None
    seed: tuple[int, ...]
    prompting: Prompting

    def rng(self, *purpose: int) -> np.random.Generator:
        """A generator of its own for each purpose, the same for every draft of this example."""
        return np.random.default_rng((*self.seed, *purpose))


class Task(Protocol):
    """name: as on the command line. room: tokens of an answer. scored: `all`, the share of the answers that a reply
    holds; `part`, whether it holds any. placed: whether a depth can be asked for."""

    @property
    def name(self) -> str: ...
    @property
    def room(self) -> int: ...
    @property
    def scored(self) -> Scored: ...
    @property
    def placed(self) -> bool: ...

    def growth(self, ask: Ask) -> Growth:
        """Raises Refused where there is nothing to ask with."""
        ...


@dataclass(frozen=True, eq=False)
class Example:
    """A prompt of one task.

    ids: int32 [tokens], at most length - room of them. needles: the depth of each needle, tokens of the context before
    it over those of the context without it. sha256: of the ids.
    """

    task: str
    length: int
    depth: float | None
    ids: np.ndarray
    draft: Draft
    room: int
    scored: Scored
    needles: tuple[float, ...]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(np.asarray(self.ids, np.int32).tobytes()).hexdigest()


def make(task: Task, ask: Ask) -> Example:
    """The example whose prompt and answer fill the length as far as whole pieces do.

    Raises Refused where the smallest prompt is longer, or the largest one shorter.
    """
    growth, budget = task.growth(ask), ask.length - task.room
    drafts: dict[int, tuple[Draft, np.ndarray]] = {}

    def size(pieces: int) -> int:
        draft = growth.draft(pieces)
        drafts[pieces] = draft, ask.prompting.ids(draft)
        return len(drafts[pieces][1])

    if size(growth.least) > budget:
        raise Refused(
            f"{task.name} takes {len(drafts[growth.least][1])} tokens and {task.room} of answer at the least, "
            f"the length is {ask.length}"
        )
    pieces = largest(size, growth.least, growth.most, budget, growth.per)
    draft, ids = drafts[pieces]
    if pieces == growth.most and growth.short and len(ids) + growth.per <= budget:
        raise Refused(f"{growth.short}, {task.name} needs {budget - len(ids)} tokens more to fill {ask.length}")
    return Example(task.name, ask.length, ask.depth, ids, draft, task.room, task.scored, _depths(draft, ask.prompting))


def _depths(draft: Draft, prompting: Prompting) -> tuple[float, ...]:
    if not draft.needles:
        return ()
    whole = int(prompting.count([draft.context])[0])
    before = prompting.count([draft.context[:begin] for begin, _ in draft.needles])
    own = prompting.count([draft.context[begin:end] for begin, end in draft.needles])
    return tuple((before / np.maximum(whole - own, 1)).clip(0, 1).round(4).tolist())
