"""Long examples made of related documents: who follows whom. Pure; vectors and tables.

In-Context Pretraining (Shi et al. 2023, arXiv:2310.10638) orders documents so that neighbours are related: a graph
joins each document to its nearest ones, and a walk that visits each document once begins at the one with the fewest
edges and goes on to the most similar one not yet visited. Theirs is one path, which jumps where it finds no way on;
here a new chain begins, so that a chain holds related documents only, and one without relations is a chain of its own.

A document's vector is the TF-IDF of its words, (1 + ln count) ln((1 + documents) / (1 + documents with the word)):
words are hashed to buckets, buckets are added with random signs into fewer dimensions (Weinberger et al. 2009), and the
sum has length 1. Not learned: it needs no model and no accelerator, and is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ringworld.data.files import read_table
from ringworld.data.token_store import TokenIndex
from ringworld.data.words import chunks, mixed
from ringworld.errors import UserError

BUCKETS = 1 << 18
_ROWS = 2048  # of the matrix of similarities at a time

CHAINS = pa.schema(
    [
        ("chain", pa.int64()),
        ("place", pa.int64()),  # in the chain, from 0
        ("document", pa.int64()),  # of the token index
        ("similarity", pa.float64()),  # to the one before: a cosine; null for the first
    ]
)


def word_counts(text: str) -> tuple[np.ndarray, np.ndarray]:
    """The different buckets of a text's words, ascending, and how often each stands there; int64."""
    counted = [np.unique(_bucket(words.hashes), return_counts=True) for words in chunks(text)]
    bucket, place = np.unique(np.concatenate([found for found, _ in counted]), return_inverse=True)
    counts = np.bincount(place, weights=np.concatenate([count for _, count in counted]), minlength=len(bucket))
    return bucket, counts.astype(np.int64)


def vector(bucket: np.ndarray, count: np.ndarray, holders: np.ndarray, documents: int, dimensions: int) -> np.ndarray:
    """float32 [dimensions], of length 1, or 0 for a text whose words are in all documents.

    bucket, count: of `word_counts`. holders: int [BUCKETS], how many of all documents hold each bucket.
    """
    weight = (1 + np.log(count)) * np.log((1 + documents) / (1 + holders[bucket]))
    spread = mixed(bucket.astype(np.uint64) + np.uint64(1))
    sign = 1.0 - 2.0 * (spread >> np.uint64(63)).astype(np.float64)
    summed = np.bincount((spread % np.uint64(dimensions)).astype(np.int64), weight * sign, dimensions)
    length = np.linalg.norm(summed)
    return (summed / length if length > 0 else summed).astype(np.float32)


def nearest(vectors: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """The `neighbours` nearest others of each of `vectors` [documents, dimensions], nearest first, by cosine.

    Returns other int64 and similarity float32, both [documents, at most neighbours]. Of equals the first counts.
    """
    number = len(vectors)
    many = max(0, min(neighbours, number - 1))
    others, similarities = np.zeros((number, many), np.int64), np.zeros((number, many), np.float32)
    for first in range(0, number if many else 0, _ROWS):
        # Rounded, so that which way a library adds up decides no tie.
        cosine = np.round(vectors[first : first + _ROWS] @ vectors.T, 5)
        rows = np.arange(len(cosine))
        cosine[rows, first + rows] = -2
        order = np.argsort(-cosine, axis=1, kind="stable")[:, :many]
        others[first : first + _ROWS], similarities[first : first + _ROWS] = order, cosine[rows[:, None], order]
    return others, similarities


def walk(others: np.ndarray, similarities: np.ndarray, least: float) -> list[list[tuple[int, float]]]:
    """Chains of (document, similarity to the one before) that visit each document once; the first similarity is 0.

    others, similarities: as `nearest` returns them. A step goes over an edge of at least `least`.
    """
    edges: list[dict[int, float]] = [{} for _ in range(len(others))]
    for one, (row, values) in enumerate(zip(others.tolist(), similarities.tolist(), strict=True)):
        for other, value in zip(row, values, strict=True):
            if value >= least:
                edges[one][other] = edges[other][one] = value
    ways = [sorted(found.items(), key=lambda edge: (-edge[1], edge[0])) for found in edges]
    visited = [False] * len(ways)
    chains = []
    for start in sorted(range(len(ways)), key=lambda one: (len(ways[one]), one)):
        if visited[start]:
            continue
        visited[start] = True
        chain = [(start, 0.0)]
        while step := next((edge for edge in ways[chain[-1][0]] if not visited[edge[0]]), None):
            visited[step[0]] = True
            chain.append(step)
        chains.append(chain)
    return chains


@dataclass(frozen=True, eq=False)
class Chains:
    """Columns of `CHAINS` as arrays [documents], sorted by chain and place."""

    chain: np.ndarray
    document: np.ndarray

    @classmethod
    def load(cls, place: str) -> Chains:
        table = read_table(place, ["chain", "place", "document"])
        table = table.sort_by([("chain", "ascending"), ("place", "ascending")])
        return cls(table["chain"].to_numpy(), table["document"].to_numpy())


def chained(index: TokenIndex, documents: np.ndarray, chains: Chains) -> Sequence[np.ndarray]:
    """`documents` (int64, of one split) in groups, int64 each: those of a chain in its order, then the others alone.

    Raises UserError when the chains name documents that the index lacks: they belong to another token store.
    """
    if len(chains.document) and chains.document.max() >= len(index.tokens):
        raise UserError(
            f"chains of {int(chains.document.max()) + 1} documents do not belong to a token store of "
            f"{len(index.tokens)}; make the assemble stage again from this store"
        )
    wanted = np.zeros(len(index.tokens), bool)
    wanted[documents] = True
    here = wanted[chains.document]
    chain, document = chains.chain[here], chains.document[here]
    wanted[document] = False
    groups = np.split(document, np.flatnonzero(np.diff(chain)) + 1) if len(document) else []
    return [*groups, *np.flatnonzero(wanted)[:, None]]


def _bucket(hashes: np.ndarray) -> np.ndarray:
    return (hashes % np.uint64(BUCKETS)).astype(np.int64)
