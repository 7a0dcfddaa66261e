"""Does more context help, and is short text forgotten? Losses of the same tokens after more and more that came before
them, and of the beginnings of held-out documents.

Both are stretches of held-out documents, packed as segments into rows of the length that the scorer is compiled for:
`Scorer.score` reads the rows, `given_context` and `short_loss` what it found. Which stretches are read depends on the
store and the lengths alone, so stages of one run are compared on the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ringworld.data.token_store import TokenStore
from ringworld.errors import UserError
from ringworld.evaluate.needle import pack_prompts
from ringworld.evaluate.recipe import ContextConfig
from ringworld.evaluate.scorer import Rows

LEAST_CONTEXT = 512  # tokens, of the shortest context that is given


@dataclass(frozen=True, eq=False)
class Stretches:
    """Stretches of documents as rows.

    places: (row, slot) of each. lengths: tokens of each that are read, one less than it has. counted: how many of the
    last targets of each count.
    """

    rows: Rows
    places: tuple[tuple[int, int], ...]
    lengths: tuple[int, ...]
    counted: tuple[int, ...]

    def losses(self, loss: np.ndarray) -> list[np.ndarray]:
        """Of each stretch the losses that count, from loss float32 [rows, sequence]."""
        return [
            loss[row, slot + length - count : slot + length]
            for (row, slot), length, count in zip(self.places, self.lengths, self.counted, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class ContextStretches:
    """The same last `tail` targets of each window after each of `contexts` tokens, window by window."""

    stretches: Stretches
    contexts: tuple[int, ...]
    windows: int
    tail: int


@dataclass(frozen=True)
class ContextLoss:
    """Mean loss, nats per token, of the last `tail` tokens after each number of tokens of context, least first.

    gain: by how much the last is lower than the first.
    """

    contexts: tuple[int, ...]
    losses: tuple[float, ...]
    windows: int
    tail: int

    @property
    def gain(self) -> float:
        return self.losses[0] - self.losses[-1]


def contexts_of(sequence: int, tail: int, least: int = LEAST_CONTEXT) -> tuple[int, ...]:
    """`least`, doubled again and again, and at last all that a sequence holds before its tail.

    UserError for a sequence that holds no context beside the tail.
    """
    full = sequence - tail
    if not 0 < tail < sequence or full < 1:
        raise UserError(f"tail={tail}: must lie in 1..{sequence - 1}, to leave context in a sequence of {sequence}")
    found = [least << turn for turn in range(64) if least << turn < full]
    return (*found, full)


def context_stretches(
    store: TokenStore, sequence: int, tail: int, windows: int, least: int = LEAST_CONTEXT
) -> ContextStretches:
    """At most `windows` windows of held-out documents, spread evenly over those that there are.

    UserError where no held-out document fills a window.
    """
    contexts = contexts_of(sequence, tail, least)
    places = [
        (document, start)
        for document in store.index.documents("held_out").tolist()
        # Without the end-of-text id, which nothing before it announces.
        for start in range(0, int(store.index.tokens[document]) - 1 - sequence, sequence + 1)
    ]
    if not places:
        longest = max(store.index.tokens[store.index.documents("held_out")].tolist(), default=0)
        raise UserError(
            f"no held-out document of {store.url} has the {sequence + 1} tokens of a window; the longest has "
            f"{longest}: hold out longer ones, or evaluate at a shorter length"
        )
    chosen = [places[number] for number in _spread(len(places), windows)]
    pieces: list[np.ndarray] = []
    for document, start in chosen:
        window = store.read(document, start, sequence + 1)
        pieces += [window[-(context + tail + 1) :] for context in contexts]
    return ContextStretches(_packed(pieces, sequence, [tail] * len(pieces)), contexts, len(chosen), tail)


def given_context(asked: ContextStretches, loss: np.ndarray) -> ContextLoss:
    """From loss float32 [rows, sequence] of the stretches' rows."""
    means = np.array([found.mean(dtype=np.float64) for found in asked.stretches.losses(loss)])
    by_context = means.reshape(asked.windows, len(asked.contexts)).mean(0)
    return ContextLoss(asked.contexts, tuple(by_context.tolist()), asked.windows, asked.tail)


def short_stretches(store: TokenStore, short: int, sequence: int, documents: int) -> Stretches:
    """The first `short` targets of at most `documents` held-out documents, spread evenly; a shorter one whole.

    UserError where nothing is held out.
    """
    held_out = [document for document in store.index.documents("held_out").tolist() if store.index.tokens[document] > 1]
    if not held_out or not 0 < short <= sequence:
        raise UserError(f"short={short}: give 1..{sequence} tokens, and a store that holds out a document")
    chosen = [held_out[number] for number in _spread(len(held_out), documents)]
    lengths = [min(short + 1, int(store.index.tokens[document])) for document in chosen]
    pieces = store.read_many(chosen, [0] * len(chosen), lengths)
    return _packed(pieces, sequence, [len(piece) - 1 for piece in pieces])


def short_loss(asked: Stretches, loss: np.ndarray) -> float:
    """Mean over all targets, nats per token: what a stage should not raise."""
    return float(np.concatenate(asked.losses(loss)).mean(dtype=np.float64))


# ---------------------------------------------------------------------- of an evaluation


@dataclass(frozen=True, eq=False)
class HeldOutContext:
    """What is to be scored. given, short: None where `refused`, `short_refused` say why."""

    given: ContextStretches | None
    refused: str
    short: Stretches | None
    short_refused: str

    @property
    def rows(self) -> list[Rows]:
        """All that are scored, under the weights before and after."""
        stretches = (self.given.stretches if self.given else None, self.short)
        return [found.rows for found in stretches if found is not None]


class ContextScores(NamedTuple):
    """given: None where it was refused; short: nats per token."""

    given: ContextLoss | None
    short: float | None


def read_context(config: ContextConfig | None, store: TokenStore, sequence: int) -> HeldOutContext | None:
    """None for a recipe without it. A store that has no document long enough refuses a part, with the reason."""
    if config is None:
        return None
    given, refused, short, short_refused = None, "", None, ""
    try:
        given = context_stretches(store, sequence, config.tail, config.windows, config.least)
    except UserError as none_fits:
        refused = str(none_fits)
    try:
        short = short_stretches(store, config.short, sequence, config.documents)
    except UserError as none_is_held_out:
        short_refused = str(none_is_held_out)
    return HeldOutContext(given, refused, short, short_refused)


def score_context(held_out: HeldOutContext, loss_of: Callable[[Rows], np.ndarray]) -> ContextScores:
    """loss_of: float32 [rows, sequence] of rows."""
    given, short = held_out.given, held_out.short
    return ContextScores(
        given_context(given, loss_of(given.stretches.rows)) if given else None,
        short_loss(short, loss_of(short.rows)) if short else None,
    )


def context_figures(held_out: HeldOutContext, before: ContextScores, after: ContextScores) -> dict[str, Any]:
    """Plain JSON values, in nats per token; None for what was refused. context_gain: see `ContextLoss.gain`."""
    given = None
    if before.given and after.given:
        given = {
            "contexts": list(after.given.contexts),
            "before": list(before.given.losses),
            "after": list(after.given.losses),
            "windows": after.given.windows,
            "tail": after.given.tail,
        }
    return {
        "loss_given_context": given,
        "context_gain_before": before.given.gain if before.given else None,
        "context_gain": after.given.gain if after.given else None,
        "context_refused": held_out.refused,
        "short_documents": len(held_out.short.places) if held_out.short else 0,
        "short_loss_before": before.short,
        "short_loss_after": after.short,
        "short_refused": held_out.short_refused,
    }


def _packed(pieces: Sequence[np.ndarray], sequence: int, counted: Sequence[int]) -> Stretches:
    rows, places = pack_prompts(pieces, sequence, counted)
    return Stretches(rows, tuple(places), tuple(len(piece) - 1 for piece in pieces), tuple(counted))


def _spread(count: int, most: int) -> list[int]:
    return np.linspace(0, count - 1, min(most, count)).round().astype(np.int64).tolist()
