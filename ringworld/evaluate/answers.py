"""Answers of held-out conversations: where they lie in rows, and what they cost.

Of each corpus the conversations that fit a row are taken, at most a given number, spread evenly over those that there
are. They are selected, packed, read and weighed by what training uses, so the loss of a corpus is what a chat stage
makes smaller: the mean over conversations of each one's mean over the tokens of its answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ringworld.data.templates import template_of
from ringworld.data.token_store import TokenStore
from ringworld.data.tokenizers import Tokenizer
from ringworld.evaluate.held_out import Example, read_examples
from ringworld.evaluate.passages import Passage, passages
from ringworld.evaluate.scorer import Rows

CLASSES = 5  # of depth, of equal width


@dataclass(frozen=True, eq=False)
class Answer:
    """One answer of a conversation.

    row, slots: of the rows of its `Talks`, where its tokens are the targets. prompt, ids: int32, the tokens before it,
    and its own with the one that ends it.
    """

    corpus: str
    document: int
    row: int
    slots: slice
    prompt: np.ndarray
    ids: np.ndarray
    passage: Passage

    @property
    def depth_class(self) -> int | None:
        """0 .. CLASSES - 1; None where the depth is not known."""
        depth = self.passage.depth
        return None if depth is None else min(int(depth * CLASSES), CLASSES - 1)


@dataclass(frozen=True, eq=False)
class Talks:
    """Held-out conversations of a corpus as rows.

    weight: float32 [rows, sequence], of each target's loss, as in a training batch that holds all of them. left_out:
    how many held-out conversations cannot be scored, by reason.
    """

    rows: Rows
    weight: np.ndarray
    conversations: int
    answers: tuple[Answer, ...]
    left_out: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class TalkScores:
    """What a model makes of `Talks`. loss: nats, the mean over conversations. Of each answer, arrays [answers]:

    losses: float64, the mean of its tokens; verbatim: bool, whether a greedy reader gives it token for token.
    """

    loss: float
    losses: np.ndarray
    verbatim: np.ndarray


def read_talks(store: TokenStore, tokenizer: Tokenizer, corpus: str, sequence: int, most: int) -> Talks:
    """At most `most` held-out conversations of a corpus, in rows of `sequence` slots.

    UserError, naming the lengths that exist, where none fits.
    """
    found = read_examples(store, corpus, sequence, most, f"chat.corpora: {corpus}")
    ends = ends_of(tokenizer)
    answers = [answer for example in found.examples for answer in answers_in(example, corpus, tokenizer, ends)]
    return Talks(found.rows, found.weight, len(found.examples), tuple(answers), found.left_out)


def answers_in(
    example: Example, corpus: str, tokenizer: Tokenizer, ends: frozenset[int], first_seen: int | None = None
) -> list[Answer]:
    """The answers of a conversation. first_seen: the first id that is a code of a picture, which no text is made of; an
    answer that has one is left out."""
    ids, spans = example.ids, _runs(example.counts)
    text = ids < first_seen if first_seen is not None else np.ones(len(ids), bool)
    before = np.append(0, np.cumsum(text))  # ids of text before each id, and before the end
    in_text = [(int(before[start]), int(before[stop])) for start, stop in spans]
    return [
        Answer(
            corpus,
            example.document,
            example.row,
            slice(example.slot + start - 1, example.slot + stop - 1),
            ids[:start],
            ids[start:stop],
            passage,
        )
        for (start, stop), passage in zip(spans, passages(ids[text], in_text, tokenizer, ends), strict=True)
        if text[start:stop].all()
    ]


def score_talks(talks: Talks, loss: np.ndarray, hit: np.ndarray) -> TalkScores:
    """From loss float32 and hit bool, both [rows, sequence], of the talks' rows."""
    return TalkScores(
        float((loss * talks.weight).sum(dtype=np.float64)),
        np.array([loss[answer.row, answer.slots].mean(dtype=np.float64) for answer in talks.answers]),
        np.array([hit[answer.row, answer.slots].all() for answer in talks.answers]),
    )


def by_depth(answers: Sequence[Answer]) -> dict[int, list[int]]:
    """The numbers of the answers in each class of depth that has some; those of no known depth are in none."""
    classes: dict[int, list[int]] = {}
    for number, answer in enumerate(answers):
        if answer.depth_class is not None:
            classes.setdefault(answer.depth_class, []).append(number)
    return dict(sorted(classes.items()))


def ends_of(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that end an answer."""
    return template_of(tokenizer).ends() | {tokenizer.eos_id}


def _runs(marks: np.ndarray) -> list[tuple[int, int]]:
    """(start, stop) of each run of True."""
    edges = np.flatnonzero(np.diff(marks, prepend=False, append=False)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))
