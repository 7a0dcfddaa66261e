"""The work that both sides of benchmarks/ring_attention.py do, in numpy alone: the peer's environment runs it too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

HEADS, HEAD_DIM = 4, 64
GEMM = 2048  # the machine's limit is measured on square float32 matrices of this size


@dataclass(frozen=True)
class Work:
    """Forward and backward of causal attention over one row of packed documents; batch 1, float32, HEADS x HEAD_DIM."""

    documents: tuple[int, ...]

    @staticmethod
    def of(request: dict[str, Any]) -> Work:
        return Work(tuple(request["documents"]))

    @property
    def length(self) -> int:
        return sum(self.documents)

    @property
    def operations(self) -> float:
        """Floating-point operations of the two products forward and the five backward, over visible pairs alone.

        A document of n tokens has n * n / 2 of them; 2 operations per number and product; 3.5 times the forward
        pass in all (FlashAttention-2, arXiv:2307.08691, section 4.1).
        """
        return sum(4 * n * n * HEADS * HEAD_DIM / 2 * 3.5 for n in self.documents)

    def arrays(self) -> list[np.ndarray]:
        """q, k, v, grad_out: float32 [1, length, HEADS, HEAD_DIM], the same numbers in every process."""
        rng = np.random.default_rng(0)
        shape = (1, self.length, HEADS, HEAD_DIM)
        return [rng.standard_normal(shape).astype(np.float32) for _ in range(4)]

    def tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """positions and segments: int32 [1, length]."""
        positions = np.concatenate([np.arange(n) for n in self.documents])
        segments = np.repeat(np.arange(len(self.documents)) + 1, self.documents)
        return positions[None].astype(np.int32), segments[None].astype(np.int32)


def one_long(length: int, short: int) -> tuple[int, ...]:
    """A document of half the row, and so many of nearly equal length that share the other half."""
    half = length // 2
    return (length - half, *(half * (n + 1) // short - half * n // short for n in range(short)))


def largest_difference(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """The largest relative difference of any pair of arrays, in the Euclidean norm."""
    return max(
        float(np.linalg.norm(np.subtract(a, b, dtype=np.float64)) / np.linalg.norm(b))
        for a, b in zip(ours, theirs, strict=True)
    )
