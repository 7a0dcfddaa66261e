"""The report says how full rows are, what was drawn of what was asked, and how even the ranks are."""

from __future__ import annotations

from typing import Any

from bs4 import BeautifulSoup

from infra.report_data import ReportData, StageReport
from infra.report_packing import packing


def stage(name: str, kind: str, values: dict[str, Any], inputs: dict[str, str] | None = None) -> StageReport:
    known = name, kind, "done", inputs or {}, {"sequence": 512}, values
    return StageReport(*known, (), (), (), "", 1, 1, 1.0, None, None, None, None, {})


def shown(*stages: StageReport) -> list[str]:
    found = packing(ReportData("tiny", "", "", stages))
    soup = BeautifulSoup(str(found), "lxml")
    return [" | ".join(cell.get_text() for cell in row.find_all(["td", "th"])) for row in soup.find_all("tr")]


PLAN = {
    "rows": 1200,
    "fill": 0.9931,
    "documents": 50,
    "documents_cut": 7,
    "row_lengths": {"256": 1000, "512": 200},
    "mixture": [
        {"name": "books", "tokens": 400_000, "asked": 0.7, "share": 0.6, "epochs": 4.0},
        {"name": "<b>web</b>", "tokens": 90_000, "asked": 0.3, "share": 0.4, "epochs": 1.5},
    ],
}
TRAINED = {
    "data_wait": 0.0042,
    "drawn": [
        {"name": "books in rows of 256", "share": 0.2},
        {"name": "books in rows of 512", "share": 0.41},
        {"name": "<b>web</b>", "share": 0.39},
    ],
    "shapes": [
        {
            "mesh": "data=1,fsdp=8,ring=1",
            "rows": 16,
            "sequence": 256,
            "steps": 30,
            "imbalance": 0.01,
            "imbalance_worst": 0.09,
        }
    ],
}


def test_plans_parts_and_shapes_are_shown() -> None:
    rows = shown(stage("pack-a", "pack", PLAN), stage("a", "train", TRAINED, {"plan": "pack-a"}))
    assert "pack-a | 256, 512 | 1,200 | 50 | 7 | 0.69% | 0.42%" in rows
    assert "pack-a | books | 400K | 70.0% | 60.0% | 61.0% | 4.00" in rows
    assert "pack-a | <b>web</b> | 90K | 30.0% | 40.0% | 39.0% | 1.50" in rows
    assert "a | 16 x 256 | fsdp=8 | 30 | 1.0% | 9.0%" in rows


def test_a_plan_of_one_part_without_training_is_shown_alone() -> None:
    rows = shown(stage("pack-a", "pack", {"rows": 3, "fill": 1.0, "mixture": PLAN["mixture"][:1]}))
    assert rows[1:] == ["pack-a | 512 | 3 | — | — | 0.00% | —"]
    assert packing(ReportData("tiny", "", "", ())) is None


def test_rows_with_things_to_look_up_are_shown_as_text_and_never_as_markup():
    short = stage("recall-text-64", "recall", {"samples": [{"corpus": "copy", "text": "a b a b"}]})
    samples = [{"corpus": "needle", "text": "<script>Oslo: 17"}, {"corpus": "passage", "text": "so so"}]
    long = stage("recall-text-512", "recall", {"samples": samples})
    plan = stage("pack-text-512", "pack-whole", PLAN, {"tokens": "recall-text-512"})
    page = str(packing(ReportData("tiny", "", "", (short, long, plan))))
    assert "&lt;script&gt;Oslo: 17" in page
    assert "so so" in page
    assert "a b a b" not in page
