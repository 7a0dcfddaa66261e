"""The small parts that the sections of the report are made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from infra.formats import MISSING
from infra.markup import Html, element, join
from infra.report_data import StageReport

_LONGEST = 1200  # characters of one text


def section(title: str, lead: str, *children: object) -> Html:
    return element("section", None, element("h2", None, title), element("p", {"class": "lead"}, lead), *children)


def tile(amount: str, meaning: str) -> Html:
    return element("div", {"class": "tile"}, element("b", None, amount), element("span", None, meaning))


def cell(content: str, style: str | None = None) -> Html:
    inner = element("span", {"class": style}, content) if style else content
    return element("td", {"class": "n"}, inner)


def tiles(*facts: tuple[str | None, str]) -> Html | None:
    """A tile for each fact that is known."""
    known = [tile(amount, meaning) for amount, meaning in facts if amount is not None]
    return element("div", {"class": "tiles"}, *known) if known else None


def card(title: str, *children: object) -> Html:
    return element("div", {"class": "card"}, element("h3", None, title), *children)


def table(title: str, names: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> Html | None:
    """A card with a table, its first `texts` columns of text and the others of figures; None without rows."""
    if not rows:
        return None
    styles = [None if column < texts else {"class": "n"} for column in range(len(names))]

    def line(kind: str, row: Sequence[str]) -> Html:
        return element("tr", None, *(element(kind, style, text) for style, text in zip(styles, row, strict=True)))

    head, body = line("th", names), [line("td", row) for row in rows]
    return element("div", {"class": "card scroll"}, element("h3", None, title), element("table", None, head, *body))


def pictures(stages: Iterable[StageReport], titles: Mapping[str, str]) -> list[Html]:
    """Pictures of stages under their titles, those of one title side by side. titles: by the name of the file."""
    found: dict[str, list[Html]] = {title: [] for title in titles.values()}
    for stage in stages:
        for picture in stage.pictures:
            title = titles.get(picture.name.rpartition("/")[2])
            if title:
                image = element("img", {"src": picture.uri, "alt": f"{stage.name}: {title}"})
                found[title].append(element("figure", None, image, element("figcaption", None, stage.name)))
    return [
        element("div", None, element("h3", None, title), element("div", {"class": "pictures"}, *figures))
        for title, figures in found.items()
        if figures
    ]


def turns(row: Mapping[str, Any], names: Sequence[tuple[str, str]]) -> Html:
    """What was said, under its names, in the order given. names: (key of the row, name)."""
    lines = [
        element(
            "tr",
            None,
            element("td", {"class": "soft", "style": "width:9em"}, name),
            element("td", None, text_at(row, key) or "(nothing)"),
        )
        for key, name in names
        if key in row
    ]
    return element("table", {"style": "margin-bottom:18px"}, *lines)


def quoted(row: Mapping[str, Any], key: str) -> Html | None:
    text = text_at(row, key)
    return element("pre", {"class": "command"}, text) if text else None


def fields(title: str, fields: Mapping[str, object], more: int = 0) -> Html | None:
    if not fields:
        return None
    rows = [element("tr", None, element("td", None, key), element("td", None, value)) for key, value in fields.items()]
    rest = element("p", {"class": "soft"}, f"and {more} more") if more > 0 else None
    return element("div", None, element("h3", None, title) if title else None, element("table", None, join(rows)), rest)


def number(values: Mapping[str, Any], key: str) -> float | None:
    """A finite number under `key`, or None for anything else."""
    value = values.get(key)
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if usable else None


def whole(values: Mapping[str, Any], key: str) -> str | None:
    """The number under `key` without decimals; None where there is none."""
    amount = number(values, key)
    return None if amount is None else f"{amount:,.0f}"


def text_at(values: Mapping[str, Any], key: str) -> str:
    """What is under `key` as text, cut where it is very long; empty where nothing is."""
    text = str(values.get(key) or "")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def entries(values: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """The mappings of the list under `key`; empty for anything else."""
    found = values.get(key)
    return [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, list) else []


def named(value: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """The mappings in a mapping, by name; empty for anything else."""
    found = value.items() if isinstance(value, Mapping) else ()
    return [(str(name), inner) for name, inner in found if isinstance(inner, Mapping)]


def amounts(value: Any) -> dict[str, float]:
    """The finite numbers of a mapping; empty for anything else."""
    if not isinstance(value, Mapping):
        return {}
    return {str(key): amount for key in value if (amount := number(value, key)) is not None}


def inner(values: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    """The mapping under `key`, or None for anything else."""
    found = values.get(key)
    return found if isinstance(found, Mapping) else None


def share(values: Mapping[str, Any], key: str) -> str:
    """The number under `key` as a percentage."""
    part = number(values, key)
    return MISSING if part is None else f"{part:.0%}"


def decimal(values: Mapping[str, Any], key: str, digits: int = 2) -> str:
    """The number under `key` with so many decimals."""
    amount = number(values, key)
    return MISSING if amount is None else f"{amount:.{digits}f}"


def fall(values: Mapping[str, Any], before: str, after: str) -> tuple[Html, Html, Html]:
    """Cells of a loss before, after, and how it changed."""
    first, last = number(values, before), number(values, after)
    shown = cell(decimal(values, before, 3)), cell(decimal(values, after, 3))
    if first is None or last is None:
        return (*shown, cell(MISSING))
    return (*shown, cell(f"{last - first:+.3f}", "good" if last < first else "bad"))
