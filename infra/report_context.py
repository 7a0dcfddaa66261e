"""The report's pictures of how context is used, and what stages of other data cost; the figures: `report_proof`.

Stages of text are those whose evaluation measured nothing else; conversations and pictures have sections of their own.
"""

from __future__ import annotations

from infra.formats import context
from infra.markup import Html, element
from infra.report_data import ReportData, StageReport
from infra.report_parts import cell, fall, number, pictures, section

_TITLES = {
    "needle.png": "Needles found, by document length and depth",
    "loss_by_position.png": "Held-out loss by position in the document",
    "loss_given_context.png": "Held-out loss of the same tokens after more context",
    "needles.png": "Tasks with a needle, by length and depth",
}
_OTHER = ("chat", "vision")  # what an evaluation measured besides text


def judged(data: ReportData) -> list[StageReport]:
    """The evaluations that are done, in order."""
    return [stage for stage in data.of_kind("evaluate") if stage.values]


def on_text(data: ReportData) -> list[StageReport]:
    """The evaluations of stages of text, in order."""
    return [stage for stage in judged(data) if not any(stage.values.get(name) for name in _OTHER)]


def sequence_of(stage: StageReport) -> float | None:
    return number(stage.values, "sequence") or number(stage.recipe, "sequence")


def fell_in(stage: StageReport, before: str, after: str) -> bool | None:
    """Whether a figure fell; None where it is not known."""
    first, last = number(stage.values, before), number(stage.values, after)
    return None if first is None or last is None else last < first


def positions(data: ReportData) -> Html | None:
    """Pictures of the same name side by side, so that stages can be compared."""
    shown = pictures(data.of_kind("evaluate"), _TITLES)
    if not shown:
        return None
    return section(
        "Needles and loss by position",
        "A needle is one sentence (a city and its number) hidden at some depth of a long document; a cell says how "
        "often the model repeats the number. Loss by position shows what each further token of context is worth.",
        *shown,
    )


def forgetting(data: ReportData) -> Html | None:
    """Held-out text under the stages that were trained on something else."""
    text = on_text(data)
    rows = [
        element(
            "tr",
            None,
            element("td", None, stage.name),
            cell(context(sequence_of(stage))),
            *fall(stage.values, "loss_before", "loss_after"),
        )
        for stage in judged(data)
        if stage not in text
    ]
    if not rows:
        return None
    names = ("Context", "before", "after", "change")
    head = element("tr", None, element("th", None, "Stage"), *(element("th", {"class": "n"}, name) for name in names))
    return section(
        "What is forgotten",
        "Mean loss (nats per token) on documents kept out of training, before and after the stages that were trained "
        "on conversations or pictures.",
        element("div", {"class": "card scroll"}, element("table", None, head, *rows)),
    )
