"""What travels through synthesis: a chunk of a document, what a model is asked about it, what it said, what was kept.

    chunk -> Ask -> Reply -> Pair -> Verdict

A document here is what training reads: a piece of a file's text, after duplicates and contaminated passages are out.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

from ringworld.data.conversations import Turn

Split = Literal["train", "held_out"]


@dataclass(frozen=True)
class Chunk:
    """A stretch of a document that a question is asked about.

    document: its name, unique in the corpus (its source, with #N for a piece of a cut one). sha256: of the whole
    source document. number: from 0, in the document. start, end: characters of the document's text. tokens: about as
    many as the chunk has; chunks of a document are disjoint, in order, and together the whole text.
    """

    document: str
    sha256: str
    number: int
    start: int
    end: int
    tokens: int
    split: Split
    text: str


@dataclass(frozen=True)
class Ask:
    """One request to a model: the turns, and how long an answer may be. seed: of its sampling, different for each."""

    turns: tuple[Turn, ...]
    max_tokens: int
    temperature: float
    seed: int

    @property
    def sha256(self) -> str:
        """64 hexadecimal digits over all that was asked: what `prompt_sha256` of a row is."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Reply:
    """What a model said. text: raw, as it came. finish: `stop`, `length`, or `error`, whose reason is `error`.

    model: as the provider names it. tokens: what the provider counted, 0 where it does not say.
    """

    text: str
    finish: Literal["stop", "length", "error"]
    model: str
    prompt_tokens: int = 0
    tokens: int = 0
    error: str = ""


@dataclass(frozen=True)
class Pair:
    """A question and its answer, as parsed from a reply."""

    question: str
    answer: str


@dataclass(frozen=True)
class Verdict:
    """Whether a pair is kept. reason: empty for a kept one, else which rule it failed, one of a fixed list.

    detail: what was found, for a person. start, end: where the answer stands in the chunk's text, where it does.
    """

    kept: bool
    reason: str = ""
    detail: str = ""
    start: int | None = None
    end: int | None = None
