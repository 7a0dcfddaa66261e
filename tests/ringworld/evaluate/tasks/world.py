"""Tasks over a small haystack and a tokenizer that joins letters, for the tests of this folder."""

from __future__ import annotations

from functools import cache

from ringworld.data.tokenizers import ByteTokenizer, Tokenizer, train_bpe
from ringworld.evaluate.tasks.haystack import Document, make_haystack
from ringworld.evaluate.tasks.names import names_of
from ringworld.evaluate.tasks.prompting import ModelPrompting, prompting_of
from ringworld.evaluate.tasks.questions import Asked
from ringworld.evaluate.tasks.registry import tasks_of
from ringworld.evaluate.tasks.task import Task
from ringworld.generate.checkpoint import Checkpoint
from ringworld.model.config import ModelConfig, RopeConfig
from ringworld.model.rope import make_rope
from tests.ringworld.corpus import prose

WORDS = 12_000
CONFIG = ModelConfig(512, 1, 16, 2, 1, 8, 16, rope=RopeConfig(1e4))


@cache
def bpe() -> Tokenizer:
    return train_bpe([prose(seed, 40) for seed in range(4)] + ["One of the special magic numbers for is:"], 400)


def checkpoint(tokenizer: Tokenizer, begin: int | None = None) -> Checkpoint:
    return Checkpoint(
        "tiny", CONFIG, make_rope(CONFIG.rope, 8), "", 8192, "float32", tokenizer, begin,
        frozenset({tokenizer.eos_id}), None,
    )  # fmt: skip


@cache
def prompting(byte: bool = False, begin: int | None = None, chat: bool = False) -> ModelPrompting:
    return prompting_of(checkpoint(ByteTokenizer() if byte else bpe(), begin), chat)


@cache
def tasks() -> dict[str, Task]:
    haystack = make_haystack([Document("a", "0", prose(1, WORDS // 8))], prompting().count)
    asked = [
        Asked(
            f"{prose(number, 12)} The captain is number {number}.", f"What is the captain of text {number}?", (answer,)
        )
        for number in range(120)
        for answer in [f"number {number}"]
    ]
    names = names_of(["all"], documents=True, questions=True)
    return {task.name: task for task in tasks_of(names, haystack, asked)}
