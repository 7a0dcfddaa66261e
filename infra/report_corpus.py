"""The report's section on the data: what was read, what was kept of it and why not the rest, how long it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.formats import context, size
from infra.markup import Html, element
from infra.report_curation import curation
from infra.report_data import ReportData
from infra.report_documents import documents
from infra.report_figures import bars, short
from infra.report_parts import amounts, number, section, tile

_MANY = 40  # rows of a list that a person would still read


def corpus(data: ReportData) -> Html | None:
    """The section, or None for a run that has read nothing yet."""
    parts: list[Html | None] = []
    for stage in data.of_kind("documents"):
        parts += [_seen(stage.values, "documents"), _left_out(stage.values, "documents"), *documents(stage.values)]
    parts += curation(data)
    for stage in data.of_kind("conversations"):
        parts += [_seen(stage.values, "conversations"), _left_out(stage.values, "conversations")]
    for stage in data.of_kind("tokens"):
        parts += [_tokens(data, stage.values), _lengths(stage.values)]
    shown = [part for part in parts if part]
    return section("Data", "What was read, what was kept of it, and how long it is.", *shown) if shown else None


def _seen(values: Mapping[str, Any], what: str) -> Html | None:
    return _tiles(
        (_whole(values, "seen"), f"{what} seen"),
        (_whole(values, what), f"{what} kept"),
        (size(amount) if (amount := number(values, "bytes")) is not None else None, "of text"),
    )


def _left_out(values: Mapping[str, Any], what: str) -> Html | None:
    columns = []
    reasons = amounts(values.get("reasons")) or amounts(values.get("refused"))
    if reasons:
        ordered = dict(sorted(reasons.items(), key=lambda item: -item[1])[:_MANY])
        columns.append(element("div", None, element("h3", None, "Left out, and why"), bars(ordered, what)))
    names = values.get("refused")
    if isinstance(names, list) and names:
        rows = [element("div", {"class": "mono"}, _named(name)) for name in names[:_MANY]]
        if len(names) > _MANY:
            rows.append(element("div", {"class": "soft"}, f"and {len(names) - _MANY} more"))
        columns.append(element("div", None, element("h3", None, "Could not be used, by name"), *rows))
    return element("div", {"class": "card columns"}, *columns) if columns else None


def _named(refused: Any) -> str:
    if not isinstance(refused, Mapping):
        return str(refused)
    said = [str(refused[key]) for key in ("reason", "detail") if refused.get(key)]
    return f"{refused.get('source', '')}: {', '.join(said)}"


def _tokens(data: ReportData, values: Mapping[str, Any]) -> Html | None:
    train, held_out = (values.get(split) for split in ("train", "held_out"))
    vocabularies = [stage.values for stage in data.of_kind("tokenizer")]
    total = number(values, "tokens")
    return _tiles(
        (short(total) if total is not None else None, "tokens"),
        (_whole(train, "documents"), "documents to train on"),
        (_whole(held_out, "documents"), "documents held out"),
        *(
            (_whole(found, "vocabulary_size"), f"tokens in the vocabulary ({found.get('family', 'tokenizer')})")
            for found in vocabularies
        ),
    )


def _lengths(values: Mapping[str, Any]) -> Html | None:
    lengths = sorted((int(low), count) for low, count in amounts(values.get("lengths")).items() if low.isdecimal())
    if not lengths:
        return None
    named = {f"{context(low)} to {context(2 * low)}": count for low, count in lengths}
    return element(
        "div", {"class": "card"}, element("h3", None, "Documents by length in tokens"), bars(named, "documents")
    )


def _tiles(*facts: tuple[str | None, str]) -> Html | None:
    tiles = [tile(amount, meaning) for amount, meaning in facts if amount is not None]
    return element("div", {"class": "tiles"}, *tiles) if tiles else None


def _whole(values: Any, key: str) -> str | None:
    amount = number(values, key) if isinstance(values, Mapping) else None
    return None if amount is None else f"{amount:,.0f}"
