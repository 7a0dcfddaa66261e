"""Loss of each position of held-out rows, gathered into spans of positions.

A model that uses its context predicts late positions better than early ones. The figure that a context stage must move
is the loss at positions that the stage before had never seen.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

SPANS = 16


@dataclass(frozen=True)
class PositionLoss:
    """Mean loss in nats per token: of all positions, of those >= past, of each span [edges[i], edges[i+1])."""

    mean: float
    mean_past: float
    edges: tuple[int, ...]
    spans: tuple[float, ...]


def summarize(loss: np.ndarray, segments: np.ndarray, past: int) -> PositionLoss:
    """From loss float32 [rows, sequence] of rows that are one document each; slots of segment 0 do not count."""
    sequence = loss.shape[1]
    real = segments > 0
    edges = np.linspace(0, sequence, min(SPANS, sequence) + 1).round().astype(int)

    def mean(first: int, last: int) -> float:
        weights = real[:, first:last]
        return float((loss[:, first:last] * weights).sum(dtype=np.float64) / max(weights.sum(), 1))

    spans = tuple(mean(first, last) for first, last in itertools.pairwise(edges))
    return PositionLoss(mean(0, sequence), mean(past, sequence), tuple(int(edge) for edge in edges), spans)
