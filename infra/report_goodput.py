"""The report's account of time: how much of it trained steps that count, and what took the rest; and every failure."""

from __future__ import annotations

from collections.abc import Sequence

from infra.formats import MISSING, duration
from infra.goodput import CAUSES, Goodput, total
from infra.markup import Html, element
from infra.report_data import ReportData, StageReport
from infra.report_parts import cell, section

_TRAINED = "trained"
# Colours of the stylesheet, in the order of the bars.
_COLOURS = dict(zip(CAUSES, ("c1", "c5", "c7", "c6", "c0", "c2", "c3", "waiting"), strict=True))
_LEAST_SHARE = 5e-4
_NAMED_SHARE = 0.12  # of a bar: what is wide enough for a figure inside


def goodput(data: ReportData) -> Html | None:
    """The section, or None while no stage has trained."""
    rows = [(stage.name, stage.goodput) for stage in data.stages if stage.goodput and stage.goodput.share is not None]
    if not rows:
        return None
    named: list[tuple[str, Goodput]] = [(name, found) for name, found in rows if found is not None]
    if len(named) > 1:
        named.append(("all training", total(found for _, found in named)))
    present = [cause for cause in CAUSES if any(_counts(found, cause) for _, found in named)]
    legend = [("done", _TRAINED), *((_COLOURS[cause], CAUSES[cause]) for cause in present)]
    return section(
        "Where the time went",
        "The wall time of each training stage, from its first claim to its end. What trained steps that count is its "
        "goodput. Stages that train side by side count each.",
        element(
            "div",
            {"class": "card"},
            element("div", {"class": "stacks"}, *(_bar(name, found, present) for name, found in named)),
            element("div", {"class": "legend"}, *(_key(style, name) for style, name in legend)),
        ),
        element("div", {"class": "card scroll"}, _table(named, present)),
    )


def failures(data: ReportData) -> Html | None:
    """Every failed attempt with its class, the advice and the end of its log; None where nothing failed."""
    failed = [stage for stage in data.stages if stage.failures]
    if not failed:
        return None
    return section(
        "Failures",
        "Attempts that ended without a result. What had been saved was kept, and the next attempt went on there.",
        element("div", {"class": "card"}, *(shown for stage in failed for shown in _failures_of(stage))),
    )


def _failures_of(stage: StageReport) -> list[Html]:
    return [
        element(
            "details",
            None,
            element(
                "summary",
                {"class": "failure"},
                element("b", None, stage.name),
                element("span", None, f"attempt {failure.attempt}"),
                element("span", None, failure.kind),
                element("span", None, failure.message),
            ),
            element(
                "div",
                {"class": "inside"},
                element("p", None, failure.advice),
                element("pre", {"class": "command"}, failure.tail) if failure.tail else None,
            ),
        )
        for failure in stage.failures
    ]


def _bar(name: str, found: Goodput, present: Sequence[str]) -> Html:
    parts = [("done", _TRAINED, found.productive)]
    parts += [(_COLOURS[cause], CAUSES[cause], found.lost[cause]) for cause in present]
    pieces = [_piece(style, title, seconds, found.wall) for style, title, seconds in parts if seconds > 0]
    return element(
        "div",
        {"class": "stack-row"},
        element("span", {"class": "bar-name"}, name),
        element("span", {"class": "stack"}, *pieces),
        element("span", {"class": "bar-figure"}, f"{found.share:.1%}"),
    )


def _piece(style: str, title: str, seconds: float, wall: float) -> Html:
    share = seconds / wall
    width = {
        "class": style,
        "style": f"width:{100 * share:.2f}%",
        "title": f"{title}: {duration(seconds)}, {share:.1%}",
    }
    return element("i", width, f"{share:.0%}" if share >= _NAMED_SHARE else "")


def _key(style: str, name: str) -> Html:
    return element("span", None, element("i", {"class": f"dot swatch {style}"}, ""), name)


def _table(named: Sequence[tuple[str, Goodput]], present: Sequence[str]) -> Html:
    names = ["wall time", _TRAINED, *(CAUSES[cause] for cause in present), "restarts"]
    head = element("tr", None, element("th", None, "Stage"), *(element("th", {"class": "n"}, name) for name in names))
    rows = [
        element(
            "tr",
            None,
            element("td", None, name),
            cell(duration(found.wall)),
            cell(duration(found.productive)),
            *(cell(_amount(found, cause)) for cause in present),
            cell(str(found.restarts)),
        )
        for name, found in named
    ]
    return element("table", {"class": "account"}, head, *rows)


def _amount(found: Goodput, cause: str) -> str:
    return duration(found.lost[cause]) if _counts(found, cause) else MISSING


def _counts(found: Goodput, cause: str) -> bool:
    return found.lost[cause] >= _LEAST_SHARE * found.wall
