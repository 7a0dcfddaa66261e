"""The cleaned documents, as the report shows them: counts by their names, ten beginnings, nothing run."""

from __future__ import annotations

from typing import Any

from bs4 import BeautifulSoup

from infra.markup import join
from infra.report_documents import documents

HOSTILE = "<script>alert(1)</script>"
VALUES: dict[str, Any] = {
    "domains": {"books": {"documents": 1200, "bytes": 3_400_000}, "code": {"documents": 7, "bytes": 900}},
    "read_lengths": {"1024": 3, "65536": 1200},
    "kept_lengths": {"65536": 1199},
    "languages": {"en": 1000, "de": 200, **{f"x{number}": 1 for number in range(12)}},
    "masked": {"email": 41, "phone": 0},
    "samples": [{"source": "books/a.txt", "domain": "books", "text": f"It was\n{HOSTILE}"}],
}


def page(values: dict[str, Any]) -> BeautifulSoup:
    return BeautifulSoup(join([part for part in documents(values) if part is not None]), "lxml")


def test_domains_languages_masks_and_samples_are_shown() -> None:
    shown = page(VALUES)
    rows = [[cell.text for cell in row.find_all("td")] for row in shown.find_all("tr")]
    assert rows[1:] == [["books", "1,200", "3.4 MB"], ["code", "7", "900 B"]]
    text = shown.get_text(" ")
    assert "others" in text  # of fourteen languages twelve are named
    assert "email" in text
    assert "phone" not in text
    [sample] = shown.find_all("pre")
    assert sample.text == f"It was\n{HOSTILE}"
    assert "books/a.txt (books)" in text
    bars = [[part.text for part in bar.find_all("span")] for bar in shown.find_all("div", class_="bar")]
    assert bars[:4] == [
        ["1.02 kB to 2.05 kB", "", "3"],
        ["65.5 kB to 131 kB", "", "1,200"],
        ["1.02 kB to 2.05 kB", "", "0"],
        ["65.5 kB to 131 kB", "", "1,199"],
    ]
    assert not shown.find_all("script")


def test_a_stage_without_these_values_shows_nothing() -> None:
    assert [part for part in documents({}) if part is not None] == []
    broken = {"domains": [1], "languages": "en", "masked": None, "samples": {"text": "x"}}
    assert [part for part in documents(broken) if part is not None] == []
