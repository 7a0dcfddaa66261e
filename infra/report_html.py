"""The report's page: sections of plain sentences, tables and figures, each shown only when its figures exist.

Pure: `ReportData` in, one HTML text out, self-contained (its content policy forbids scripts and the network). Every
name and value from outside passes through `infra.markup`, which escapes it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from infra.formats import context, duration, figure, moment, size
from infra.goodput import total
from infra.markup import Html, element
from infra.records import flatten
from infra.report_chat import chat
from infra.report_context import fell_in, forgetting, on_text, positions, sequence_of
from infra.report_corpus import corpus
from infra.report_data import ReportData, StageReport
from infra.report_figures import Curve, Node, chart, graph, short
from infra.report_goodput import failures, goodput
from infra.report_packing import packing
from infra.report_parts import fields, number, section, tile
from infra.report_proof import proof
from infra.report_speed import speed
from infra.report_style import STYLE
from infra.report_vision import vision

STATES = {
    "done": "done",
    "reused": "reused",
    "running": "running",
    "failed": "failed",
    "waiting": "waiting",
    "finished": "done",
    "retrying": "running",
    "reuse": "reused",
    "run": "waiting",
    "resume": "waiting",
    "wait": "waiting",
    "blocked": "waiting",
    "drift": "failed",
    "stopped": "waiting",
}
"""State of a stage -> its colour; any other word is shown as it is, coloured as waiting."""

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_DOT = Html('<i class="dot"></i>')
_MANY = 40  # rows of a list that a person would still read


def render(data: ReportData) -> str:
    """The whole page."""
    head = element(
        "head",
        None,
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        element("meta", {"http-equiv": "Content-Security-Policy", "content": _POLICY}),
        element("title", None, f"{data.run}: Ringworld run"),
        Html(f"<style>{STYLE}</style>"),
    )
    results = (proof, positions, chat, vision, forgetting)
    sections = (_header, _stages, failures, _training, goodput, speed, *results, corpus, packing, _details, _provenance)
    main = element("main", None, *(part(data) for part in sections))
    return "<!doctype html>\n" + element("html", {"lang": "en"}, head, element("body", None, main)) + "\n"


# ---------------------------------------------------------------------- sections


def _header(data: ReportData) -> Html:
    started = min((stage.started for stage in data.stages if stage.started), default=None)
    done = sum(STATES.get(stage.state) in ("done", "reused") for stage in data.stages)
    tokens = sum(_tokens(stage) for stage in data.of_kind("train"))
    worked = sum(stage.worked or 0 for stage in data.stages)
    waits = sum(stage.waited for stage in data.stages)
    tiles: list[tuple[str, str]] = [(f"{done} of {len(data.stages)}", "stages done")]
    if tokens:
        tiles.append((short(tokens), "tokens trained"))
    if worked:
        beside = f"; {duration(waits)} more of waiting for machines" if waits >= 1 else ""
        tiles.append((duration(worked), f"of work in all stages together{beside}"))
    share = total(stage.goodput for stage in data.stages if stage.goodput).share
    if share is not None:
        tiles.append((f"{share:.1%}", "goodput: of the time in training stages"))
    speeds = [speed for stage in data.of_kind("train") if (speed := number(stage.values, "tokens_per_second"))]
    if speeds:
        tiles.append((short(max(speeds)), "tokens per second, at best"))
    judged = on_text(data)
    if judged:
        first, last = number(judged[0].values, "loss_before"), number(judged[-1].values, "loss_after")
        if first is not None and last is not None:
            tiles.append((f"{first:.2f} → {last:.2f}", "held-out loss, first to last text stage"))
    facts = [f"curriculum {data.curriculum}", f"started {moment(started)}" if started else "not started"]
    facts.append(f"as of {moment(data.written)}")
    return element(
        "header",
        None,
        element("div", {"class": "eyebrow"}, "Ringworld run"),
        element("h1", None, data.run),
        element("div", {"class": "soft"}, " · ".join(facts)),
        element("p", {"class": "summary"}, _summary(data)),
        element("div", {"class": "tiles"}, *(tile(*fact) for fact in tiles)),
    )


def _summary(data: ReportData) -> str:
    """What was achieved, in a few plain sentences."""
    trained = [stage for stage in data.of_kind("train") if stage.values]
    lengths = [length for stage in trained if (length := sequence_of(stage))]
    sentences = []
    parameters = next((count for stage in trained if (count := number(stage.values, "parameters"))), None)
    model = f"A model of {short(parameters)} parameters" if parameters else "A model"
    if len(set(lengths)) > 1:
        sentences.append(
            f"{model} was trained in {len(trained)} stages, of {context(min(lengths))} to {context(max(lengths))} "
            f"tokens of context."
        )
    elif lengths:
        sentences.append(f"{model} was trained at {context(lengths[0])} tokens of context.")
    fell = [result for stage in on_text(data) if (result := fell_in(stage, "loss_before", "loss_after")) is not None]
    if fell:
        sentences.append(f"Held-out loss fell in {_of(sum(fell), len(fell), 'text stage')}.")
    extended = [stage for stage in on_text(data) if number(stage.values, "past")]
    past = [got for stage in extended if (got := fell_in(stage, "loss_past_before", "loss_past_after")) is not None]
    if past:
        sentences.append(
            f"At positions past the previous stage's length it fell in {_of(sum(past), len(past), 'extension')}: "
            + ("the longer context is used." if all(past) else "not every extension paid off.")
        )
    found = [(stage, share) for stage in on_text(data) if (share := number(stage.values, "needle_exact")) is not None]
    if found:
        stage, share = found[-1]
        sentences.append(f"A needle is found in {share:.0%} of texts of up to {context(sequence_of(stage))} tokens.")
    failed = [stage.name for stage in data.stages if stage.state == "failed"]
    if failed:
        sentences.append(f"Failed: {', '.join(failed)}.")
    return " ".join(sentences) or "Nothing has been trained yet; what is known so far is below."


def _stages(data: ReportData) -> Html | None:
    if not data.stages:
        return None
    nodes = [
        Node(
            stage.name,
            stage.kind,
            tuple(stage.inputs.values()),
            STATES.get(stage.state, "waiting"),
            stage.state,
            _box_note(stage),
        )
        for stage in data.stages
    ]
    present = dict.fromkeys(node.state for node in nodes)
    legend = [element("span", None, element("i", {"class": f"dot {state}"}, ""), state) for state in present]
    return section(
        "Stages",
        "Each box is made from those that point to it. A finished one is kept and never made twice.",
        element(
            "div",
            {"class": "card"},
            element("div", {"class": "scroll"}, graph(nodes)),
            element("div", {"class": "legend"}, *legend),
        ),
    )


def _box_note(stage: StageReport) -> str:
    if stage.seconds is None or STATES.get(stage.state) not in ("done", "reused"):
        return stage.state
    return f"{stage.state} · {duration(stage.worked or 0)}"


def _training(data: ReportData) -> Html | None:
    drawn = [stage for stage in data.of_kind("train") if stage.steps]
    if not drawn:
        return None
    charts = [
        (element("h3", None, title), svg)
        for key, title, unit, height, from_zero in (
            ("loss", "Training loss (nats per token)", "nats per token", 330, False),
            ("tokens_per_second", "Tokens per second", "tokens per second", 190, True),
        )
        if (svg := _curves(drawn, key, title, unit, height, from_zero))
    ]
    return section(
        "Training",
        "All training stages end to end, over the tokens seen. Labels are the context lengths; each batch is the faint "
        "line, the trend is the strong one.",
        element("div", {"class": "card"}, *(part for pair in charts for part in pair)),
    )


def _curves(stages: Sequence[StageReport], key: str, title: str, unit: str, height: int, from_zero: bool) -> Html:
    curves, offset = [], 0.0
    for stage in stages:
        points = [(offset + step["tokens"], float(step[key])) for step in stage.steps if number(step, key) is not None]
        if points:
            length = sequence_of(stage)
            label = context(length) if length else stage.name
            curves.append(Curve(stage.name, label, [x for x, _ in points], [y for _, y in points]))
        offset += stage.steps[-1]["tokens"]
    return chart(curves, title, unit, height, from_zero) if curves else Html("")


def _details(data: ReportData) -> Html | None:
    if not data.stages:
        return None
    return section(
        "Every stage",
        "Open one for its recipe, figures and files.",
        element("div", {"class": "card"}, *(_stage_details(stage) for stage in data.stages)),
    )


def _stage_details(stage: StageReport) -> Html:
    figures = {key: value for key, value in stage.values.items() if not isinstance(value, (list, dict))}
    lists = {key: value for key, value in stage.values.items() if isinstance(value, (list, dict)) and value}
    steps = f"{stage.steps[-1].get('step', len(stage.steps)):,} steps" if stage.steps else ""
    short_facts = [duration(stage.worked) if stage.worked is not None else "", steps]
    summary = element(
        "summary",
        None,
        element("b", None, stage.name),
        element("span", None, stage.kind),
        element(
            "span", {"class": f"pill {STATES.get(stage.state, 'waiting')}"}, Html('<i class="dot"></i>'), stage.state
        ),
        element("span", None, " · ".join(fact for fact in [*short_facts, _headline(stage)] if fact)),
    )
    facts = {
        "fingerprint": stage.fingerprint[:12],
        "made from": ", ".join(f"{port}: {name}" for port, name in stage.inputs.items()) or "nothing",
        "duration": duration(stage.worked) if stage.worked is not None else None,
        "waited for machines": duration(stage.waited) if stage.waited >= 1 else None,
        "attempts": stage.attempts,
        "series": stage.series,
        "finished": moment(stage.finished) if stage.finished else None,
        "host": stage.host,
    }
    tables = [
        fields("Recipe", flatten(stage.recipe)),
        fields("Figures", {key: figure(value) for key, value in figures.items()}),
        fields("This stage", {key: value for key, value in facts.items() if value is not None}),
        fields("Files", {path: size(amount) for path, amount in stage.files[:_MANY]}, len(stage.files) - _MANY),
        fields("Longer figures", {key: json.dumps(value)[:400] for key, value in lists.items()}),
    ]
    inside = element("div", {"class": "inside columns"}, *(table for table in tables if table))
    return element("details", None, summary, inside)


def _headline(stage: StageReport) -> str:
    """The one figure of a stage that a reader looks for."""
    names = {
        "final_loss": "training loss",
        "loss_after": "held-out loss",
        "fill": "rows filled",
        "kept": "documents kept",
    }
    for key, name in names.items():
        value = number(stage.values, key)
        if value is not None:
            return f"{name} {100 * value:.1f}%" if key == "fill" and value <= 1 else f"{name} {figure(value)}"
    return ""


def _provenance(data: ReportData) -> Html:
    versions: dict[str, dict[str, None]] = {}
    for stage in data.stages:
        for library, version in stage.versions.items():
            versions.setdefault(library, {})[str(version)] = None
    commits = dict.fromkeys(stage.commit[:12] for stage in data.stages if stage.commit)
    hosts = dict.fromkeys(stage.host for stage in data.stages if stage.host)
    facts = {
        "folder": data.place,
        "code": ", ".join(commits) or "commit unknown",
        "hosts": ", ".join(hosts) or "none yet",
        **{library: ", ".join(found) for library, found in sorted(versions.items())},
    }
    command = element("code", {"class": "command"}, data.command) if data.command else None
    table = fields("", facts)
    return section(
        "Where this comes from",
        "The same command, given again, reuses what is done and resumes what is not.",
        element("div", {"class": "card"}, command, element("div", {"class": "inside"}, table)),
        element("footer", None, "Written by Ringworld from the manifests in this folder. No script, no network."),
    )


# ---------------------------------------------------------------------- small parts


def _tokens(stage: StageReport) -> float:
    return stage.steps[-1]["tokens"] if stage.steps else number(stage.values, "tokens") or 0


def _of(part: int, whole: int, name: str) -> str:
    if part == whole:
        return f"every {name}" if whole > 1 else f"the {name}"
    return f"{part} of {whole} {name}s"
