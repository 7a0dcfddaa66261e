"""The summary over stages: what was learned, used and forgotten, in a row of each stage; why where nothing was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bs4 import BeautifulSoup

from infra.report_data import ReportData, StageReport
from infra.report_proof import proof

HOSTILE = "<script>alert(1)</script>"
FULL: dict[str, Any] = {
    "sequence": 1024,
    "past": 512,
    "theta": 40_000.0,
    "loss_before": 5.0,
    "loss_after": 4.5,
    "loss_past_before": 5.25,
    "loss_past_after": 4.375,
    "context_gain": 0.125,
    "loss_given_context": {"contexts": [64, 128, 896], "before": [5.0, 5.1, 5.2], "after": [4.5, 4.4, 4.375]},
    "short_loss_before": 4.75,
    "short_loss_after": 4.875,
    "needle_exact": 0.25,
    "needle_digits": 0.5,
    "tasks_mean": 37.5,
    "effective_length": 512,
    "tasks": {
        "tasks": {"passkey": {"512": 100.0, "1024": 50.0}, "kv": {"512": 0.0, "1024": None}},
        "mean": {"512": 50.0, "1024": 50.0},
        "not_asked": "",
        "refused": {"kv-1024-0.5000": "takes 2000 tokens at the least"},
    },
}


def stage(name: str, values: Mapping[str, Any], recipe: Mapping[str, Any] | None = None) -> StageReport:
    unknown = dict.fromkeys(("series", "attempts", "seconds", "started", "finished", "host", "commit"))
    return StageReport(
        f"evaluate-{name}", "evaluate", "done", {"after": name}, recipe or {}, values, (), (), (), "0" * 64,
        versions={}, **unknown,  # type: ignore[arg-type]
    )  # fmt: skip


def shown(*stages: StageReport) -> Any:
    return BeautifulSoup(str(proof(ReportData("r", "p", "2026-11-20T10:00:00+00:00", stages)) or ""), "html.parser")


def rows(table: Any) -> list[list[str]]:
    return [[cell.text for cell in row.find_all("td")] for row in table.find_all("tr") if row.find("td")]


def test_a_stage_is_a_row_with_every_figure_and_its_colour():
    page = shown(stage("1k", FULL))
    first, tasks = page.find_all("table")[:2]
    assert rows(first) == [
        ["1k", "1K", "4e+04", "5.000 → 4.500", "512", "5.250 → 4.375", "0.125", "4.750 → 4.875",
         "25%", "50%", "38%", "512"],
    ]  # fmt: skip
    assert [cell.text for cell in first.select(".bad")] == ["4.750 → 4.875"]
    assert len(first.select(".good")) == 3
    assert rows(tasks) == [
        ["1k", "512", "100%", "0%", "50%"],
        ["1k", "1K", "50%", "—", "50%"],
    ]
    heads = [sum(int(cell.get("colspan", 1)) for cell in row.find_all("th")) for row in first.find_all("tr")[:2]]
    assert heads == [12, 12]


def test_curves_fall_where_losses_do():
    [line] = shown(stage("1k", FULL), stage("2k", {"loss_after": 1.0})).select("polyline")
    points = [tuple(map(float, point.split(","))) for point in line["points"].split()]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert [y for _, y in points] == sorted(y for _, y in points)
    # A doubling is as wide everywhere: 64 to 128 is a part of 64 to 896 as log 2 is of log 14.
    assert abs((points[1][0] - points[0][0]) / (points[2][0] - points[0][0]) - 0.2627) < 0.001


def test_what_was_not_measured_is_a_dash_and_a_reason():
    old = stage("512", {"loss_after": 3.0}, {"sequence": 512, "model": {"rope": {"theta": 1e4}}})
    short = {"context_refused": f"no document {HOSTILE}", "tasks": {"not_asked": "ran in 2", "tasks": {}, "mean": {}}}
    page = shown(old, stage("1k", short))
    assert rows(page.find("table"))[0] == ["512", "512", "1e+04", "— → 3.000", *["—"] * 8]
    assert "1k: no loss after more context" in page.text
    assert "1k: no tasks" in page.text
    assert "<script" not in str(page)
    assert not page.select("svg")


def test_a_run_without_evaluations_and_figures_of_other_kinds_are_borne():
    assert proof(ReportData("r", "p", "2026-11-20T10:00:00+00:00", ())) is None
    odd = {"loss_given_context": {"contexts": [0, "x"], "after": 3}, "tasks": {"mean": {"many": 1.0}, "tasks": []}}
    page = shown(stage("1k", odd), stage("2k", {"theta": "x", "effective_length": 0}))
    assert rows(page.find("table"))[1][-1] == "none"
