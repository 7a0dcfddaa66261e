"""What a corpus of examples with pictures costs a model: its text and its pictures apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ringworld.evaluate.held_out import Examples


@dataclass(frozen=True)
class SeenLoss:
    """Mean loss in nats per token, over the targets that count: those of text, and those that are vision ids.

    None where a corpus has none of them.
    """

    text: float | None
    vision: float | None
    text_tokens: int
    vision_tokens: int


def seen_loss(examples: Examples, loss: np.ndarray, first_seen: int) -> SeenLoss:
    """From loss float32 [rows, sequence] of the examples' rows. first_seen: the first vision id."""
    counts, seen = examples.weight > 0, examples.rows.targets >= first_seen

    def mean(which: np.ndarray) -> float | None:
        return float(loss[which].mean(dtype=np.float64)) if which.any() else None

    text, vision = counts & ~seen, counts & seen
    return SeenLoss(mean(text), mean(vision), int(text.sum()), int(vision.sum()))
