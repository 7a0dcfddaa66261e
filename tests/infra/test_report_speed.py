"""The report lays what was planned beside what came, and shows nothing before a training stage is done."""

from __future__ import annotations

from typing import Any

from bs4 import BeautifulSoup

from infra.report_data import ReportData, StageReport
from infra.report_speed import speed


def stage(values: dict[str, Any]) -> StageReport:
    known = "text-<1k>", "train", "done", {}, {}, values
    return StageReport(*known, (), (), (), "", 1, 1, 1.0, None, None, None, None, {})


def test_plan_and_run_stand_side_by_side() -> None:
    values = {
        "planned_seconds_per_step": 0.25,
        "seconds_per_step": 0.5,
        "planned_mfu": 0.61,
        "mfu": 0.305,
        "planned_bytes": float(1 << 30),
        "peak_bytes": float(3 << 30),
        "data_wait": 0.004,
    }
    cells = BeautifulSoup(str(speed(ReportData("tiny", "", "", (stage(values),)))), "lxml").find_all("td")
    assert [cell.get_text() for cell in cells] == [
        "text-<1k>", "0.25", "0.5", "61%", "30%", "1.07 GB", "3.22 GB", "0.4%"
    ]  # fmt: skip


def test_devices_of_an_unknown_kind_have_no_planned_time() -> None:
    values = {"planned_seconds_per_step": None, "seconds_per_step": 0.5, "planned_mfu": None, "mfu": 0.0}
    cells = BeautifulSoup(str(speed(ReportData("tiny", "", "", (stage(values),)))), "lxml").find_all("td")
    assert [cell.get_text() for cell in cells][1:5] == ["-", "0.5", "-", "0%"]


def test_without_a_finished_training_stage_there_is_no_section() -> None:
    assert speed(ReportData("tiny", "", "", (stage({"steps": 5}),))) is None
