"""The small parts that the sections of the report are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from infra.markup import Html, element, join


def section(title: str, lead: str, *children: object) -> Html:
    return element("section", None, element("h2", None, title), element("p", {"class": "lead"}, lead), *children)


def tile(amount: str, meaning: str) -> Html:
    return element("div", {"class": "tile"}, element("b", None, amount), element("span", None, meaning))


def cell(content: str, style: str | None = None) -> Html:
    inner = element("span", {"class": style}, content) if style else content
    return element("td", {"class": "n"}, inner)


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


def amounts(value: Any) -> dict[str, float]:
    """The finite numbers of a mapping; empty for anything else."""
    if not isinstance(value, Mapping):
        return {}
    return {str(key): amount for key in value if (amount := number(value, key)) is not None}
