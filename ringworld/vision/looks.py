"""What pictures look like, in 64 bits each, and which look alike. Pure.

The perceptual hash is that of the discrete cosine transform (pHash): grey, 32 x 32, the 8 x 8 lowest frequencies, one
bit each for being above their median. Resizing, recompressing and slight changes of brightness move few bits; different
pictures differ in about half. It sees neither colour nor what is smaller than a thirtieth of the picture.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from scipy.fft import dctn

from ringworld.data.near import Pairs, decide

BITS = 64

_SIDE = 32
_LOW = 8
_NEIGHBOURS = 256  # of a bucket: each is compared with so many after it, which bounds the work on blank pictures


def look(pixels: np.ndarray) -> int:
    """The hash of uint8 [h, w, 3], below 2^64."""
    small = np.asarray(_grey(pixels), np.float64)
    waves: Any = dctn(small, norm="ortho")
    low = waves[:_LOW, :_LOW].ravel()
    # The first is the mean brightness, larger than all others, and would move the median.
    bits = low > np.median(low[1:])
    return int(np.packbits(bits).view(">u8")[0])


def stillness(frames: Sequence[np.ndarray], same: float) -> float:
    """The share of frames, after the first, that differ from the one before by at most `same` levels of 255.

    frames: uint8 [h, w, 3]. The difference is the mean over the 32 x 32 grey picture. 1 for fewer than two frames.
    """
    small = [np.asarray(_grey(frame), np.float64) for frame in frames]
    steps = [np.abs(after - before).mean() <= same for before, after in itertools.pairwise(small)]
    return float(np.mean(steps)) if steps else 1.0


def alike(looks: np.ndarray, sizes: Sequence[int], names: Sequence[str], distance: int) -> np.ndarray:
    """int64 [n]: for each, the one it is dropped for, or itself where it stays.

    looks: uint64 [n, frames]; two are alike when on average at most `distance` bits of a frame differ, and no more in
    the frame in the middle. Of alike ones the largest stays, of equals the one with the smallest name; one that is
    dropped is alike to one that stays.
    """
    number = len(looks)
    order = np.array(sorted(range(number), key=lambda one: (-sizes[one], names[one])), np.int64)
    if not number:
        return order
    # Equal ones first, so that what is compared pair by pair is different.
    unique, first, group = np.unique(looks[order], axis=0, return_index=True, return_inverse=True)
    group = group.ravel()
    pairs = _pairs(unique, distance)
    stays = np.arange(len(unique))
    if len(pairs.first):
        members = np.unique(np.concatenate([pairs.first, pairs.second]))
        chosen: list[int] = order[first[members]].tolist()
        verdict = decide(pairs, [sizes[one] for one in chosen], [names[one] for one in chosen])
        stays[verdict.document] = verdict.kept
    result = np.empty(number, np.int64)
    result[order] = order[first[stays[group]]]
    return result


def _pairs(looks: np.ndarray, distance: int) -> Pairs:
    """Of different looks. Two words that differ in d bits are equal in one of d + 1 parts of their bits."""
    middle = looks[:, looks.shape[1] // 2]
    edges = np.linspace(0, BITS, distance + 2).astype(int)
    first, second, alike = [], [], []
    for low, high in itertools.pairwise(edges.tolist()):
        part = middle << np.uint64(BITS - high) >> np.uint64(BITS - high + low)
        order = np.argsort(part, kind="stable")
        for step in range(1, min(len(order), _NEIGHBOURS + 1)):
            here, there = order[:-step], order[step:]
            same = part[here] == part[there]
            if not same.any():
                break
            here, there = here[same], there[same]
            bits = np.bitwise_count(looks[here] ^ looks[there])
            near = (bits.mean(axis=1) <= distance) & (bits[:, looks.shape[1] // 2] <= distance)
            first.append(here[near])
            second.append(there[near])
            alike.append(1 - bits[near].mean(axis=1) / BITS)
    if not first:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return Pairs.of(np.concatenate(first), np.concatenate(second), np.concatenate(alike))


def _grey(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
