"""The report's part on the cleaned documents: their domains and languages, what was masked in them, ten to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.formats import size
from infra.markup import Html, element, join
from infra.report_figures import bars
from infra.report_parts import amounts, number

_MANY = 12  # languages that a person would still read


def documents(values: Mapping[str, Any]) -> list[Html | None]:
    """Of a documents stage; parts that have nothing to show are None."""
    return [_domains(values), _lengths(values), _languages_and_masks(values), _samples(values)]


def _domains(values: Mapping[str, Any]) -> Html | None:
    found = values.get("domains")
    rows = [
        (str(name), f"{number(total, 'documents') or 0:,.0f}", size(number(total, "bytes") or 0))
        for name, total in (found.items() if isinstance(found, Mapping) else ())
        if isinstance(total, Mapping)
    ]
    return _table("Domains", ("domain", "documents", "of text"), rows)


def _lengths(values: Mapping[str, Any]) -> Html | None:
    """On one scale of lengths, so that what cleaning took away can be seen."""
    read, kept = (amounts(values.get(key)) for key in ("read_lengths", "kept_lengths"))
    lows = sorted({int(low) for low in (*read, *kept) if low.isdecimal()})
    if not lows:
        return None
    columns = [
        element(
            "div",
            None,
            element("h3", None, title),
            bars({f"{size(low)} to {size(2 * low)}": found.get(str(low), 0) for low in lows}, "documents"),
        )
        for title, found in (("Read, by length", read), ("Kept, by length", kept))
    ]
    return element("div", {"class": "card columns"}, *columns)


def _languages_and_masks(values: Mapping[str, Any]) -> Html | None:
    columns = []
    languages = sorted(amounts(values.get("languages")).items(), key=lambda item: (-item[1], item[0]))
    if languages:
        shown = dict(languages[:_MANY])
        if rest := sum(count for _, count in languages[_MANY:]):
            shown["others"] = rest
        columns.append(element("div", None, element("h3", None, "Languages"), bars(shown, "documents")))
    masked = {kind: count for kind, count in amounts(values.get("masked")).items() if count}
    if masked:
        columns.append(element("div", None, element("h3", None, "Masked, by kind"), bars(masked, "places")))
    return element("div", {"class": "card columns"}, *columns) if columns else None


def _samples(values: Mapping[str, Any]) -> Html | None:
    found = values.get("samples")
    rows = [
        element(
            "div",
            None,
            element("div", {"class": "soft mono"}, f"{row.get('source', '')} ({row.get('domain', '')})"),
            element("pre", {"class": "command"}, str(row.get("text", ""))),
        )
        for row in (found if isinstance(found, list) else [])
        if isinstance(row, Mapping)
    ]
    if not rows:
        return None
    title = element("h3", None, "How the documents of the smallest hashes begin")
    return element("div", {"class": "card"}, title, element("div", {"class": "columns samples"}, *rows))


def _table(title: str, names: tuple[str, ...], rows: list[tuple[str, ...]]) -> Html | None:
    if not rows:
        return None
    head = element("tr", None, *(element("th", None, name) for name in names))
    body = [element("tr", None, *(element("td", None, value) for value in row)) for row in rows]
    return element("div", {"class": "card"}, element("h3", None, title), element("table", None, head, join(body)))
