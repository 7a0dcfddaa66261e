"""The page says where each stage's time went, with waits told apart from work, and shows all failures in one place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup, Tag

from infra.goodput import CAUSES, Goodput
from infra.report import write_report
from infra.report_data import ReportData, StageReport
from infra.report_goodput import failures, goodput
from infra.storage import Store
from tests.infra.run_on_disk import TrainRecipe, finish, make_stage, put, write_steps

FINISHED = 1795168842.0  # what `finish` writes


def stage(name: str, found: Goodput | None) -> StageReport:
    known = name, "train", "done", {}, {}, {}
    return StageReport(*known, (), (), (), "", 1, 1, 100.0, None, None, None, None, {}, waited=30.0, goodput=found)


def one(inside: Tag, selector: str) -> Tag:
    found = inside.select_one(selector)
    assert found is not None, selector
    return found


def lost(**seconds: float) -> dict[str, float]:
    return {cause: seconds.get(cause, 0.0) for cause in CAUSES}


def test_a_bar_for_each_stage_and_one_for_all():
    rows = (stage("a", Goodput(60, lost(waiting=30, saves=10))), stage("b", Goodput(100, lost())), stage("c", None))
    soup = BeautifulSoup(str(goodput(ReportData("run", "", "", rows))), "lxml")
    bars = {one(row, ".bar-name").text: row for row in soup.select(".stack-row")}
    assert {name: one(row, ".bar-figure").text for name, row in bars.items()} == {
        "a": "60.0%", "b": "100.0%", "all training": "80.0%"
    }  # fmt: skip
    widths = [piece["style"] for piece in bars["a"].select("i")]
    assert widths == ["width:60.00%", "width:30.00%", "width:10.00%"]
    assert [cell.text for cell in soup.select("tr")[1].select("td")] == [
        "a",
        "1 min 40 s",
        "1 min 00 s",
        "30 s",
        "10 s",
        "0",
    ]
    assert [cell.text for cell in soup.select("tr")[2].select("td")][3:5] == ["—", "—"]
    assert "steps trained again" not in soup.text
    assert goodput(ReportData("run", "", "", (stage("c", None),))) is None


def test_work_is_shown_without_the_wait_for_machines(tmp_path: Path):
    store = Store(str(tmp_path), "tiny")
    text = make_stage("text-1k", TrainRecipe(sequence=1024, rope_theta=1e4))
    write_steps(store, text, 10)
    gangs: list[dict[str, Any]] = [
        {"asked": FINISHED - 90, "granted": FINISHED - 70, "ended": FINISHED - 60, "kind": "crashed", "attempt": 1},
        {"asked": FINISHED - 50, "granted": FINISHED - 25, "ended": FINISHED - 1, "kind": "done", "attempt": 2},
    ]
    for number, gang in enumerate(gangs, start=1):
        put(store, f"text-1k/state/1/gangs/{number:04d}.json", json.dumps(gang).encode())
    store.claim_attempt("text-1k", {"series": 1, "started": FINISHED - 91, "token": 1})
    tail = "<b>step 7</b> hf_token=hf_abcdefghijklmnopqrstuv"
    error = f"crashed: rank 0 was killed by signal 9 (SIGKILL)\n\nTraceback\n{tail}\n"
    put(store, "text-1k/attempt-1/error.txt", error.encode())
    finish(store, text, {"loss": 2.0}, seconds=45.0)
    write_report(store, [text], {})
    html = Path(store.url("report.html")).read_text()
    soup = BeautifulSoup(html, "lxml")
    assert "20 s" in one(soup, "svg.graph").text  # 45 less the 25 of its own attempt
    tiles = {one(tile, "span").text: one(tile, "b").text for tile in soup.select(".tile")}
    assert tiles["of work in all stages together; 25 s more of waiting for machines"] == "20 s"
    failed = one(soup, "details:has(.failure)")
    assert "attempt 1" in failed.text
    assert "kernel log" in failed.text
    assert "<b>step 7</b>" in one(failed, "pre").text
    assert "hf_abcdefghijkl" not in html


def test_a_run_without_failures_has_no_section_of_them():
    assert failures(ReportData("run", "", "", (stage("a", None),))) is None
