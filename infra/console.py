"""What a person sees of a run: a live table on a terminal, one plain line per event in a log.

    with Console() as console:
        run(stages, store, observer=console)

The log has no control characters and no table; progress appears in it at most every `every` seconds per stage.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TextIO

import rich.box
import rich.console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from infra.advice import OFTEN, advise
from infra.manifest import Manifest
from infra.observer import State
from infra.plan import Plan
from infra.retries import Decision, Failure, Stop
from infra.stage import Stage

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f]")
_STYLES: Mapping[str, str] = {
    "reused": "dim",
    "running": "bold cyan",
    "retrying": "yellow",
    "finished": "green",
    "failed": "bold red",
    "stopped": "yellow",
    "blocked": "red",
    "reuse": "dim",
    "resume": "cyan",
    "run": "bold cyan",
    "drift": "bold red",
}
_TAIL_LINES = 20


@dataclass
class _Row:
    """What is shown of one stage. first: (step, monotonic seconds) of this attempt's first report. preempted: times."""

    state: str
    detail: str
    figures: dict[str, Any] = field(default_factory=dict)
    first: tuple[float, float] | None = None
    logged: float = 0.0
    preempted: int = 0


class Console:
    """An Observer for people. file: where to write; a terminal gets the table, anything else the log."""

    def __init__(self, file: TextIO | None = None, every: float = 10.0) -> None:
        self._file = file if file is not None else sys.stdout
        self._every = every
        self._rows: dict[str, _Row] = {}
        self._live: Live | None = None

    def __enter__(self) -> Console:
        if self._file.isatty():
            screen = rich.console.Console(file=self._file)
            self._live = Live(get_renderable=self._table, console=screen, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def on_plan(self, plan: Plan) -> None:
        self._rows = {step.stage.name: _Row(step.action, step.reason) for step in plan.steps}
        if self._live is None:
            for step in plan.steps:
                self._log(step.stage.name, f"plan: {step.action}: {step.reason}")

    def on_state(self, stage: Stage, state: State, detail: str) -> None:
        row = self._rows.setdefault(stage.name, _Row(state, detail))
        row.state, row.detail, row.first = state, detail, None
        # The plan has said these already.
        if self._live is None and state not in ("waiting", "reused"):
            self._log(stage.name, f"{state}: {detail}")

    def on_report(self, stage: Stage, figures: Mapping[str, Any]) -> None:
        row = self._rows.setdefault(stage.name, _Row("running", ""))
        row.figures.update(figures)
        now = time.monotonic()
        if row.first is None and _number(row.figures.get("step")) is not None:
            row.first = (float(row.figures["step"]), now)
        if self._live is None and (row.logged == 0.0 or now - row.logged >= self._every):
            row.logged = now
            self._log(stage.name, _progress(row, now))

    def on_finished(self, stage: Stage, manifest: Manifest) -> None:
        row = self._rows.get(stage.name)
        if row is None:
            return
        row.figures.pop("note", None)
        if row.figures and self._live is None:
            # A quick stage may have been between two lines of the log all its life.
            self._log(stage.name, _progress(row, time.monotonic()))

    def on_failure(self, stage: Stage, failure: Failure, decision: Decision) -> None:
        row = self._rows.setdefault(stage.name, _Row("failed", ""))
        row.preempted += failure.kind == "preempted"
        lines = [f"{failure.kind}: {failure.message}"]
        if isinstance(decision, Stop) and failure.log_tail:
            lines += [f"    {line}" for line in failure.log_tail.rstrip().splitlines()[-_TAIL_LINES:]]
        if isinstance(decision, Stop) or failure.kind != "preempted" or row.preempted == OFTEN:
            lines.append(f"advice: {advise(failure.kind, failure.message, failure.log_tail, row.preempted)}")
        for line in lines:
            self._log(stage.name, line)

    def _log(self, name: str, text: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} {name} {plain(text)}"
        if self._live is not None:
            self._live.console.print(Text(line))
        else:
            print(line, file=self._file, flush=True)

    def _table(self) -> Table:
        table = Table(expand=False)
        # Names and states are what a table cannot do without; on a terminal too narrow even for them, all shrink alike.
        roomy = self._live is not None and self._live.console.width >= 60
        names = max((len(name) for name in self._rows), default=0) if roomy else None
        table.add_column("stage", no_wrap=True, overflow="ellipsis", min_width=names)
        table.add_column("state", no_wrap=True, overflow="ellipsis", min_width=8 if roomy else None)
        table.add_column("step", justify="right", no_wrap=True, overflow="ellipsis")
        table.add_column("", width=12, no_wrap=True)
        for heading in ("loss", "tokens/s", "left"):
            table.add_column(heading, justify="right", no_wrap=True, overflow="ellipsis")
        table.add_column("note", no_wrap=True, overflow="ellipsis", ratio=1)
        now = time.monotonic()
        for name, row in list(self._rows.items()):
            step, of = _number(row.figures.get("step")), _number(row.figures.get("of"))
            bar = ProgressBar(total=of, completed=min(step, of), width=12) if step is not None and of else ""
            table.add_row(
                Text(name),
                Text(row.state, style=_STYLES.get(row.state, "")),
                Text(_steps(row)),
                bar,
                Text(_figure(row.figures.get("loss"), ".4f")),
                Text(_figure(row.figures.get("tokens_per_second"), ",.0f")),
                Text(_left(row, now)),
                Text(plain(str(row.figures.get("note") or row.detail)).replace("\n", " ")),
            )
        return table


def print_plan(plan: Plan, file: TextIO | None = None) -> None:
    """The plan as a table (`dry_run=true`): stage, kind, inputs, what would be done and why, identity."""
    out = file if file is not None else sys.stdout
    headings = ("stage", "kind", "inputs", "action", "identity", "why")
    rows = [
        (
            step.stage.name,
            step.stage.recipe.kind,
            " ".join(dict.fromkeys(parent.name for parent in step.stage.inputs.values())) or "-",
            step.action,
            step.stage.fingerprint[:12],
            plain(step.reason),
        )
        for step in plan.steps
    ]
    print_table(headings, rows, out, lambda row: ("action", _STYLES.get(row[3], "")))


def print_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    out: TextIO,
    style: Callable[[Sequence[str]], tuple[str, str]] | None = None,
    right: Collection[str] = (),
) -> None:
    """A table on a terminal, aligned columns in a log. style: of a row, the heading whose cell stands out, and how;
    right: headings of columns of figures."""
    if out.isatty():
        table = Table(box=rich.box.SIMPLE_HEAD)
        for heading in headings:
            table.add_column(heading, justify="right" if heading in right else "left")
        for row in rows:
            cells = [Text(cell) for cell in row]
            if style is not None:
                heading, how = style(row)
                cells[list(headings).index(heading)].stylize(how)
            table.add_row(*cells)
        rich.console.Console(file=out).print(table)
        return
    widths = [max(len(row[column]) for row in [headings, *rows]) for column in range(len(headings))]
    for row in [headings, *rows]:
        cells = (
            cell.rjust(width) if heading in right else cell.ljust(width)
            for cell, width, heading in zip(row, widths, headings, strict=True)
        )
        print("  ".join(cells).rstrip(), file=out)


def state_style(state: str) -> str:
    """The colour of a state's or an action's word on a terminal."""
    return _STYLES.get(state, "")


def plain(text: str) -> str:
    """Text without terminal control sequences; tabs and line ends stay."""
    return _CONTROL.sub("", text)


def seconds_left(step: float, of: float, first_step: float, elapsed: float) -> float | None:
    """Seconds to go at the rate since an attempt's first report; None while there is no rate."""
    if step <= first_step or elapsed <= 0:
        return None
    return max(0.0, of - step) * elapsed / (step - first_step)


def duration(seconds: float) -> str:
    """0:42, 12:05, 3:20:00, 9d 4h."""
    whole = round(seconds)
    if whole >= 86400:
        return f"{whole // 86400}d {whole % 86400 // 3600}h"
    minutes, hours = whole // 60 % 60, whole // 3600
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def _progress(row: _Row, now: float) -> str:
    parts = []
    if steps := _steps(row):
        parts.append(f"step {steps}")
    if loss := _figure(row.figures.get("loss"), ".4f"):
        parts.append(f"loss {loss}")
    if speed := _figure(row.figures.get("tokens_per_second"), ",.0f"):
        parts.append(f"{speed} tokens/s")
    if left := _left(row, now):
        parts.append(f"{left} left")
    if note := row.figures.get("note"):
        parts.append(str(note))
    return ", ".join(parts) or "at work"


def _steps(row: _Row) -> str:
    step, of = row.figures.get("step"), row.figures.get("of")
    if step is None:
        return ""
    return f"{step}/{of}" if of is not None else str(step)


def _left(row: _Row, now: float) -> str:
    step, of = _number(row.figures.get("step")), _number(row.figures.get("of"))
    if row.state != "running" or row.first is None or step is None or of is None:
        return ""
    left = seconds_left(step, of, row.first[0], now - row.first[1])
    return "" if left is None else duration(left)


def _figure(value: Any, form: str) -> str:
    number = _number(value)
    return "" if number is None else format(number, form)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
