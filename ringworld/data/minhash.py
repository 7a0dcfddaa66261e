"""Near duplicates by MinHash: the signature of a text, its bands, and how alike two signatures are. Pure.

- A text is the set of its shingles, runs of a few words. Its signature holds, for each of many permutations of 32-bit
  numbers, the least place of any shingle (Broder 1997); two texts share a place with the probability of their sets'
  Jaccard similarity. The permutations are datasketch's `affine32`, and so are the signatures, bit for bit.
- Bands of rows of the signature are hashed; texts that share a band are compared (LSH, Indyk and Motwani 1998).
- Compared are the signatures' lowest bytes: b-bit minwise hashing (Li and König 2010), of a quarter of the size, so
  that each band can carry them to where it meets others. The estimate's standard error at similarity s is
  sqrt(s (1 - s) / permutations).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ringworld.data.words import chunks, mixed, runs
from ringworld.errors import UserError

_CHANCE = 1 / 256  # that two bytes are equal by accident
_BLOCK = 2048  # shingles at a time: [permutations, block] of 32 bits stays in a core's cache


@dataclass(frozen=True)
class Bands:
    """How a signature of `permutations` places is cut: `count` bands of `rows` places; what is left is not used."""

    permutations: int
    count: int
    rows: int

    @classmethod
    def for_threshold(cls, threshold: float, permutations: int, recall: float) -> Bands:
        """The longest rows, hence the fewest candidates, that still find a pair of just that similarity with `recall`.

        A pair of similarity s shares one of b bands of r rows with probability 1 - (1 - s^r)^b (Leskovec et al.,
        Mining of Massive Datasets, section 3.4).
        """
        for rows in range(permutations, 0, -1):
            bands = cls(permutations, permutations // rows, rows)
            if bands.found(threshold) >= recall:
                return bands
        raise UserError(
            f"permutations={permutations} cannot find pairs of similarity threshold={threshold} with recall={recall}; "
            "give more permutations or a lower recall"
        )

    def found(self, similarity: float) -> float:
        """The probability that a pair of this similarity becomes a candidate."""
        return 1 - (1 - similarity**self.rows) ** self.count

    def hashes(self, signatures: np.ndarray) -> np.ndarray:
        """uint64 [texts, bands] of signatures uint32 [texts, permutations]; equal only for the same band."""
        used = signatures[:, : self.count * self.rows].reshape(len(signatures), self.count, self.rows)
        made = np.broadcast_to(np.arange(self.count, dtype=np.uint64), used.shape[:2])
        for row in range(self.rows):
            made = mixed(made * np.uint64(0x9E3779B97F4A7C15) + used[:, :, row])
        return made


class Signer:
    """Signatures of texts given in pieces: `add` shingle hashes, then `signature`."""

    def __init__(self, permutations: int, seed: int) -> None:
        self._multipliers, self._offsets = (side[:, None] for side in _permutations(permutations, seed))
        self._least = np.full(permutations, 0xFFFFFFFF, np.uint32)
        self._places = np.empty((permutations, _BLOCK), np.uint32)
        self.shingles = 0

    def add(self, hashes: np.ndarray) -> None:
        """hashes: uint64; their upper halves are the 32 bits that are permuted."""
        self.shingles += len(hashes)
        for first in range(0, len(hashes), _BLOCK):
            spread = _finalised((hashes[first : first + _BLOCK] >> np.uint64(32)).astype(np.uint32))
            places = self._places[:, : len(spread)]
            np.multiply(self._multipliers, spread, out=places)
            places += self._offsets
            np.minimum(self._least, places.min(axis=1), out=self._least)

    def signature(self) -> np.ndarray:
        """uint32 [permutations]; all ones when nothing was added."""
        return self._least.copy()


def signature(text: str, shingle: int, permutations: int, seed: int, marks: bool = False) -> np.ndarray | None:
    """uint32 [permutations], or None for a text of fewer words than a shingle."""
    signer = Signer(permutations, seed)
    for words in chunks(text, overlap=shingle - 1, marks=marks):
        signer.add(runs(words.hashes, shingle))
    return signer.signature() if signer.shingles else None


def low_bytes(signatures: np.ndarray) -> np.ndarray:
    """uint8, of the same shape."""
    return (signatures & np.uint32(0xFF)).astype(np.uint8)


def similarity(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """float64 [others]: the Jaccard similarities, estimated from low bytes uint8 [..., permutations]."""
    equal = (others == one).mean(axis=1)
    return np.maximum(0.0, (equal - _CHANCE) / (1 - _CHANCE))


@lru_cache(maxsize=4)
def _permutations(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    from datasketch import MinHash  # takes half a second, which only who signs should pay

    multipliers, offsets = np.asarray(MinHash(count, seed, scheme="affine32").permutations)
    return multipliers, offsets


def _finalised(values: np.ndarray) -> np.ndarray:
    """uint32: murmur3's finaliser, which datasketch applies before its affine permutations."""
    values = (values ^ (values >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    values = (values ^ (values >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return values ^ (values >> np.uint32(16))
