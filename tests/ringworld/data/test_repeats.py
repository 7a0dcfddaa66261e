"""Repeated passages against counting by dictionaries."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pyarrow as pa

from ringworld.data.repeats import FINGERPRINTS, merged, repeated, winnow
from ringworld.data.words import chunks, runs, words

WORDS = [f"word{number}" for number in range(3000)]


def prose(rng: random.Random, many: int) -> str:
    return " ".join(rng.choices(WORDS, k=many))


def fingerprints(document: int, text: str, length: int = 10, window: int = 10) -> pa.Table:
    hashes, starts, ends = winnow(words(text), length, window)
    columns = [hashes, np.full(len(hashes), document), starts, ends]
    return pa.table([pa.array(column) for column in columns], FINGERPRINTS)


def test_the_least_of_every_window_is_kept_and_little_else() -> None:
    found = words(prose(random.Random(0), 5000))
    hashes, starts, _ = winnow(found, 10, 20)
    all_runs = runs(found.hashes, 10)
    expected = set()
    for at in range(len(all_runs) - 19):
        window = all_runs[at : at + 20].tolist()
        expected.add(at + window.index(min(window)))  # no two are equal here
    assert starts.tolist() == found.starts[sorted(expected)].tolist()
    assert hashes.tolist() == all_runs[sorted(expected)].tolist()
    assert 1.8 / 21 < len(hashes) / len(all_runs) < 2.2 / 21


def test_a_passage_of_window_and_length_is_found_wherever_it_stands() -> None:
    rng = random.Random(1)
    for _ in range(50):
        passage = prose(rng, 19)
        one, other = (f"{prose(rng, rng.randint(0, 60))} {passage} {prose(rng, rng.randint(0, 60))}" for _ in "ab")
        shared = set(winnow(words(one), 10, 10)[0].tolist()) & set(winnow(words(other), 10, 10)[0].tolist())
        assert shared


def test_chunks_of_a_long_text_give_the_fingerprints_of_the_whole() -> None:
    text = prose(random.Random(2), 40_000)
    whole = set(winnow(words(text), 50, 50)[1].tolist())
    parts = {start for part in chunks(text, overlap=98) for start in winnow(part, 50, 50)[1].tolist()}
    assert parts == whole


def test_counts_are_those_of_a_dictionary_without_the_dropped_documents() -> None:
    rng = random.Random(3)
    passages = [prose(rng, 40) for _ in range(6)]
    texts = [" ".join([prose(rng, 200), *rng.choices(passages, k=3), prose(rng, 50)]) for _ in range(12)]
    rows = pa.concat_tables([fingerprints(number, text) for number, text in enumerate(texts)])
    dropped = np.array([2, 7])
    kept = [row for row in rows.to_pylist() if row["document"] not in (2, 7)]
    times = Counter(row["hash"] for row in kept)
    expected = Counter(row["document"] for row in kept if times[row["hash"]] > 1)
    parts = [repeated(rows.filter(rows["hash"].to_numpy() % np.uint64(3) == part), dropped, 1000) for part in range(3)]
    counted: Counter[int] = Counter()
    for part in parts:
        for row in part.documents.to_pylist():
            counted[row["document"]] += row["repeated"]
    assert counted == expected
    rows_of = [row for part in parts for row in part.passages.to_pylist()]
    assert sorted(row["times"] for row in rows_of) == sorted(count for count in times.values() if count > 1)
    for row in rows_of:
        passage = texts[row["document"]][row["start"] : row["end"]]
        assert len(passage.split()) == 10
        # Where a passage begins or ends, a neighbour outside it may be kept instead.
        stands = [number for number in range(12) if number not in (2, 7) for _ in range(texts[number].count(passage))]
        assert row["times"] <= len(stands)
        assert {row["document"], *row["others"]} <= set(stands)


def test_adjoining_fingerprints_become_the_passage_that_they_lie_in() -> None:
    rng = random.Random(4)
    passage = prose(rng, 300)
    texts = [f"{prose(rng, 100)} {passage} {prose(rng, 100)}" for _ in range(4)]
    texts.append(f"{prose(rng, 30)} {prose(rng, 20)} " * 2)
    rows = pa.concat_tables([fingerprints(number, text) for number, text in enumerate(texts)])
    longest, *others = merged([repeated(rows, np.zeros(0, np.int64), 1000).passages], 10)
    assert (longest["times"], longest["documents"], longest["document"], longest["others"]) == (4, 4, 0, [1, 2, 3])
    said = texts[0][longest["start"] : longest["end"]]
    assert said in passage
    assert len(said) > 0.9 * len(passage)
    [inside] = [row for row in others if row["document"] == 4]
    assert (inside["times"], inside["documents"]) == (2, 1)
