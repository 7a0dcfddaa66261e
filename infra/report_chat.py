"""The report's section on questions and answers: what was written, and how held-out questions are answered.

Figures by their meaning, each shown only where it is; text of documents and models is data and is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infra.formats import MISSING
from infra.markup import Html, element
from infra.report_data import ReportData, StageReport
from infra.report_parts import (
    card,
    cell,
    decimal,
    entries,
    fall,
    fields,
    inner,
    named,
    number,
    pictures,
    quoted,
    section,
    share,
    table,
    text_at,
    turns,
    whole,
)
from infra.report_questions import questions

_PICTURES = {"answers.png": "Loss of answers in held-out conversations"}


def chat(data: ReportData) -> Html | None:
    """The section, or None for a run without questions or conversations."""
    judged = [(stage, found) for stage in data.of_kind("evaluate") if (found := inner(stage.values, "chat"))]
    parts = [*questions(data), _learned(judged), *pictures(data.of_kind("evaluate"), _PICTURES)]
    parts += [_depths(judged), _unanswered(judged), *(transcripts(stage, found) for stage, found in judged)]
    shown = [part for part in parts if part]
    if not shown:
        return None
    return section(
        "Questions and answers",
        "Questions about the documents, the conversations made of them, and what a chat stage changed: the loss of the "
        "answers in held-out conversations, and the answers that the model gives itself.",
        *shown,
    )


def _learned(judged: Sequence[tuple[StageReport, Mapping[str, Any]]]) -> Html | None:
    """A row for each corpus of each evaluation."""
    rows = [
        element(
            "tr",
            None,
            element("td", None, stage.name),
            element("td", None, name),
            cell(whole(found, "conversations") or MISSING),
            *fall(found, "loss_before", "loss_after"),
            cell(share(found, "verbatim_before")),
            cell(share(found, "verbatim_after")),
            cell(whole(found, "asked") or MISSING),
            cell(share(found, "exact")),
            cell(decimal(found, "f1")),
        )
        for stage, measured in judged
        for name, found in named(measured.get("corpora"))
    ]
    if not rows:
        return None
    groups = element(
        "tr",
        {"class": "group"},
        *(element("th", None, "") for _ in range(3)),
        element("th", {"colspan": 3}, "Loss of answers"),
        element("th", {"colspan": 2}, "Right token for token"),
        element("th", {"colspan": 3}, "Asked"),
    )
    names = ("held out", "before", "after", "change", "before", "after", "questions", "exact", "F1")
    head = element(
        "tr",
        None,
        element("th", None, "Stage"),
        element("th", None, "Corpus"),
        *(element("th", {"class": "n"}, name) for name in names),
    )
    return element("div", {"class": "card scroll"}, element("table", None, groups, head, *rows))


def _depths(judged: Sequence[tuple[StageReport, Mapping[str, Any]]]) -> Html | None:
    rows = []
    for stage, measured in judged:
        for name, found in named(measured.get("corpora")):
            for row in entries(found, "depths"):
                depth = f"{share(row, 'from')} to {share(row, 'to')}"
                losses = (decimal(row, "loss_before", 3), decimal(row, "loss_after", 3))
                answered = (whole(row, "asked") or MISSING, share(row, "exact"), decimal(row, "f1"))
                rows.append((f"{stage.name}, {name}", depth, whole(row, "answers") or MISSING, *losses, *answered))
    names = ("Stage, corpus", "Depth", "Answers", "Loss before", "after", "Asked", "exact", "F1")
    return table("By the depth at which the answer stands in the prompt", names, rows)


def _unanswered(judged: Sequence[tuple[StageReport, Mapping[str, Any]]]) -> Html | None:
    """What was not measured, and why."""
    facts: dict[str, str] = {}
    for stage, measured in judged:
        if reason := text_at(measured, "not_asked"):
            facts[f"{stage.name}: nothing was asked"] = reason
        refused = measured.get("refused")
        for name, why in refused.items() if isinstance(refused, Mapping) else ():
            facts[f"{stage.name}: nothing of {name}"] = str(why)
    return card("Not measured", fields("", facts)) if facts else None


def transcripts(stage: StageReport, measured: Mapping[str, Any]) -> Html | None:
    """A card with the questions that an evaluation asked, and what was said."""
    shown = []
    for row in entries(measured, "transcripts"):
        depth, tokens = number(row, "depth"), whole(row, "prompt_tokens")
        facts = [
            text_at(row, "corpus"),
            f"prompt of {tokens} tokens" if tokens else "",
            "" if depth is None else f"depth {depth:.0%}",
            "exact match" if row.get("exact") is True else f"F1 {decimal(row, 'f1')}",
            {"length": "cut off", "error": "ended by numbers that are not finite"}.get(text_at(row, "finish"), ""),
        ]
        shown.append(
            element(
                "div",
                None,
                element("div", {"class": "soft"}, " · ".join(fact for fact in facts if fact)),
                quoted(row, "excerpt"),
                turns(row, (("question", "Asked"), ("answer", "True answer"), ("said", "Model's answer"))),
            )
        )
    return card(f"{stage.name}: some of what was asked", *shown) if shown else None
