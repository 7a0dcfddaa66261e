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


def attention(
    case: Case,
    scale: float | None = None,
    soft_cap: float | None = None,
    window: int | None = None,
    sinks: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(out, grad_q, grad_k, grad_v) in float64, of the shapes of (q, q, k, v)."""
    q, k, v, g = (np.asarray(x, np.float64) for x in (case.q, case.k, case.v, case.grad_out))
    group = q.shape[2] // k.shape[2]
    factor = q.shape[3] ** -0.5 if scale is None else scale
    out, grad_q, grad_k, grad_v = np.zeros_like(q), np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for row in range(q.shape[0]):
        allowed = _allowed(case.positions[row].tolist(), case.segments[row].tolist(), window, sinks)
        for head in range(q.shape[2]):
            shared = head // group
            scores = factor * q[row, :, head] @ k[row, :, shared].T
            slope = np.ones_like(scores)
            if soft_cap is not None:
                scores = soft_cap * np.tanh(scores / soft_cap)
                slope = 1 - (scores / soft_cap) ** 2
            weights = np.where(allowed, np.exp(scores), 0.0)
            total = weights.sum(1, keepdims=True)
            weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
            out[row, :, head] = weights @ v[row, :, shared]
            grad_weights = g[row, :, head] @ v[row, :, shared].T
            grad_scores = slope * weights * (grad_weights - (weights * grad_weights).sum(1, keepdims=True))
            grad_q[row, :, head] = factor * grad_scores @ k[row, :, shared]
            grad_k[row, :, shared] += factor * grad_scores.T @ q[row, :, head]
            grad_v[row, :, shared] += weights.T @ g[row, :, head]
    return out, grad_q, grad_k, grad_v


def _allowed(positions: list[int], segments: list[int], window: int | None, sinks: int) -> np.ndarray:
    """bool [queries, keys], pair by pair, as a person would say it."""

    def sees(query: int, key: int) -> bool:
        back = positions[query] - positions[key]
        if segments[query] == 0 or segments[query] != segments[key] or back < 0:
            return False
        return window is None or back < window or positions[key] < sinks

    return np.array([[sees(i, j) for j in range(len(positions))] for i in range(len(positions))])


def relative_errors(found, expected) -> list[float]:
    """The largest difference of each array, relative to the largest value expected in it.

    Where nothing but rounding is expected, as in the gradient of a query that sees itself alone, it is relative to the
    largest value of all arrays.
    """
    largest = [float(np.abs(b).max()) for b in expected]
    units = [own if own > 1e-9 * max(largest) else max(*largest, 1e-30) for own in largest]
    return [
        float(np.abs(np.asarray(a, np.float64) - b).max()) / unit
        for a, b, unit in zip(found, expected, units, strict=True)
    ]
