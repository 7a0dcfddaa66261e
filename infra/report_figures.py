"""Figures of the report: graph of stages, curves over tokens, bars. Numbers in, SVG out; colours are the CSS's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infra.markup import Html, element, join

COLOURS = 8
"""Classes c0...c7 of the stylesheet, in the order of stages."""

_POINTS = 400  # per curve: what a screen can show
_HOVERS = 48  # tooltips per curve
_MOST_COLUMNS = 11  # of a graph, side by side
_STUB = 12  # pixels of an edge's end
_LABEL = 8  # pixels of a letter above a curve


@dataclass(frozen=True)
class Node:
    """A box of the graph. state: a CSS class, one of done, reused, running, failed, waiting. word: what is printed."""

    name: str
    kind: str
    inputs: Sequence[str]
    state: str
    word: str
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """One stage's part of a chart. x: tokens, rising, cumulative over the run. label: printed at its top."""

    name: str
    label: str
    x: Sequence[float]
    y: Sequence[float]


# ---------------------------------------------------------------------- the graph


def graph(nodes: Sequence[Node]) -> Html:
    """The stages left to right, each right of its inputs, one lane per kind; `nodes` come after their inputs.

    An edge that another path implies is not drawn (the tooltip names all inputs). A box stands as far right as its
    consumers allow, so that a packing plan is beside the stage that reads it. A graph of many columns goes on below,
    like text; an edge from one such band to another is drawn as its two ends.
    """
    longest = max(max(7.3 * len(node.name), 11 + 6.2 * len(node.note or node.word)) for node in nodes)
    box = _Box(20 + int(longest))
    edges = _reduced(nodes)
    placed = _placed(nodes, edges, box)
    parts: list[Html] = []
    for a, b in edges:
        here, there = placed.places[a], placed.places[b]
        x0, y0, x1, y1 = here.left + box.width, here.upper + box.height / 2, there.left, there.upper + box.height / 2
        hops = there.column - here.column
        if here.band != there.band:
            path = f"M{x0:.0f} {y0:.0f} h{_STUB} M{x1 - _STUB:.0f} {y1:.0f} h{_STUB}"
        elif here.upper == there.upper and hops > 1:
            lift = here.upper - (10 + 9 * hops)
            x0, x1, y0, y1 = x0 - 16, x1 + box.width * 0.4, here.upper, there.upper
            path = f"M{x0:.0f} {y0:.0f} C{x0 + 24:.0f} {lift:.0f} {x1 - 24:.0f} {lift:.0f} {x1:.0f} {y1:.0f}"
        else:
            bend = (x1 - x0) / 2
            path = f"M{x0:.0f} {y0:.0f} C{x0 + bend:.0f} {y0:.0f} {x1 - bend:.0f} {y1:.0f} {x1:.0f} {y1:.0f}"
        parts.append(element("path", {"d": path, "class": "edge"}))
    for node in nodes:
        x, y = placed.places[node.name].left, placed.places[node.name].upper
        made_from = f" from {', '.join(node.inputs)}" if node.inputs else ""
        parts.append(
            element(
                "g",
                {"class": f"node {node.state}"},
                element("title", None, f"{node.name}: {node.kind}{made_from}; {node.word}"),
                element("rect", {"x": x, "y": y, "width": box.width, "height": box.height, "rx": 9}),
                element("circle", {"cx": x + 13, "cy": y + 31, "r": 3.5}),
                element("text", {"x": x + 10, "y": y + 18, "class": "name"}, node.name),
                element("text", {"x": x + 21, "y": y + 35, "class": "note"}, node.note or node.word),
            )
        )
    # Shrunk to the page as far as names can still be read; beyond that it scrolls.
    size = f"width:100%;max-width:{placed.width}px;min-width:{int(0.5 * placed.width)}px"
    return element(
        "svg",
        {"viewBox": f"0 0 {placed.width} {placed.height}", "style": size, "class": "graph", "role": "img"},
        element("title", None, "Stages of the run and what each is made from"),
        *parts,
    )


@dataclass(frozen=True)
class _Box:
    """Pixels of a box and of the gaps around it."""

    width: int
    height: int = 44
    gap_x: int = 20
    gap_y: int = 26


@dataclass(frozen=True)
class _Place:
    band: int
    column: int
    left: float
    upper: float


@dataclass(frozen=True)
class _Placed:
    """Where every box stands, by its name, and the size of the picture."""

    places: Mapping[str, _Place]
    width: int
    height: int


def _placed(nodes: Sequence[Node], edges: Sequence[tuple[str, str]], box: _Box) -> _Placed:
    columns = _columns(nodes)
    rows = _rows(nodes, columns)
    count = 1 + max(columns.values())
    bands = -(-count // _MOST_COLUMNS)
    breadth = -(-count // bands)
    margin = 6 if bands == 1 else 6 + _STUB
    places: dict[str, _Place] = {}
    bottom = 0
    for band in range(bands):
        members = {node.name for node in nodes if columns[node.name] // breadth == band}
        used = sorted({rows[name] for name in members})
        arcs = [columns[b] - columns[a] for a, b in edges if {a, b} <= members and rows[a] == rows[b]]
        longest_arc = max(arcs, default=1)
        top = bottom + 8 + (10 + 9 * longest_arc if longest_arc > 1 else 0)
        for name in members:
            left = margin + columns[name] % breadth * (box.width + box.gap_x)
            upper = top + used.index(rows[name]) * (box.height + box.gap_y)
            places[name] = _Place(band, columns[name], left, upper)
        bottom = top + len(used) * (box.height + box.gap_y) - box.gap_y + (8 if band == bands - 1 else 2 * box.gap_y)
    return _Placed(places, 2 * margin + breadth * (box.width + box.gap_x) - box.gap_x, bottom)


def _columns(nodes: Sequence[Node]) -> dict[str, int]:
    columns: dict[str, int] = {}
    for node in nodes:
        columns[node.name] = 1 + max((columns[name] for name in node.inputs if name in columns), default=-1)
    for node in reversed(nodes):
        consumers = [columns[other.name] for other in nodes if node.name in other.inputs]
        if consumers:
            columns[node.name] = min(consumers) - 1
    return columns


def _rows(nodes: Sequence[Node], columns: Mapping[str, int]) -> dict[str, int]:
    """Kinds share a lane where their columns allow it; boxes of one kind in one column are stacked."""
    taken: list[set[int]] = []  # per row, its used columns
    rows: dict[str, int] = {}
    for kind in dict.fromkeys(node.kind for node in nodes):
        members = [node.name for node in nodes if node.kind == kind]
        occupied = {columns[name] for name in members}
        first = next((row for row, used in enumerate(taken) if not used & occupied), len(taken))
        for name in members:
            row = first
            while row < len(taken) and columns[name] in taken[row]:
                row += 1
            while row >= len(taken):
                taken.append(set())
            taken[row].add(columns[name])
            rows[name] = row
    return rows


def _reduced(nodes: Sequence[Node]) -> list[tuple[str, str]]:
    """Edges without those that a longer path implies."""
    above: dict[str, set[str]] = {}
    edges = []
    for node in nodes:
        inputs = [name for name in dict.fromkeys(node.inputs) if name in above]
        edges += [(a, node.name) for a in inputs if not any(a in above[b] for b in inputs if b != a)]
        above[node.name] = set(inputs).union(*(above[name] for name in inputs))
    return edges


# ---------------------------------------------------------------------- curves and bars


def chart(curves: Sequence[Curve], title: str, unit: str, height: int, from_zero: bool = False) -> Html:
    """Curves end to end on one axis of tokens: the figures as they are, faint, and their moving mean over them."""
    width, left, right, top, bottom = 1000, 52, 14, 26, 30
    end = max(curve.x[-1] for curve in curves)
    values = sorted(y for curve in curves for y in curve.y if math.isfinite(y))
    if not values:
        return Html("")
    low = 0.0 if from_zero else values[0]
    # A few wild first steps must not flatten everything else.
    high = max(values[min(len(values) - 1, int(0.998 * len(values)))], low + 1e-9)
    pad = 0.06 * (high - low)
    low, high = (low if from_zero else low - pad), high + pad

    def at(x: float, y: float) -> tuple[float, float]:
        share = min(1.0, max(0.0, (y - low) / (high - low)))
        return left + (width - left - right) * x / end, top + (height - top - bottom) * (1 - share)

    parts: list[Html] = []
    for tick in ticks(low, high, max(3, height // 60)):
        y = at(0, tick)[1]
        parts.append(
            element("line", {"x1": left, "x2": width - right, "y1": f"{y:.1f}", "y2": f"{y:.1f}", "class": "grid"})
        )
        parts.append(element("text", {"x": left - 8, "y": f"{y + 4:.1f}", "class": "tick end"}, short(tick)))
    for tick in ticks(0, end, 8):
        x = at(tick, low)[0]
        parts.append(element("text", {"x": f"{x:.1f}", "y": height - 10, "class": "tick middle"}, short(tick)))
    for index, curve in enumerate(curves):
        points = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if math.isfinite(y)]
        if not points:
            continue
        start = curves[index - 1].x[-1] if index else 0.0
        x0, x1 = at(start, low)[0], at(curve.x[-1], low)[0]
        if index:
            parts.append(
                element(
                    "line",
                    {"x1": f"{x0:.1f}", "x2": f"{x0:.1f}", "y1": top - 10, "y2": height - bottom, "class": "cut"},
                )
            )
        if x1 - x0 >= _LABEL * len(curve.label):  # else it would stand in its neighbour's; the points name their stage
            at_middle = {"x": f"{(x0 + x1) / 2:.1f}", "y": 13, "class": f"label middle c{index % COLOURS}"}
            parts.append(element("text", at_middle, curve.label))
        thin = _thinned(points, _POINTS)
        parts.append(element("polyline", {"points": _path(thin, at), "class": f"raw c{index % COLOURS}"}))
        parts.append(element("polyline", {"points": _path(_smoothed(thin), at), "class": f"curve c{index % COLOURS}"}))
        for x, y in _thinned(points, _HOVERS):
            cx, cy = at(x, y)
            tip = element("title", None, f"{curve.name}: {y:,.4g} {unit} after {short(x)} tokens")
            parts.append(
                element(
                    "circle", {"cx": f"{cx:.1f}", "cy": f"{cy:.1f}", "r": 6, "class": f"hover c{index % COLOURS}"}, tip
                )
            )
    attributes = {"viewBox": f"0 0 {width} {height}", "class": "chart", "role": "img"}
    return element("svg", attributes, element("title", None, title), *parts)


def bars(amounts: Mapping[str, float], unit: str) -> Html:
    """Horizontal bars with their name and figure, in the order given."""
    largest = max(amounts.values(), default=0) or 1
    rows = [
        element(
            "div",
            {"class": "bar"},
            element("span", {"class": "bar-name"}, name),
            element(
                "span", {"class": "bar-track"}, element("i", {"style": f"width:{100 * amount / largest:.1f}%"}, "")
            ),
            element("span", {"class": "bar-figure"}, f"{amount:,.0f}"),
        )
        for name, amount in amounts.items()
    ]
    return element("div", {"class": "bars", "title": unit}, join(rows))


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round values inside [low, high], some `about` of them."""
    raw = max((high - low) / max(1, about), 1e-12)
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first = math.ceil(low / step)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def short(number: float) -> str:
    """1234567 -> 1.23M: three digits that count."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(number) >= 0.9995 * size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def _thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points, each the mean of its neighbours' values at the last one's place."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / most)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Moving mean over a twelfth of the points. Narrower at the start, where a steep fall would be flattened."""
    reach = len(points) // 24
    smooth = []
    for index, (x, _) in enumerate(points):
        near = min(reach, index)
        window = points[index - near : index + near + 1]  # at the end: what there is
        smooth.append((x, sum(y for _, y in window) / len(window)))
    return smooth


def _path(points: Sequence[tuple[float, float]], at) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points))
