"""The report's part on questions: who wrote them, which were kept and why not the rest, and what was made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infra.formats import MISSING
from infra.markup import Html, element
from infra.report_data import ReportData, StageReport
from infra.report_figures import bars, short
from infra.report_parts import (
    amounts,
    card,
    entries,
    fields,
    named,
    number,
    quoted,
    table,
    text_at,
    tiles,
    turns,
    whole,
)

_PAIRS = 10  # pairs that a person would still read
_TALKS = 3  # and conversations


def questions(data: ReportData) -> list[Html | None]:
    """Tiles, tables and pairs of the stages that there are; empty for a run without them."""
    parts: list[Html | None] = []
    for stage in data.of_kind("synthesize-qa"):
        parts += [_written(stage.values), _author(stage), _rejected(stage.values)]
        parts += [_pairs(stage.values), _refused(stage.values)]
    composed = data.of_kind("compose-qa")
    parts += [_composed(composed), *map(_composed_depths, composed)]
    for stage in data.of_kind("document-talk"):
        parts += [_talk(stage.values), _conversations("Some of these", stage.values)]
    for stage in data.of_kind("conversations"):
        parts += [_corpora(stage.values), _conversations("Some conversations, as they are trained on", stage.values)]
    return parts


def _written(values: Mapping[str, Any]) -> Html | None:
    asked, kept = number(values, "asked"), number(values, "kept")
    share = f"{kept / asked:.0%}" if asked and kept is not None else None
    return tiles(
        (whole(values, "asked"), "questions asked for"),
        (whole(values, "kept"), "pairs kept"),
        (share, "of them passed every rule"),
        (whole(values, "documents"), "documents asked about"),
        (whole(values, "chunks"), "chunks in them"),
    )


def _author(stage: StageReport) -> Html | None:
    values = stage.values
    models = [f"{name} ({count:,.0f})" for name, count in amounts(values.get("models")).items()]
    spent = {name: values.get(name) for name in ("requests", "prompt_tokens", "reply_tokens")}
    facts = {
        "provider": values.get("provider"),
        "written by a model": _by_model(values.get("written_by_model")),
        "models, and replies of each": ", ".join(models),
        "budget": _listed(stage.recipe.get("budget")),
        "spent": _listed(spent),
        "failed requests": _listed(values.get("failed_requests")),
        "stopped early": values.get("stopped"),
    }
    known = {name: value for name, value in facts.items() if isinstance(value, str) and value}
    return card("Who wrote them", fields("", known)) if values and known else None


def _by_model(said: Any) -> str:
    if not isinstance(said, bool):
        return ""
    return "yes" if said else "no: by rule, from the text itself"


def _rejected(values: Mapping[str, Any]) -> Html | None:
    reasons = sorted(amounts(values.get("rejected")).items(), key=lambda reason: -reason[1])
    return card("Replies that were not kept, and why", bars(dict(reasons), "replies")) if reasons else None


def _pairs(values: Mapping[str, Any]) -> Html | None:
    shown = [
        element(
            "div",
            None,
            _source(row),
            quoted(row, "excerpt"),
            turns(row, (("question", "Question"), ("answer", "Answer"), ("reply", "Reply as it came"))),
        )
        for row in entries(values, "examples")[:_PAIRS]
    ]
    return card("Pairs that were kept, and what they ask about", *shown) if shown else None


def _refused(values: Mapping[str, Any]) -> Html | None:
    shown = [
        element("div", None, _source(row), turns(row, (("reason", "Not kept"), ("detail", "Why"), ("reply", "Reply"))))
        for row in entries(values, "rejected_examples")[:_PAIRS]
    ]
    return card("Replies that were not kept", *shown) if shown else None


def _source(row: Mapping[str, Any]) -> Html:
    chunk = whole(row, "number")
    return element("div", {"class": "soft mono"}, text_at(row, "document"), f", chunk {chunk}" if chunk else None)


def _composed(stages: Sequence[StageReport]) -> Html | None:
    keys = ("examples", "tokens", "kept_pairs", "pairs", "distractors")
    made = [stage for stage in stages if number(stage.values, "examples") is not None]
    rows = [(stage.name, *(whole(stage.values, key) or MISSING for key in keys)) for stage in made]
    names = ("Examples of", "Examples", "Tokens", "Pairs kept", "asked in them", "Distractors")
    return table("Long examples made of the pairs and their chunks", names, rows)


def _composed_depths(stage: StageReport) -> Html | None:
    counts = stage.values.get("depths")
    if not isinstance(counts, list) or not counts:
        return None
    edges = [f"{place / len(counts):.0%}" for place in range(len(counts) + 1)]
    classes = {f"{low} to {high}": count for low, high, count in zip(edges, edges[1:], counts, strict=False)}
    return card(f"{stage.name}: depth of the answers in their texts", bars(amounts(classes), "answers"))


def _corpora(values: Mapping[str, Any]) -> Html | None:
    origins = dict(named(values.get("provenance")))
    rows = []
    for name, found in named(values.get("corpora")):
        origin = origins.get(name, {})
        author = _by_model(origin.get("written_by_model")) or MISSING
        counts = (whole(found, key) or MISSING for key in ("conversations", "tokens", "answer_tokens"))
        rows.append((name, text_at(origin, "from") or MISSING, author, *counts))
    names = ("Corpus", "From", "Written by a model", "Conversations", "Tokens", "of answers")
    return table("Conversations to learn from", names, rows, texts=3)


def _talk(values: Mapping[str, Any]) -> Html | None:
    keys = ("conversations", "exchanges", "documents")
    rows = [(name, *(whole(found, key) or MISSING for key in keys)) for name, found in named(values.get("kinds"))]
    names = ("Made of", "Conversations", "Questions", "Documents")
    return table("Conversations in the documents' own words: no model wrote them", names, rows)


def _conversations(title: str, values: Mapping[str, Any]) -> Html | None:
    shown = []
    for row in entries(values, "samples")[:_TALKS]:
        facts = [fact for key in ("source", "document", "corpus", "kind") if (fact := text_at(row, key))]
        shown.append(
            element("div", None, element("div", {"class": "soft mono"}, " · ".join(facts)), quoted(row, "text"))
        )
    return card(title, *shown) if shown else None


def _listed(value: Any) -> str:
    return ", ".join(f"{short(amount)} {name.replace('_', ' ')}" for name, amount in amounts(value).items())
