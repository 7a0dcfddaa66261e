"""What a model is asked about a chunk: one question that only the passage answers, and its answer quoted from it.

The text of the prompt is part of a recipe's identity by `VERSION`, which is raised with every change of it, and of each
row by `Ask.sha256`. Its format is one that small models follow: two labelled lines, shown by an example.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ringworld.data.conversations import Turn
from ringworld.errors import UserError
from ringworld.synthesis.records import Ask, Chunk

VERSION = 1

BEGIN, END = "<passage>", "</passage>"
OPENING = "Read the passage, then write one question about it and the answer."
RULES = (
    "The question asks for one fact that stands in the passage and that nobody could know without it.",
    "Name the people, places, things or numbers it is about. It will be read without the passage, "
    'so never write "the passage", "the text" or "the author".',
    "The answer is short: a few words copied from the passage, and they do not stand in the question.",
    "Write in the language of the passage.",
    "Write two lines and nothing else:",
)
FORM = "Question: ...?\nAnswer: ..."
EXAMPLE = "Question: What did Captain Boomer lose to the white whale?\nAnswer: his right arm"


@dataclass(frozen=True)
class PromptOptions:
    """How is asked; part of a recipe. max_tokens: of a reply. language: to write in; empty: the passage's own.

    seed: of the sampling; each request has its own, made of this and of what it is about.
    """

    max_tokens: int = 200
    temperature: float = 0.7
    seed: int = 0
    language: str = ""

    def __post_init__(self) -> None:
        if self.max_tokens < 16:
            raise UserError(f"max_tokens={self.max_tokens}: a question and its answer need 16 or more, such as 200")
        if not 0 <= self.temperature <= 2:
            raise UserError(f"temperature={self.temperature}: from 0 (always the likeliest word) to 2")


def ask(chunk: Chunk, index: int, options: PromptOptions) -> Ask:
    """The request for question `index` (from 0) about a chunk; another index has another seed, so another question."""
    # By content alone: where a document lies must not decide what is asked about it.
    told = hashlib.sha256(chunk.text.encode("utf-8", "surrogatepass")).hexdigest()
    drawn = f"{options.seed}/{chunk.sha256}/{chunk.number}/{told}/{index}"
    seed = int.from_bytes(hashlib.sha256(drawn.encode()).digest()[:4], "big") >> 1
    return Ask((Turn("user", _prompt(chunk.text, options.language)),), options.max_tokens, options.temperature, seed)


def passage(asked: Ask) -> str:
    """The passage that an `ask` is about: its chunk's text without the space around it."""
    said = asked.turns[-1].text
    return said[said.index(BEGIN) + len(BEGIN) : said.rindex(END)].strip()


def _prompt(text: str, language: str) -> str:
    rules = [f"Write in {language}." if language and "language of" in rule else rule for rule in RULES]
    listed = "\n".join(f"- {rule}" for rule in rules)
    return f"{OPENING}\n{listed}\n{FORM}\n\nAn example:\n{EXAMPLE}\n\n{BEGIN}\n{text.strip()}\n{END}"
