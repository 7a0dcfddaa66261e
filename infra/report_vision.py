"""The report's section on pictures and videos: what there was to see, what codes make of it, and what a model makes of
codes.

Figures by their meaning, each shown only where it is; captions and names are data and are escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infra.formats import MISSING, duration
from infra.markup import Html, element
from infra.report_chat import transcripts
from infra.report_data import ReportData, StageReport
from infra.report_figures import short
from infra.report_parts import (
    amounts,
    card,
    cell,
    entries,
    fall,
    fields,
    inner,
    named,
    number,
    pictures,
    section,
    share,
    table,
    text_at,
    tiles,
    whole,
)

# The pictures of this section, in order: file, what it shows.
_OF_CLIPS = {
    "contact.png": "Some of the clips",
    "reconstructions.png": "Held-out pictures, and what is left of them in codes",
    "vqgan.png": "The VQGAN's training",
}
_OF_MODELS = {
    "video_needle.png": "Marked frames found, by frames of the video and depth",
    "samples.png": "Held-out captions, as they are and as the model draws them",
}


def vision(data: ReportData) -> Html | None:
    """The section, or None for a run without pictures."""
    judged = [(stage, found) for stage in data.of_kind("evaluate") if (found := inner(stage.values, "vision"))]
    parts = [
        _clips(data),
        *pictures(data.stages, _OF_CLIPS),
        _left_out(data),
        _examples(data),
        _learned(judged),
        _needles(judged),
        *pictures(data.stages, _OF_MODELS),
        *(transcripts(stage, found) for stage, found in judged),
        _unmeasured(judged),
    ]
    shown = [part for part in parts if part]
    if not shown:
        return None
    return section(
        "Pictures and videos",
        "A picture is a grid of codes, a video one grid after another. What the codes keep of held-out pictures, what "
        "the model was shown, and how well it foretells the codes and captions of clips that it was not.",
        *shown,
    )


def _clips(data: ReportData) -> Html | None:
    facts: list[tuple[str | None, str]] = []
    for stage in data.of_kind("media"):
        kinds = amounts(stage.values.get("kinds"))
        facts += [(f"{kinds[kind]:,.0f}", f"{kind}s kept") for kind in ("image", "video") if kind in kinds]
    for stage in data.of_kind("codes"):
        frames, codes = number(stage.values, "frames"), number(stage.values, "codes")
        facts.append((None if frames is None else short(frames), "frames encoded"))
        facts.append((None if codes is None else short(codes), "codes"))
    for stage in data.of_kind("vqgan"):
        psnr, used = number(stage.values, "psnr"), whole(stage.values, "used")
        facts.append((None if psnr is None else f"{psnr:.1f} dB", "PSNR of held-out pictures from their codes"))
        facts.append((used, f"codes in use, of {whole(stage.values, 'codebook') or MISSING}"))
    return tiles(*facts)


def _left_out(data: ReportData) -> Html | None:
    """Why clips were left out, and of which licences those that stayed are."""
    found = []
    for stage in data.of_kind("media"):
        for key, title in (("reasons", "Clips left out, and why"), ("licenses", "Licences of those kept")):
            counted = amounts(stage.values.get(key))
            found.append(fields(title, {name: f"{count:,.0f}" for name, count in counted.items()}))
    for stage in data.of_kind("codes"):
        counted = amounts(stage.values.get("reasons"))
        found.append(fields("Refused while encoding", {name: f"{count:,.0f}" for name, count in counted.items()}))
        seconds = inner(stage.values, "seconds") or {}
        times = {name: amount for name, amount in amounts(seconds).items() if amount >= 0.05}
        found.append(fields("Where encoding spent its time", {name: duration(t) for name, t in times.items()}))
    shown = [part for part in found if part]
    return element("div", {"class": "card"}, element("div", {"class": "columns"}, *shown)) if shown else None


def _examples(data: ReportData) -> Html | None:
    """What the examples of each stage are, and one of each corpus to read, from the first stage that has it."""
    rows, read = [], []
    corpora: set[str] = set()
    for stage in data.of_kind("vision-examples"):
        for name, found in named(stage.values.get("corpora")):
            tokens, seen = number(found, "tokens"), number(found, "seen")
            share = MISSING if not tokens or seen is None else f"{seen / tokens:.0%}"
            how = ", ".join(f"{count:.0f} {word}" for word, count in amounts(found.get("how")).items())
            counts = (whole(found, key) or MISSING for key in ("examples", "frames", "tokens"))
            rows.append((stage.name, name, how, *counts, share, whole(found, "shortened") or MISSING))
        for sample in entries(stage.values, "samples"):
            corpus = text_at(sample, "corpus")
            if corpus not in corpora:
                corpora.add(corpus)
                read.append((f"{stage.name}, {corpus}", text_at(sample, "text")))
    names = ("Stage", "Corpus", "Made as", "Examples", "Frames", "Tokens", "vision ids", "shortened")
    shown = [table("Examples", names, rows, texts=3), table("One of each", ("Stage, corpus", "Example"), read, texts=2)]
    return element("div", None, *(part for part in shown if part)) if rows else None


def _learned(judged: Sequence[tuple[StageReport, Mapping[str, Any]]]) -> Html | None:
    """A row for each corpus of each evaluation: the loss of what is read and of what is seen."""
    rows = [
        element(
            "tr",
            None,
            element("td", None, stage.name),
            element("td", None, name),
            cell(whole(found, "examples") or MISSING),
            *fall(inner(found, "text") or {}, "before", "after"),
            *fall(inner(found, "vision") or {}, "before", "after"),
            cell(whole(found, "asked") or MISSING),
            cell(share(found, "exact")),
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
        element("th", {"colspan": 3}, "Loss of text"),
        element("th", {"colspan": 3}, "Loss of vision ids"),
        element("th", {"colspan": 2}, "Asked"),
    )
    names = ("held out", *("before", "after", "change") * 2, "questions", "exact")
    head = element(
        "tr",
        None,
        element("th", None, "Stage"),
        element("th", None, "Corpus"),
        *(element("th", {"class": "n"}, name) for name in names),
    )
    return element("div", {"class": "card scroll"}, element("table", None, groups, head, *rows))


def _needles(judged: Sequence[tuple[StageReport, Mapping[str, Any]]]) -> Html | None:
    rows = []
    for stage, measured in judged:
        found = inner(measured, "needle")
        if found:
            rows.append((stage.name, *(share(found, key) for key in ("exact", "ranked", "chance", "told_apart"))))
    names = ("Stage", "Said whole", "Likeliest of the colours", "by chance", "Frames whose codes differ")
    return table("The colour of a marked frame in a video", names, rows)


def _unmeasured(judged: Sequence[tuple[StageReport, Mapping[str, Any]]]) -> Html | None:
    """What was not measured, and why."""
    facts: dict[str, str] = {}
    for stage, measured in judged:
        for key, what in (("not_asked", "nothing was asked"), ("not_drawn", "nothing was drawn")):
            if reason := text_at(measured, key):
                facts[f"{stage.name}: {what}"] = reason
        for name, why in (inner(measured, "refused") or {}).items():
            facts[f"{stage.name}: nothing of {name}"] = str(why)
        needle = inner(measured, "needle") or {}
        for frames, why in (inner(needle, "refused") or {}).items():
            facts[f"{stage.name}: no marked frame among {frames}"] = str(why)
    return card("Not measured", fields("", facts)) if facts else None
