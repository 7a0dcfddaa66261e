"""The report's table of what was planned and what came: seconds a step, model FLOP utilisation, memory, waiting."""

from __future__ import annotations

from infra.formats import size
from infra.markup import Html, element
from infra.report_data import ReportData, StageReport
from infra.report_parts import cell, number, section

_GROUPS = (("", 1), ("Seconds a step", 2), ("Model FLOP utilisation", 2), ("Memory of a device", 2), ("Data", 1))
_HEADINGS = ("planned", "run", "planned", "run", "planned", "run", "waited for")


def speed(data: ReportData) -> Html | None:
    """The section, or None while no training stage is done."""
    done = [stage for stage in data.of_kind("train") if number(stage.values, "seconds_per_step") is not None]
    if not done:
        return None
    groups = element("tr", {"class": "group"}, *(element("th", {"colspan": width}, name) for name, width in _GROUPS))
    names = (element("th", {"class": "n"}, heading) for heading in _HEADINGS)
    head = element("tr", None, element("th", None, "Stage"), *names)
    return section(
        "Planned and run",
        "The plan counts operations and bytes and assumes 70% of the peak rate for products, 50% for attention; the "
        "run's figures are medians over its steps. On processors the run's memory is that of the whole process.",
        element("div", {"class": "card scroll"}, element("table", None, groups, head, *map(_row, done))),
    )


def _row(stage: StageReport) -> Html:
    def shown(key: str, form: str) -> str:
        value = number(stage.values, key)
        return "-" if value is None else size(value) if form == "bytes" else format(value, form)

    columns = (
        ("planned_seconds_per_step", ".3g"),
        ("seconds_per_step", ".3g"),
        ("planned_mfu", ".0%"),
        ("mfu", ".0%"),
        ("planned_bytes", "bytes"),
        ("peak_bytes", "bytes"),
        ("data_wait", ".1%"),
    )
    return element("tr", None, element("td", None, stage.name), *(cell(shown(key, form)) for key, form in columns))
