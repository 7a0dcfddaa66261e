"""Chains of related documents: each document once, neighbours alike, the same whatever the order."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ringworld.data.assemble import BUCKETS, CHAINS, Chains, chained, nearest, vector, walk, word_counts
from ringworld.data.files import write_table
from ringworld.data.token_store import TokenIndex
from ringworld.errors import UserError

TOPICS = [[f"topic{topic}word{number}" for number in range(60)] for topic in range(5)]
COMMON = [f"common{number}" for number in range(40)]


def corpus(seed: int) -> tuple[list[str], list[int]]:
    """Texts of common words and those of one topic, and the topic of each."""
    rng = random.Random(seed)
    topics = [rng.randrange(len(TOPICS)) for _ in range(60)]
    texts = []
    for topic in topics:
        names = rng.choices(TOPICS[topic], k=rng.randint(40, 400)) + rng.choices(COMMON, k=300)
        rng.shuffle(names)
        texts.append(" ".join(names))
    return texts, topics


def vectors_of(texts: list[str], dimensions: int = 1024) -> np.ndarray:
    counted = [word_counts(text) for text in texts]
    holders = np.zeros(BUCKETS, np.int64)
    for bucket, _ in counted:
        holders[bucket] += 1
    return np.stack([vector(bucket, count, holders, len(texts), dimensions) for bucket, count in counted])


def test_cosines_are_those_of_tf_idf_without_hashing() -> None:
    texts, _ = corpus(0)
    holders = Counter(word for text in texts for word in set(text.split()))
    exact = []
    for text in texts:
        weights = {
            word: (1 + math.log(count)) * math.log((1 + len(texts)) / (1 + holders[word]))
            for word, count in Counter(text.split()).items()
        }
        length = math.sqrt(sum(weight**2 for weight in weights.values()))
        exact.append({word: weight / length for word, weight in weights.items()})
    true = np.array([[sum(w * b.get(word, 0.0) for word, w in a.items()) for b in exact] for a in exact])
    vectors = vectors_of(texts, 8192)
    assert np.abs(vectors @ vectors.T - true).max() < 0.06


def test_counts_are_those_of_the_words_over_chunks() -> None:
    text = " ".join(random.Random(1).choices(COMMON, k=40_000))
    assert sorted(word_counts(text)[1].tolist()) == sorted(Counter(text.split()).values())


def test_nearest_are_those_of_brute_force() -> None:
    vectors = vectors_of(corpus(2)[0])
    others, similarities = nearest(vectors, 5)
    for one in range(len(vectors)):
        cosines = sorted((float(vectors[one] @ vectors[n]) for n in range(len(vectors)) if n != one), reverse=True)
        assert one not in others[one]
        assert similarities[one] == pytest.approx(cosines[:5], abs=2e-5)
    assert nearest(vectors[:1], 5)[0].shape == (1, 0)
    assert nearest(vectors[:3], 5)[0].shape == (3, 2)


def test_chains_visit_each_document_once_and_stay_within_a_topic() -> None:
    texts, topics = corpus(3)
    chains = walk(*nearest(vectors_of(texts), 8), least=0.2)
    assert sorted(number for chain in chains for number, _ in chain) == list(range(len(texts)))
    assert max(len(chain) for chain in chains) >= 6
    for chain in chains:
        assert len({topics[number] for number, _ in chain}) == 1
        assert all(similarity >= 0.2 for _, similarity in chain[1:])


def test_a_step_goes_to_the_most_similar_document_not_yet_visited() -> None:
    # 0 - 1 strong, 1 - 2 weak, 1 - 3 stronger, 3 - 2 weak: from 0, which has one edge, over 1 and 3 to 2. 4 is alone.
    cosine = {(0, 1): 0.9, (1, 2): 0.3, (1, 3): 0.6, (2, 3): 0.2}
    others, similarities = np.zeros((5, 4), np.int64), np.zeros((5, 4), np.float32)
    for one in range(5):
        ranked = sorted((n for n in range(5) if n != one), key=lambda n: -cosine.get((min(one, n), max(one, n)), 0))
        others[one] = ranked
        similarities[one] = [cosine.get((min(one, n), max(one, n)), 0) for n in ranked]
    chains = walk(others, similarities, least=0.1)
    assert [[number for number, _ in chain] for chain in chains] == [[4], [0, 1, 3, 2]]
    assert [similarity for _, similarity in chains[1]] == pytest.approx([0, 0.9, 0.6, 0.2])
    assert [len(chain) for chain in walk(others, similarities, least=0.95)] == [1] * 5


def test_an_edge_leads_both_ways() -> None:
    nearest_of = np.array([[1], [2], [1], [2]])  # none has 3 as its nearest
    chains = walk(nearest_of, np.array([[0.5], [0.9], [0.9], [0.5]]), least=0.1)
    assert [[number for number, _ in chain] for chain in chains] == [[0, 1, 2, 3]]


def index_of(documents: int) -> TokenIndex:
    zeros = np.zeros(documents, np.int64)
    return TokenIndex("hash", zeros, zeros, zeros + 9, zeros.astype(bool))


def test_groups_are_the_chains_of_the_chosen_documents_then_the_others(tmp_path: Path) -> None:
    rows = [(1, 0, 5), (0, 0, 3), (0, 1, 1), (1, 1, 2), (0, 2, 4), (2, 0, 0)]
    table = pa.Table.from_pylist([{"chain": c, "place": p, "document": d} for c, p, d in rows], CHAINS)
    write_table(str(tmp_path / "chains.parquet"), table)
    chains = Chains.load(str(tmp_path / "chains.parquet"))
    groups = chained(index_of(8), np.array([0, 1, 2, 4, 6]), chains)
    assert [group.tolist() for group in groups] == [[1, 4], [2], [0], [6]]
    assert list(chained(index_of(8), np.zeros(0, np.int64), chains)) == []
    with pytest.raises(UserError, match="chains of 6 documents do not belong to a token store of 5"):
        chained(index_of(5), np.array([0]), chains)
