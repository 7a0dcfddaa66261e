"""The report's part on what was decided about documents: near duplicates, repeated passages, benchmarks, chains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infra.formats import size
from infra.markup import Html, element, join
from infra.report_data import ReportData
from infra.report_figures import short
from infra.report_parts import number, tile

_EXCERPT = 160  # characters


def curation(data: ReportData) -> list[Html | None]:
    """Tiles and tables of the stages that there are; empty for a run without them."""
    parts: list[Html | None] = []
    for stage in data.of_kind("deduplicate"):
        parts += [_duplicates(stage.values), _dropped(stage.values), _repeats(stage.values)]
    for stage in data.of_kind("decontaminate"):
        parts += [_contamination(stage.values), _cuts(stage.values), _common(stage.values)]
    for stage in data.of_kind("assemble"):
        parts += [_chains(stage.values), _longest_chains(stage.values)]
    return parts


def _duplicates(values: Mapping[str, Any]) -> Html | None:
    dropped, share = number(values, "dropped_bytes"), number(values, "repeated_share")
    return _tiles(
        (_whole(values, "dropped"), "near duplicates dropped"),
        (size(dropped) if dropped else None, "of text in them"),
        (_whole(values, "clusters"), "groups of near duplicates"),
        (f"{share:.1%}" if share is not None else None, "of the rest stands more than once"),
    )


def _dropped(values: Mapping[str, Any]) -> Html | None:
    rows = [
        (_said(row, "source"), _said(row, "of"), f"{number(row, 'similarity') or 0:.2f}")
        for row in _rows(values, "longest_dropped")
    ]
    return _table("The longest near duplicates that were dropped", ("dropped", "kept instead", "similarity"), rows)


def _repeats(values: Mapping[str, Any]) -> Html | None:
    rows = [
        (_whole(row, "times"), _whole(row, "documents"), _whole(row, "characters"), _said(row, "source"), _excerpt(row))
        for row in _rows(values, "repeats")
    ]
    names = ("times", "documents", "characters", "first in", "begins with")
    return _table("Passages that repeat the most text (reported, not dropped)", names, rows)


def _contamination(values: Mapping[str, Any]) -> Html | None:
    cut = number(values, "characters_cut")
    return _tiles(
        (_whole(values, "benchmarks"), "benchmarks looked for"),
        (_whole(values, "ngrams_found"), f"of their {_whole(values, 'ngrams') or 'no'} n-grams found"),
        (_whole(values, "cuts"), f"spans cut, in {_whole(values, 'documents_cut') or 'no'} documents"),
        (short(cut) if cut else None, "characters in them"),
        (_whole(values, "dropped"), "documents dropped for a benchmark"),
    )


def _cuts(values: Mapping[str, Any]) -> Html | None:
    rows = [
        (_said(row, "source"), f"{_said(row, 'benchmark')} line {_whole(row, 'line')}", _said(row, "matched"))
        for row in _rows(values, "shown")
    ]
    return _table("Spans with the most of a benchmark", ("cut from", "found in", "begins with"), rows)


def _common(values: Mapping[str, Any]) -> Html | None:
    rows = [(_whole(row, "documents"), _said(row, "matched")) for row in _rows(values, "common_phrases")]
    return _table("Common phrases that stay, though a benchmark has them", ("documents", "phrase"), rows)


def _chains(values: Mapping[str, Any]) -> Html | None:
    return _tiles(
        (_whole(values, "chains"), "chains of related documents"),
        (_whole(values, "alone"), "of one document"),
        (_whole(values, "longest_chain"), "documents in the longest"),
    )


def _longest_chains(values: Mapping[str, Any]) -> Html | None:
    rows = []
    for row in _rows(values, "shown"):
        sources = row.get("sources")
        named = ", ".join(str(source) for source in sources) if isinstance(sources, list) else ""
        rows.append((_whole(row, "tokens"), _whole(row, "documents"), named))
    return _table("The longest chains", ("tokens", "documents", "begins with"), rows)


def _table(title: str, names: Sequence[str], rows: Sequence[Sequence[str | None]]) -> Html | None:
    if not rows:
        return None
    head = element("tr", None, *(element("th", None, name) for name in names))
    body = [element("tr", None, *(element("td", None, value or "") for value in row)) for row in rows]
    return element("div", {"class": "card"}, element("h3", None, title), element("table", None, head, join(body)))


def _tiles(*facts: tuple[str | None, str]) -> Html | None:
    tiles = [tile(amount, meaning) for amount, meaning in facts if amount is not None]
    return element("div", {"class": "tiles"}, *tiles) if tiles else None


def _rows(values: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = values.get(key)
    return [row for row in found if isinstance(row, Mapping)] if isinstance(found, list) else []


def _whole(values: Mapping[str, Any], key: str) -> str | None:
    amount = number(values, key)
    return None if amount is None else f"{amount:,.0f}"


def _said(row: Mapping[str, Any], key: str) -> str:
    return str(row.get(key, ""))


def _excerpt(row: Mapping[str, Any]) -> str:
    said = " ".join(_said(row, "excerpt").split())
    return said if len(said) <= _EXCERPT else f"{said[:_EXCERPT]}…"
