"""The report's first section on evaluations: one table over all stages, and what more context is worth to each.

A row says at a glance whether a stage learned its length, uses it, and what it forgot. What was not measured is said
with its reason, for a dash has many.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from infra.formats import MISSING, context
from infra.markup import Html, element
from infra.report_context import judged, on_text, sequence_of
from infra.report_data import ReportData, StageReport
from infra.report_figures import COLOURS, ticks
from infra.report_parts import card, cell, decimal, fields, inner, number, section, table, text_at

_GROUPS = (
    ("", 3), ("Held-out loss", 1), ("past the previous length", 2), ("More context", 1), ("Short text", 1),
    ("Needles", 2), ("Tasks", 2),
)  # fmt: skip
_NAMES = (
    "Context", "Theta", "before → after", "from", "before → after", "lowers loss by", "before → after", "whole",
    "digits", "mean", "effective",
)  # fmt: skip
_REASONS = {"context_refused": "loss after more context", "short_refused": "loss of short text"}


def proof(data: ReportData) -> Html | None:
    """The section, or None before the first evaluation."""
    stages = judged(data)
    if not stages:
        return None
    groups = element("tr", {"class": "group"}, *(element("th", {"colspan": width}, name) for name, width in _GROUPS))
    head = element("tr", None, element("th", None, "Stage"), *(element("th", {"class": "n"}, name) for name in _NAMES))
    parts = [
        element("div", {"class": "card scroll"}, element("table", None, groups, head, *map(_row, stages))),
        _worth(on_text(data)),
        _tasks(stages),
        _unmeasured(stages),
    ]
    return section(
        "Does it use the longer context?",
        "Documents kept out of training, read by the model before and after each stage; losses are in nats per token. "
        "The first test is the loss past the previous length: positions further into a document than the stage before "
        "ever saw. The second is what more context is worth: by how much the loss of the same tokens is lower after "
        "all of the context than after the least. Short text shows what a stage forgot. The effective length is the "
        "longest at which the tasks, there and at all shorter lengths, reach RULER's threshold.",
        *(part for part in parts if part),
    )


def _row(stage: StageReport) -> Html:
    values = stage.values
    past, length = number(values, "past"), number(values, "effective_length")
    return element(
        "tr",
        None,
        element("td", {"style": "white-space:nowrap"}, _trained(stage)),
        cell(context(sequence_of(stage))),
        cell(_theta(stage)),
        _fell(values, "loss_before", "loss_after"),
        cell(context(past) if past else MISSING),
        cell(MISSING) if past == 0 else _fell(values, "loss_past_before", "loss_past_after"),
        _gain(values),
        _fell(values, "short_loss_before", "short_loss_after"),
        cell(_percent(values, "needle_exact", 100)),
        cell(_percent(values, "needle_digits", 100)),
        cell(_percent(values, "tasks_mean")),
        cell(MISSING if length is None else context(length) if length else "none"),
    )


def _trained(stage: StageReport) -> str:
    """The training stage that an evaluation is of."""
    return stage.inputs.get("after", stage.name)


def _theta(stage: StageReport) -> str:
    theta = number(stage.values, "theta")
    if theta is None:  # evaluations of before it was a figure have it in their recipe
        rope = inner(inner(stage.recipe, "model") or {}, "rope")
        theta = number(rope or {}, "theta")
    return MISSING if theta is None else f"{theta:.3g}"


def _fell(values: Mapping[str, Any], before: str, after: str) -> Html:
    """A loss before and after in one cell."""
    first, last = number(values, before), number(values, after)
    shown = f"{decimal(values, before, 3)} → {decimal(values, after, 3)}"
    if last is None:
        return cell(MISSING)
    return cell(shown) if first is None else cell(shown, "good" if last < first else "bad")


def _gain(values: Mapping[str, Any]) -> Html:
    gain = number(values, "context_gain")
    return cell(MISSING) if gain is None else cell(f"{gain:.3f}", "good" if gain > 0 else "bad")


def _percent(values: Mapping[str, Any], key: str, scale: float = 1) -> str:
    share = number(values, key)
    return MISSING if share is None else f"{scale * share:.0f}%"


# ---------------------------------------------------------------------- loss after more context


def _worth(stages: Sequence[StageReport]) -> Html | None:
    """A curve for each stage: by how much the loss of the same tokens changes with more and more context."""
    drawn = []
    for stage in stages:
        found = inner(stage.values, "loss_given_context") or {}
        contexts, losses = found.get("contexts"), found.get("after")
        if isinstance(contexts, list) and isinstance(losses, list):
            points = [(x, y) for x, y in zip(contexts, losses, strict=False) if _usable(x) and _usable(y) and x > 0]
            if len(points) > 1:
                drawn.append((stage, [(x, y - points[0][1]) for x, y in points]))
    if not drawn:
        return None
    names = [
        element("span", None, element("i", {"class": f"dot swatch c{place % COLOURS}"}, ""), _trained(stage))
        for place, (stage, _) in enumerate(drawn)
    ]
    return card(
        "What more context is worth",
        element("p", {"class": "soft"}, "By how much the held-out loss of the same tokens changes, in nats per token, "
                "when more of what stands before them is read than the least. A curve that goes on falling to its end "
                "belongs to a model that uses its whole context."),
        _curves(drawn),
        element("div", {"class": "legend"}, *names),
    )  # fmt: skip


def _curves(drawn: Sequence[tuple[StageReport, Sequence[tuple[float, float]]]]) -> Html:
    width, height, left, right, top, bottom = 1000, 300, 52, 14, 14, 30
    contexts = sorted({x for _, points in drawn for x, _ in points})
    losses = [y for _, points in drawn for _, y in points]
    low, high = math.log2(contexts[0]), math.log2(contexts[-1])
    least, most = min(losses), max(losses)
    pad = 0.06 * (most - least) or 0.1
    least, most = least - pad, most + pad

    def at(x: float, y: float) -> tuple[float, float]:
        across = (math.log2(x) - low) / (high - low)
        return left + (width - left - right) * across, top + (height - top - bottom) * (most - y) / (most - least)

    parts: list[Html] = []
    for tick in ticks(least, most, 5):
        y = f"{at(contexts[0], tick)[1]:.1f}"
        parts.append(element("line", {"x1": left, "x2": width - right, "y1": y, "y2": y, "class": "grid"}))
        parts.append(
            element(
                "text",
                {"x": left - 8, "y": f"{float(y) + 4:.1f}", "class": "tick end"},
                f"{tick:+.2g}" if tick else "0",
            )
        )
    for power in range(math.ceil(low), math.floor(high) + 1):
        place = {"x": f"{at(2**power, most)[0]:.1f}", "y": height - 10, "class": "tick middle"}
        parts.append(element("text", place, context(2**power)))
    for index, (stage, points) in enumerate(drawn):
        colour = f"c{index % COLOURS}"
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points))
        parts.append(element("polyline", {"points": path, "class": f"curve {colour}"}))
        for x, y in points:
            across, down = at(x, y)
            tip = element("title", None, f"{_trained(stage)}: {y:+.3f} nats per token after {x:,} tokens of context")
            spot = {"cx": f"{across:.1f}", "cy": f"{down:.1f}", "r": 5, "class": f"hover {colour}"}
            parts.append(element("circle", spot, tip))
    title = element("title", None, "Change of the held-out loss after more and more context, by stage")
    return element("svg", {"viewBox": f"0 0 {width} {height}", "class": "chart", "role": "img"}, title, *parts)


# ---------------------------------------------------------------------- tasks


def _tasks(stages: Sequence[StageReport]) -> Html | None:
    """A row for each length that a stage was asked at."""
    found = [(stage, asked) for stage in stages if (asked := inner(stage.values, "tasks"))]
    names = list(dict.fromkeys(name for _, asked in found for name in inner(asked, "tasks") or {}))
    rows = []
    for stage, asked in found:
        scores = inner(asked, "tasks") or {}
        means = inner(asked, "mean") or {}
        for length in filter(str.isdecimal, means):
            shown = [_percent(inner(scores, name) or {}, length) for name in names]
            rows.append((_trained(stage), context(int(length)), *shown, _percent(means, length)))
    return table("Long-context tasks, by the length of the prompt", ("Stage", "Length", *names, "mean"), rows)


def _unmeasured(stages: Sequence[StageReport]) -> Html | None:
    facts: dict[str, str] = {}
    for stage in stages:
        for key, name in _REASONS.items():
            if reason := text_at(stage.values, key):
                facts[f"{_trained(stage)}: no {name}"] = reason
        asked = inner(stage.values, "tasks") or {}
        if reason := text_at(asked, "not_asked"):
            facts[f"{_trained(stage)}: no tasks"] = reason
        for name, why in (inner(asked, "refused") or {}).items():
            facts[f"{_trained(stage)}: not {name}"] = str(why)
    return card("Not measured", fields("", facts)) if facts else None


def _usable(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
