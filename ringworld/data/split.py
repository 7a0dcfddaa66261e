"""Which documents are held out for evaluation. Pure: decided by content and seed, never by order, path or machine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from ringworld.errors import UserError


def held_out(sha256: Sequence[str], tokens: np.ndarray, fraction: float, seed: int, longest: int) -> np.ndarray:
    """bool [documents]: True for the documents held out.

    About `fraction` of the documents, chosen by a hash of (seed, sha256), so that adding a document moves no other one;
    at least one on each side; and where two documents fill `longest` positions (have more than `longest` tokens), one
    of them on each side, so that the longest stage can both train and be evaluated.

    Raises UserError for fewer than two documents, or a fraction outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise UserError(f"held_out={fraction}: give a fraction of the documents, at least 0 and below 1, such as 0.1")
    if len(sha256) < 2:
        raise UserError(f"{len(sha256)} usable document: training and evaluation need two documents; add more sources")
    draw = np.array([_draw(seed, digest) for digest in sha256])
    chosen = draw < fraction
    _both_sides(chosen, draw, np.arange(len(draw)))
    _both_sides(chosen, draw, np.flatnonzero(tokens > longest))
    return chosen


def _both_sides(chosen: np.ndarray, draw: np.ndarray, among: np.ndarray) -> None:
    """Move one of two or more documents when all of them are on one side: the one nearest to the other side."""
    if len(among) < 2:
        return
    if not chosen[among].any():
        chosen[among[np.argmin(draw[among])]] = True
    elif chosen[among].all():
        chosen[among[np.argmax(draw[among])]] = False


def _draw(seed: int, digest: str) -> float:
    """Uniform in [0, 1)."""
    mixed = hashlib.sha256(f"{seed}:{digest}".encode()).digest()
    return int.from_bytes(mixed[:6], "big") / (1 << 48)
