"""Attention and its gradients, a dense float64 matrix per head: slow, obvious, sharing no code with the package."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Case:
    """A whole sequence: q and grad_out [b, s, h, d], k and v [b, s, n, d], positions and segments [b, s]."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    grad_out: np.ndarray
    positions: np.ndarray
    segments: np.ndarray

    def permuted(self, order: np.ndarray) -> Case:
        """The same sequence with its slots in another order."""
        return Case(*(getattr(self, name)[:, order] for name in self.__dataclass_fields__))


def random_case(
    rng: np.random.Generator,
    *,
    batch: int,
    tokens: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    documents: list[list[int]],
) -> Case:
    """documents: per row, lengths in order; a negative length is that much padding, and so is what is left over."""
    positions = np.full((batch, tokens), 7, np.int32)  # padding's positions mean nothing, and are not zero
    segments = np.zeros((batch, tokens), np.int32)
    for row, lengths in enumerate(documents):
        start = 0
        for number, length in enumerate(lengths, 1):
            if length > 0:
                positions[row, start : start + length] = np.arange(length)
                segments[row, start : start + length] = number
            start += abs(length)
        assert start <= tokens

    def normal(count: int) -> np.ndarray:
        return rng.standard_normal((batch, tokens, count, head_dim)).astype(np.float32)

    return Case(normal(heads), normal(kv_heads), normal(kv_heads), normal(heads), positions, segments)


def attention(case: Case, scale: float | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(out, grad_q, grad_k, grad_v) in float64, of the shapes of (q, q, k, v)."""
    q, k, v, g = (np.asarray(x, np.float64) for x in (case.q, case.k, case.v, case.grad_out))
    group = q.shape[2] // k.shape[2]
    factor = q.shape[3] ** -0.5 if scale is None else scale
    out, grad_q, grad_k, grad_v = np.zeros_like(q), np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for row in range(q.shape[0]):
        segments, positions = case.segments[row], case.positions[row]
        allowed = np.equal.outer(segments, segments) & np.greater_equal.outer(positions, positions)
        allowed[segments == 0] = False
        for head in range(q.shape[2]):
            shared = head // group
            weights = np.where(allowed, np.exp(factor * q[row, :, head] @ k[row, :, shared].T), 0.0)
            total = weights.sum(1, keepdims=True)
            weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
            out[row, :, head] = weights @ v[row, :, shared]
            grad_weights = g[row, :, head] @ v[row, :, shared].T
            grad_scores = weights * (grad_weights - (weights * grad_weights).sum(1, keepdims=True))
            grad_q[row, :, head] = factor * grad_scores @ k[row, :, shared]
            grad_k[row, :, shared] += factor * grad_scores.T @ q[row, :, head]
            grad_v[row, :, shared] += weights.T @ g[row, :, head]
    return out, grad_q, grad_k, grad_v


def relative_errors(found, expected) -> list[float]:
    """The largest difference of each array, relative to the largest value expected in it."""
    return [
        float(np.abs(np.asarray(a, np.float64) - b).max() / max(np.abs(b).max(), 1e-30))
        for a, b in zip(found, expected, strict=True)
    ]
