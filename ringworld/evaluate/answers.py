"""Answers of held-out conversations: where they lie in rows, and what they cost.

Of each corpus the conversations that fit a row are taken, at most a given number, spread evenly over those that there
are. They are selected, packed, read and weighed by what training uses, so the loss of a corpus is what a chat stage
makes smaller: the mean over conversations of each one's mean over the tokens of its answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ringworld.data.loader import Loader
from ringworld.data.packing import cut_in_rows, pack, select_whole
from ringworld.data.templates import template_of
from ringworld.data.token_store import TokenStore
from ringworld.data.tokenizers import Tokenizer
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
class Scores:
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
    whole = select_whole(store.index, "held_out", corpus, sequence, f"chat.corpora: {corpus}")
    spread = np.linspace(0, len(whole.documents) - 1, min(most, len(whole.documents))).round().astype(np.int64)
    plan = pack(store.index, cut_in_rows(store.index, whole.documents[spread], sequence), sequence, "example")
    loader = Loader(store, plan, seed=0, rows_per_batch=plan.num_rows, shuffle=False)
    batch = loader.batch(0)
    place = np.argsort(loader.rows_at(0))  # in the batch, of each row of the plan
    ends = ends_of(tokenizer)
    answers: list[Answer] = []
    for document, row, slot, length in zip(
        plan.document.tolist(), place[plan.row].tolist(), plan.slot.tolist(), plan.length.tolist(), strict=True
    ):
        at = (row, slice(slot, slot + length))
        ids = np.append(batch.tokens[at], batch.targets[row, slot + length - 1])
        spans = _runs(np.append(False, batch.loss_weight[at] > 0))
        for (start, stop), passage in zip(spans, passages(ids, spans, tokenizer, ends), strict=True):
            slots = slice(slot + start - 1, slot + stop - 1)
            answers.append(Answer(corpus, document, row, slots, ids[:start], ids[start:stop], passage))
    rows = Rows(batch.tokens, batch.targets, batch.segments, batch.positions)
    return Talks(rows, batch.loss_weight, len(spread), tuple(answers), whole.dropped)


def score_talks(talks: Talks, loss: np.ndarray, hit: np.ndarray) -> Scores:
    """From loss float32 and hit bool, both [rows, sequence], of the talks' rows."""
    return Scores(
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
