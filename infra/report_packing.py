"""The report's section on rows and steps: how full rows are, what was drawn of each part, how even the ranks are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infra.formats import MISSING, context
from infra.markup import Html, element
from infra.report_data import ReportData, StageReport
from infra.report_figures import short
from infra.report_parts import amounts, card, cell, entries, number, quoted, section, text_at


def packing(data: ReportData) -> Html | None:
    """The section, or None for a run without a packing plan."""
    kinds = ("pack", "pack-whole", "pack-vision")
    packed = [stage for kind in kinds for stage in data.of_kind(kind) if stage.values]
    if not packed:
        return None
    packed = [stage for stage in data.stages if stage in packed]  # in the run's order
    training = {stage.inputs.get("plan", ""): stage for stage in data.of_kind("train")}
    return section(
        "Rows and steps",
        "How documents fill rows, what was asked for and drawn of each part, and how evenly the ranks that share the "
        "rows of a step are loaded with attention.",
        _plans(packed, training),
        _mixture(packed, training),
        _shapes(list(training.values())),
        _looked_up(data),
    )


def _plans(packed: Sequence[StageReport], training: Mapping[str, StageReport]) -> Html:
    rows = []
    for stage in packed:
        values, trained = stage.values, training.get(stage.name)
        fill = number(values, "fill")
        waited = number(trained.values, "data_wait") if trained else None
        lengths = sorted(int(length) for length in amounts(values.get("row_lengths")) if length.isdecimal())
        rows.append(
            (
                stage.name,
                ", ".join(context(length) for length in lengths) or context(number(stage.recipe, "sequence")),
                _whole(values, "rows"),
                _whole(values, "documents"),
                _whole(values, "documents_cut"),
                MISSING if fill is None else f"{1 - fill:.2%}",
                MISSING if waited is None else f"{waited:.2%}",
            )
        )
    names = ("Plan", "Row length", "Rows", "Documents", "cut", "Padding", "Waiting for data")
    return _table("", names, rows)


def _mixture(packed: Sequence[StageReport], training: Mapping[str, StageReport]) -> Html | None:
    """A row for each class of each plan that has several: what was asked, and what the steps drew."""
    rows = []
    for stage in packed:
        asked = _rows(stage.values, "mixture")
        drawn = _rows(training[stage.name].values, "drawn") if stage.name in training else []
        if len(asked) < 2:
            continue
        for part in asked:
            name = str(part.get("name", ""))
            mine = [row for row in drawn if _of(str(row.get("name", "")), name)]
            reached = sum(number(row, "share") or 0 for row in mine) if mine else None
            tokens = number(part, "tokens")
            rows.append(
                (
                    stage.name,
                    name,
                    MISSING if tokens is None else short(tokens),
                    _share(number(part, "asked")),
                    _share(number(part, "share")),
                    _share(reached),
                    _decimal(number(part, "epochs")),
                )
            )
    names = ("Plan", "Part", "Tokens", "Asked", "Given", "Drawn", "Epochs")
    return _table("What was asked for and drawn, as shares of the tokens", names, rows) if rows else None


def _shapes(training: Sequence[StageReport]) -> Html | None:
    rows = []
    for stage in training:
        for shape in _rows(stage.values, "shapes"):
            mesh = [part for part in str(shape.get("mesh", "")).split(",") if not part.endswith("=1")]
            even, worst = number(shape, "imbalance"), number(shape, "imbalance_worst")
            rows.append(
                (
                    stage.name,
                    f"{_whole(shape, 'rows')} x {context(number(shape, 'sequence'))}",
                    ", ".join(mesh) or "one device",
                    _whole(shape, "steps"),
                    MISSING if even is None else f"{even:.1%}",
                    MISSING if worst is None else f"{worst:.1%}",
                )
            )
    names = ("Stage", "Rows of a step", "Mesh", "Steps", "Busiest rank over the mean", "at worst")
    return (
        _table("Shapes of steps, and the attention of the ranks that share their rows", names, rows) if rows else None
    )


def _looked_up(data: ReportData) -> Html | None:
    """What rows with things to look up are like: those of the first stage with the most kinds."""
    stages = data.of_kind("recall")
    samples = max((entries(stage.values, "samples") for stage in stages), key=len, default=[])
    shown = [
        element("div", None, element("div", {"class": "soft mono"}, text_at(row, "corpus")), quoted(row, "text"))
        for row in samples
    ]
    return card("Rows with things to look up: how one of each kind ends", *shown) if shown else None


def _of(drawn: str, part: str) -> bool:
    return (
        drawn == part or drawn.startswith(f"{part} in rows of ") or (part == "all" and drawn.startswith("in rows of "))
    )


def _table(title: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    head = element("tr", None, *(element("th", {"class": "n"} if at else None, name) for at, name in enumerate(names)))
    body = [
        element("tr", None, element("td", None, first), *(cell(amount) for amount in others)) for first, *others in rows
    ]
    heading = element("h3", None, title) if title else None
    return element("div", {"class": "card scroll"}, heading, element("table", None, head, *body))


def _rows(values: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    rows = values.get(key)
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def _whole(values: Mapping[str, Any], key: str) -> str:
    amount = number(values, key)
    return MISSING if amount is None else f"{amount:,.0f}"


def _share(share: float | None) -> str:
    return MISSING if share is None else f"{share:.1%}"


def _decimal(amount: float | None) -> str:
    return MISSING if not amount else f"{amount:.2f}"
