"""Benchmark passages planted in documents are found, cut and listed; against sets of n-grams in plain Python."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from ringworld.data.decisions import Decisions, between, read_decisions, write_cuts, write_drops
from ringworld.data.decontaminate import BenchmarkText, CutRule, Grams, Judged, Matcher, judge, widened

WORDS = [f"word{number}" for number in range(500)]


def prose(rng: random.Random, many: int) -> str:
    return " ".join(rng.choices(WORDS, k=many))


def judged(text: str, texts: list[BenchmarkText], rule: CutRule, length: int = 13, shortest: int = 8) -> Judged:
    matches = Matcher(Grams.of(texts, length, shortest).table()).find(text)
    left, right = widened(text, matches, rule.margin)
    return judge(matches.start, matches.end, left, right, len(text), rule)


def ngrams(text: str, size: int) -> list[str]:
    names = text.split()
    return [" ".join(names[at : at + size]) for at in range(len(names) - size + 1)]


def test_matches_are_those_of_plain_sets() -> None:
    rng = random.Random(0)
    texts = [BenchmarkText("b", line, prose(rng, rng.choice([5, 9, 13, 14, 40]))) for line in range(1, 40)]
    grams = Grams.of(texts, 13, 8)
    assert grams.too_short == sum(len(text.text.split()) < 8 for text in texts)
    known = {gram for text in texts if (n := len(text.text.split())) >= 8 for gram in ngrams(text.text, min(n, 13))}
    assert len(grams.hash) == len(known)
    # Parts of benchmarks among other words, over several chunks.
    parts = [prose(rng, 3000)]
    for text in texts:
        names = text.text.split()
        first = rng.randrange(max(1, len(names) - 12))
        parts += [" ".join(names[first : first + rng.choice([7, 13, 20])]), prose(rng, 300)]
    document = " ".join(parts)
    found = Matcher(grams.table()).find(document)
    said = [document[start:end] for start, end in zip(found.start.tolist(), found.end.tolist(), strict=True)]
    expected = [gram for size in range(8, 14) for gram in ngrams(document, size) if gram in known]
    assert sorted(said) == sorted(expected)
    assert len(said) > 10
    for gram, words in zip(found.gram.tolist(), said, strict=True):
        assert texts[grams.text[gram]].text[grams.start[gram] : grams.end[gram]] == words


def test_every_place_of_a_long_document_is_found_once() -> None:
    document = prose(random.Random(7), 30_000)
    names = document.split()
    eights = [BenchmarkText("b", 1, " ".join(names[at : at + 8])) for at in range(7000, 9500)]
    found = Matcher(Grams.of([BenchmarkText("b", 1, document), *eights], 13, 8).table()).find(document)
    assert len(found.gram) == (30_000 - 12) + len(eights)


def test_case_and_punctuation_hide_nothing() -> None:
    text = BenchmarkText("b", 1, "What is the capital of France? (A) Paris, (B) Rome, (C) Lyon, (D) Nice.")
    document = "x " * 300 + "what is the CAPITAL of France\u2014a: paris; b: rome; c: lyon; d: nice" + " y" * 300
    assert len(judged(document, [text], CutRule(20, 20)).cuts) == 1


def test_a_cut_takes_the_margin_and_ends_between_words() -> None:
    rng = random.Random(1)
    question = prose(rng, 20)
    before, after = prose(rng, 400), prose(rng, 400)
    document = f"{before} {question} {after}"
    [cut] = judged(document, [BenchmarkText("b", 1, question)], CutRule(margin=50)).cuts
    assert question in document[cut.start : cut.end]
    assert 50 <= len(before) + 1 - cut.start <= 50 + 9
    assert 50 <= cut.end - (len(before) + 1 + len(question)) <= 50 + 9
    assert document[: cut.start].endswith(" ")
    assert document[cut.end :].startswith(" ")
    assert cut.matches == 8


def test_pieces_too_short_go_and_documents_in_too_many_are_dropped() -> None:
    rng = random.Random(2)
    question = prose(rng, 13)
    text, rule = [BenchmarkText("b", 1, question)], CutRule(margin=10, shortest_piece=200, most_pieces=3)
    far, near = prose(rng, 200), prose(rng, 20)
    two = judged(f"{far} {question} {near} {question} {far}", text, rule)
    assert len(two.cuts) == 1
    assert two.cuts[0].matches == 2
    begins = judged(f"{near} {question} {far}", text, rule)
    assert [cut.start for cut in begins.cuts] == [0]
    ends = judged(document := f"{far} {question} {near}", text, rule)
    assert [cut.end for cut in ends.cuts] == [len(document)]
    assert judged(f" {question} ".join([far] * 3), text, rule).reason is None
    assert judged(f" {question} ".join([far] * 4), text, rule).reason == "cut into too many pieces"
    assert judged(f"{near} {question} {near}", text, rule).reason == "held by a benchmark"
    assert judged(far, text, rule) == Judged((), 0.0, None)


def test_a_document_mostly_of_a_benchmark_is_dropped_by_its_share() -> None:
    rng = random.Random(3)
    passage, rest = prose(rng, 300), prose(rng, 300)
    found = judged(f"{rest} {passage}", [BenchmarkText("b", 1, passage)], CutRule(most_share=0.6))
    assert found.share == pytest.approx(0.5, abs=0.02)
    assert found.reason is None
    found = judged(f"{rest} {passage}", [BenchmarkText("b", 1, passage)], CutRule(most_share=0.4))
    assert found.reason == "held by a benchmark"


def test_texts_shorter_than_an_ngram_are_looked_for_whole() -> None:
    texts = [BenchmarkText("n", 1, "a small needle", whole=True), BenchmarkText("b", 1, "three words only")]
    document = "x " * 300 + "A small needle" + " y" * 300 + " three words only " + "z " * 300
    found = judged(document, texts, CutRule(20, 20))
    assert ["needle" in document[cut.start : cut.end] for cut in found.cuts] == [True]


def test_no_ngrams_match_nothing() -> None:
    assert len(Matcher(Grams.of([], 13, 8).table()).find("some words of a text").gram) == 0


def test_pieces_are_what_lies_between_cuts() -> None:
    assert list(between([(0, 2), (4, 6)], 8)) == [(2, 4), (6, 8)]
    assert list(between([(2, 8)], 8)) == [(0, 2)]
    decided = Decisions(cuts={"s": [(5, 10), (16, 18)]})
    assert decided.pieces("s", "book", "abcd XXXXX fghi YYzz") == [
        ("book", "abcd"),
        ("book#2", "fghi"),
        ("book#3", "zz"),
    ]
    assert decided.pieces("other", "book", "abc") == [("book", "abc")]


def test_decisions_come_back_by_file(tmp_path) -> None:
    drops = [{"file": f"f{n % 3}", "sha256": f"s{n}", "source": f"d{n}", "reason": f"r{n % 2}"} for n in range(9)]
    write_drops(f"{tmp_path}/drops.parquet", pa.Table.from_pylist(drops))
    more = [{"file": "f1", "sha256": "s99", "source": "d99", "reason": "other"}]
    write_drops(f"{tmp_path}/more.parquet", pa.Table.from_pylist(more))
    spans = [(30, 40), (1, 9)]
    cuts = [{"file": "f1", "sha256": "s5", "source": "d5", "start": a, "end": b} for a, b in spans]
    write_cuts(f"{tmp_path}/cuts.parquet", pa.Table.from_pylist(cuts))
    places = (f"{tmp_path}/drops.parquet", f"{tmp_path}/more.parquet")
    found = read_decisions("f1", places, f"{tmp_path}/cuts.parquet")
    assert found == Decisions({"s1": "r1", "s4": "r0", "s7": "r1", "s99": "other"}, {"s5": [(1, 9), (30, 40)]})
    assert read_decisions("f2", places, f"{tmp_path}/cuts.parquet").cuts == {}
    assert np.array_equal(sorted(read_decisions("f0", places).dropped), ["s0", "s3", "s6"])
