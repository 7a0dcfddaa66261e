"""What was decided about documents, as the report shows it: figures by their meaning, nothing where nothing is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bs4 import BeautifulSoup

from infra.markup import join
from infra.report_curation import curation
from infra.report_data import ReportData, StageReport

HOSTILE = "<script>alert(1)</script>"
DEDUPLICATED = {
    "dropped": 12,
    "dropped_bytes": 3_400_000,
    "clusters": 5,
    "repeated_share": 0.0565,
    "longest_dropped": [{"source": f"books/{HOSTILE}", "of": "books/b", "similarity": 0.9312}],
    "repeats": [
        {
            "times": 420,
            "documents": 31,
            "characters": 296,
            "source": "books/c",
            "excerpt": "Version 2.0\n(the " + "x" * 300,
        }
    ],
}
DECONTAMINATED = {
    "benchmarks": 2,
    "ngrams": 221,
    "ngrams_found": 14,
    "cuts": 3,
    "documents_cut": 2,
    "characters_cut": 1234,
    "dropped": 1,
    "shown": [{"source": "books/d", "benchmark": "asked.jsonl", "line": 7, "matched": "what is the"}],
    "common_phrases": [{"documents": 37, "matched": "may obtain a copy"}],
}
ASSEMBLED = {
    "chains": 41,
    "alone": 20,
    "longest_chain": 102,
    "shown": [{"documents": 3, "tokens": 51234, "sources": ["books/e", "books/f"]}],
}


def page(**values: Mapping[str, Any]) -> BeautifulSoup:
    stages = tuple(
        StageReport(kind, kind, "done", {}, {}, found, (), (), (), "", None, None, None, None, None, None, None, {})
        for kind, found in values.items()
    )
    parts = [part for part in curation(ReportData("run", "place", "now", stages)) if part is not None]
    return BeautifulSoup(join(parts), "lxml")


def tiles(shown: BeautifulSoup) -> dict[str, str]:
    return {tile.span.text: tile.b.text for tile in shown.select(".tile") if tile.span and tile.b}


def rows(shown: BeautifulSoup) -> list[list[str]]:
    return [[cell.text for cell in row.select("td")] for row in shown.select("tr") if row.select("td")]


def test_every_decision_is_shown_with_its_figure() -> None:
    shown = page(deduplicate=DEDUPLICATED, decontaminate=DECONTAMINATED, assemble=ASSEMBLED)
    assert tiles(shown) == {
        "near duplicates dropped": "12",
        "of text in them": "3.4 MB",
        "groups of near duplicates": "5",
        "of the rest stands more than once": "5.7%",
        "benchmarks looked for": "2",
        "of their 221 n-grams found": "14",
        "spans cut, in 2 documents": "3",
        "characters in them": "1.23K",
        "documents dropped for a benchmark": "1",
        "chains of related documents": "41",
        "of one document": "20",
        "documents in the longest": "102",
    }
    duplicate, repeat, cut, common, chain = rows(shown)
    assert duplicate == [f"books/{HOSTILE}", "books/b", "0.93"]
    assert repeat[:4] == ["420", "31", "296", "books/c"]
    assert repeat[4].startswith("Version 2.0 (the xxx")
    assert repeat[4].endswith("x…")
    assert cut == ["books/d", "asked.jsonl line 7", "what is the"]
    assert common == ["37", "may obtain a copy"]
    assert chain == ["51,234", "3", "books/e, books/f"]
    assert not shown.select("script")


def test_a_run_without_these_stages_or_figures_shows_nothing() -> None:
    assert curation(ReportData("run", "place", "now", ())) == []
    assert not page(deduplicate={}, decontaminate={"shown": "no list"}, assemble={"shown": [3]}).text
