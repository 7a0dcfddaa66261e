"""Questions of held-out conversations put to a model: which of them, its greedy answers, and their grades.

A question is asked with the very tokens that stand before its answer in the token store, so a model is asked as it was
trained. An answer may be `ROOM` tokens longer than the true one, which is enough to see that it does not end.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from ringworld.data.tokenizers import Tokenizer
from ringworld.evaluate.answers import Answer, ends_of
from ringworld.evaluate.grading import exact_match, token_f1
from ringworld.generate.engine import Engine, Finish
from ringworld.generate.programs import Programs
from ringworld.generate.sampler import Prompt, Sampler
from ringworld.model.config import ModelConfig
from ringworld.model.llama import Params
from ringworld.model.rope import make_rope

ROOM = 16
# Tokens of a prompt at a time: a sixteenth of the context, at most this. A program is compiled for each power of two up
# to it, which takes longer than reading short prompts in small parts.
_CHUNK = 2048


@dataclass(frozen=True, eq=False)
class Asked:
    """What the model said in the place of an answer. finish: `length` where it came to no end of its own. f1: 0..1."""

    answer: Answer
    said: str
    finish: Finish
    exact: bool
    f1: float


class Room(NamedTuple):
    """What a sampler must hold: tokens of the longest prompt with its answer, and how many prompts there are."""

    context: int
    prompts: int


def room_for(answers: Sequence[Answer]) -> Room:
    """For the questions before these answers."""
    return Room(max((len(answer.prompt) + _room(answer) for answer in answers), default=0), len(answers))


def choose(answers: Sequence[Answer], most: int, seed: int) -> list[Answer]:
    """At most `most` of them: as many of each class of depth as there are, those of no depth being one class.

    The same seed chooses the same ones. Those of a conversation follow each other, so that its text is read once.
    """
    classes: dict[int, list[Answer]] = {}
    for number in np.random.default_rng(seed).permutation(len(answers)).tolist():
        depth = answers[number].depth_class
        classes.setdefault(-1 if depth is None else depth, []).append(answers[number])
    turns = itertools.zip_longest(*(classes[depth] for depth in sorted(classes)))
    by_turns = [answer for turn in turns for answer in turn if answer is not None]
    return sorted(by_turns[:most], key=lambda answer: (answer.document, len(answer.prompt)))


def open_sampler(
    config: ModelConfig, params: Params, mesh: Mesh, dtype: str, tokenizer: Tokenizer, room: Room, slots: int
) -> Sampler:  # fmt: skip
    """A sampler of these weights. slots: at most, for each data x fsdp shard."""
    programs = Programs(config, params, make_rope(config.rope, config.head_dim), mesh, dtype)
    shards = programs.batch_shards
    slots = min(slots, -(-room.prompts // shards)) * shards
    engine = Engine(programs, slots=slots, context=room.context, chunk=min(_CHUNK, max(1, room.context // 16)))
    return Sampler(engine, tokenizer, ends_of(tokenizer))


def ask(
    sampler: Sampler,
    answers: Sequence[Answer],
    on_step: Callable[[], None] = lambda: None,
    on_answer: Callable[[], None] = lambda: None,
) -> list[Asked]:
    """The model's answers, in the order given. on_step: it goes on; on_answer: one is done."""
    prompts = (Prompt(answer.prompt, max_tokens=_room(answer)) for answer in answers)
    found: dict[int, Asked] = {}
    for index, reply in sampler.run(prompts, lambda *_: on_step()):
        answer, said = answers[index], reply.text.strip()
        found[index] = Asked(
            answer,
            said,
            reply.finish,
            exact_match(said, answer.passage.truth),
            token_f1(said, answer.passage.truth),
        )
        on_answer()
    return [found[index] for index in range(len(answers))]


def graded(asked: Sequence[Asked]) -> dict[str, Any]:
    """How many were asked, and the means of their grades; None where none were."""
    return {
        "asked": len(asked),
        "exact": float(np.mean([item.exact for item in asked])) if asked else None,
        "f1": float(np.mean([item.f1 for item in asked])) if asked else None,
    }


def one_process(what: str) -> str:
    """Why something that a model says or draws is not to be had here; empty where it is. what: it, in the plural."""
    if jax.process_count() == 1:
        return ""
    return (
        f"{what} in one process and this evaluation ran in {jax.process_count()}; to have it, place the evaluation on "
        f"one host"
    )


def _room(answer: Answer) -> int:
    return len(answer.ids) + ROOM
