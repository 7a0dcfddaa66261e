"""Near duplicates against brute force: datasketch's signatures, true Jaccard similarities, a plain greedy choice."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pyarrow as pa
import pytest
from datasketch import MinHash

from ringworld.data.minhash import Bands, low_bytes, signature, similarity
from ringworld.data.near import Pairs, decide, similar_pairs
from ringworld.data.words import runs, words
from ringworld.errors import UserError

WORDS = [f"word{number}" for number in range(4000)]


def shingles(text: str, size: int = 5) -> set[tuple[str, ...]]:
    names = text.split()
    return {tuple(names[at : at + size]) for at in range(len(names) - size + 1)}


def jaccard(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def corpus(seed: int) -> list[str]:
    """Originals, and copies of them with ever more words changed, of which some are shorter."""
    rng = random.Random(seed)
    texts = []
    for _ in range(35):
        names = rng.choices(WORDS, k=rng.randint(80, 900))
        texts.append(" ".join(names))
        for share in (0.002, 0.01, 0.02, 0.03, 0.05, 0.1):
            copy = [rng.choice(WORDS) if rng.random() < share else name for name in names]
            texts.append(" ".join(copy[: rng.randint(len(copy) * 9 // 10, len(copy))]))
    rng.shuffle(texts)
    return texts


def bands_of(texts: list[str], bands: Bands) -> pa.Table:
    signed = [signature(text, 5, bands.permutations, 1) for text in texts]
    places = np.stack([one for one in signed if one is not None])
    number = np.repeat(np.arange(len(texts)), bands.count)
    low = np.repeat(low_bytes(places), bands.count, axis=0)
    return pa.table(
        {
            "band": bands.hashes(places).ravel(),
            "document": number,
            "bytes": np.array([len(text) for text in texts])[number],
            "low": pa.array([row.tobytes() for row in low], pa.binary(bands.permutations)),
        }
    )


def test_signatures_are_datasketchs_own() -> None:
    text = " ".join(random.Random(0).choices(WORDS, k=9000))
    hashes = runs(words(text).hashes, 5)
    reference = MinHash(96, seed=7, scheme="affine32", hashfunc=lambda value: value)
    reference.update_batch([int(value) >> 32 for value in hashes.tolist()])
    assert np.array_equal(np.asarray(signature(text, 5, 96, 7)), reference.hashvalues)
    assert signature("four words are few", 5, 96, 7) is None


def test_pairs_above_the_threshold_are_found_and_others_are_not() -> None:
    texts = corpus(0)
    sets = [shingles(text) for text in texts]
    true = {(i, j): jaccard(sets[i], sets[j]) for i, j in itertools.combinations(range(len(texts)), 2)}
    pairs = similar_pairs(bands_of(texts, Bands.for_threshold(0.8, 128, 0.95)), 0.8)
    found = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    # The estimate's standard error at 0.8 is 0.035.
    clear = {pair for pair, value in true.items() if value >= 0.85}
    assert len(clear) > 80
    assert len(found & clear) >= 0.95 * len(clear)
    wrong = [pair for pair in found if true[pair] < 0.8]
    assert all(true[pair] > 0.65 for pair in found)
    assert len(wrong) < 0.12 * len(found)
    errors = [abs(value - true[i, j]) for i, j, value in zip(pairs.first, pairs.second, pairs.similarity, strict=True)]
    assert np.mean(errors) < 0.035


def test_the_result_does_not_depend_on_how_rows_are_divided_or_ordered() -> None:
    rows = bands_of(corpus(1)[:150], Bands.for_threshold(0.8, 128, 0.95))
    whole = similar_pairs(rows, 0.8)
    parts = []
    for part in range(3):
        shuffled = rows.filter(rows["band"].to_numpy() % np.uint64(3) == part)
        parts.append(similar_pairs(shuffled.take(np.random.default_rng(0).permutation(shuffled.num_rows)), 0.8))
    joined = Pairs.of(*(np.concatenate([getattr(p, n) for p in parts]) for n in ("first", "second", "similarity")))
    for name in ("first", "second", "similarity"):
        assert np.array_equal(getattr(joined, name), getattr(whole, name))


def test_a_crowd_of_copies_costs_few_pairs_and_leaves_one() -> None:
    text = " ".join(random.Random(3).choices(WORDS, k=300))
    texts = [text + " the end" * (number % 2) for number in range(400)]
    pairs = similar_pairs(bands_of(texts, Bands.for_threshold(0.8, 128, 0.95)), 0.8)
    assert len(pairs.first) < 2 * len(texts)
    verdict = decide(pairs, [len(text) for text in texts], [f"{number:03d}" for number in range(400)])
    assert set(verdict.kept.tolist()) == {1}
    assert set(verdict.cluster.tolist()) == {0}


def greedy(pairs: set[tuple[int, int]], sizes: list[int], sources: list[str]) -> set[int]:
    """Who stays, the slow way: the longest first, unless it is paired with one that stays already."""
    stays: list[int] = []
    for one in sorted(range(len(sizes)), key=lambda n: (-sizes[n], sources[n])):
        if not any((min(one, other), max(one, other)) in pairs for other in stays):
            stays.append(one)
    return set(stays)


def test_the_longest_of_a_pair_stays_and_of_equals_the_smallest_name() -> None:
    rng = random.Random(4)
    for _ in range(20):
        number = 30
        sizes, sources = [rng.randint(1, 8) for _ in range(number)], [f"{rng.random()}" for _ in range(number)]
        edges = {tuple(sorted(rng.sample(range(number), 2))) for _ in range(25)}
        edges |= {(n, n + 1) for n in range(0, number, 2)}  # every document is paired
        first, second = (np.array(column) for column in zip(*rng.sample(sorted(edges), len(edges)), strict=True))
        pairs = Pairs.of(second, first, rng.random() + np.zeros(len(first)))
        verdict = decide(pairs, sizes, sources)
        stays = set(verdict.document[verdict.kept == verdict.document].tolist())
        assert stays == greedy({(int(a), int(b)) for a, b in edges}, sizes, sources)
        for one, kept in zip(verdict.document.tolist(), verdict.kept.tolist(), strict=True):
            assert kept in stays
            assert kept == one or (min(one, kept), max(one, kept)) in edges


def test_a_chain_of_small_changes_does_not_take_its_far_end_along() -> None:
    pairs = Pairs.of(np.array([0, 1]), np.array([1, 2]), np.array([0.9, 0.9]))
    verdict = decide(pairs, [10, 9, 8], ["a", "b", "c"])
    assert verdict.kept.tolist() == [0, 0, 2]
    assert verdict.cluster.tolist() == [0, 0, 0]


def test_no_pairs_are_no_verdict() -> None:
    rows = bands_of(["one two three four five six", "seven eight nine ten eleven twelve"], Bands(128, 18, 7))
    pairs = similar_pairs(rows, 0.8)
    assert len(decide(pairs, [], []).document) == 0


def test_bands_are_the_longest_that_find_enough() -> None:
    bands = Bands.for_threshold(0.8, 128, 0.95)
    assert bands.found(0.8) >= 0.95
    assert Bands(128, 128 // (bands.rows + 1), bands.rows + 1).found(0.8) < 0.95
    with pytest.raises(UserError, match=r"permutations=2 cannot find pairs of similarity threshold=0\.3"):
        Bands.for_threshold(0.3, 2, 0.95)


def test_the_estimate_from_low_bytes_has_no_bias() -> None:
    rng = np.random.default_rng(0)
    one = rng.integers(0, 1 << 32, (20_000, 128)).astype(np.uint32)
    for share in (0.5, 0.8):
        other = np.where(rng.random(one.shape) < share, one, rng.integers(0, 1 << 32, one.shape).astype(np.uint32))
        assert abs(similarity(low_bytes(one), low_bytes(other)).mean() - share) < 0.0008
