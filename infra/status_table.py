"""The status of a run as a person reads it: who drives it, a row for each stage, where the time went, what failed."""

from __future__ import annotations

from typing import TextIO

from infra.console import plain, print_table, state_style
from infra.formats import MISSING, duration
from infra.goodput import CAUSES, Goodput
from infra.records import Failed
from infra.status import DriverStatus, RunStatus, StageStatus

_HEADINGS = ("stage", "state", "step", "tokens/s", "loss", "checkpoint", "attempts", "goodput", "left", "note")
_RIGHT = ("step", "tokens/s", "loss", "attempts", "goodput", "left")


def print_status(status: RunStatus, out: TextIO, failures: bool = False) -> None:
    """failures: the log tail of each, too."""
    print(f"run {status.run} (curriculum {status.curriculum}) in {status.place}", file=out)
    print(driver_line(status.driver), file=out)
    print(file=out)
    rows = [_row(stage) for stage in status.stages]
    print_table(_HEADINGS, rows, out, lambda row: ("state", state_style(row[1])), _RIGHT)
    print(file=out)
    for line in (*goodput_lines(status.goodput), left_line(status)):
        print(line, file=out)
    failed = [(stage, failure) for stage in status.stages for failure in stage.failures]
    if not failures:
        shown = [(stage, stage.failures[-1]) for stage in status.stages if stage.state == "failed" and stage.failures]
        for stage, failure in shown:
            print(f"\n{_title(stage, failure)}\n    {failure.advice}", file=out)
        if failed:
            print(f"\n{_count(len(failed), 'failure')}; failures=true shows what their logs say", file=out)
        return
    if not failed:
        print("\nno failures", file=out)
    for stage, failure in failed:
        print(f"\n{_title(stage, failure)}\n    {failure.advice}", file=out)
        for line in failure.tail.splitlines():
            print(f"    | {plain(line)}".rstrip(), file=out)


def driver_line(driver: DriverStatus | None) -> str:
    if driver is None:
        return "driver: none has taken the run"
    if driver.alive:
        return f"driver: process {driver.pid} on {driver.host}; lease renewed {duration(max(0.0, driver.age))} ago"
    if driver.released:
        return f"driver: none; the last one ({driver.host}) left at least {duration(max(0.0, driver.age))} ago"
    return (
        f"driver: gone (process {driver.pid} on {driver.host}, last heard {duration(driver.age)} ago); "
        "the same command goes on"
    )


def goodput_lines(goodput: Goodput) -> list[str]:
    """What became of the wall time of the training stages, largest loss first."""
    if goodput.share is None:
        return ["goodput: nothing has trained yet"]
    losses = sorted(((seconds, cause) for cause, seconds in goodput.lost.items() if seconds > 0), reverse=True)
    parts = [
        f"{CAUSES[cause]} {seconds / goodput.wall:.1%}" for seconds, cause in losses if seconds >= 5e-4 * goodput.wall
    ]
    lines = [f"goodput: {goodput.share:.1%} of {duration(goodput.wall)} in training stages"]
    return [*lines, f"    lost to {', '.join(parts)}"] if parts else lines


def left_line(status: RunStatus) -> str:
    training = [stage for stage in status.stages if stage.steps is not None]
    unknown = sum(stage.seconds_left is None for stage in training)
    seconds = sum(stage.seconds_left or 0.0 for stage in training)
    if not training:
        return "left: no stage of this run trains"
    if not seconds and not unknown:
        open_stages = sum(stage.state != "finished" for stage in status.stages)
        return f"left: no training; {_count(open_stages, 'other stage')}" if open_stages else "left: nothing"
    if unknown:
        known = f"{duration(seconds)} of training, and " if seconds else ""
        return f"left: {known}{_count(unknown, 'stage')} whose speed nobody knows yet"
    return f"left: {duration(seconds)} of training at the speed seen, one stage after another"


def _row(stage: StageStatus) -> tuple[str, ...]:
    share = stage.goodput.share if stage.goodput else None
    at_work = stage.state in ("running", "retrying", "stopped", "failed")
    return (
        stage.name,
        stage.state,
        "" if stage.steps is None else f"{stage.step or 0:,}/{stage.steps:,}",
        "" if stage.tokens_per_second is None else f"{stage.tokens_per_second:,.0f}",
        "" if stage.loss is None else f"{stage.loss:.4f}",
        _checkpoint(stage) if at_work and stage.steps is not None else "",
        str(stage.attempts or ""),
        "" if share is None else f"{share:.1%}",
        _left(stage),
        plain(stage.detail).replace("\n", " "),
    )


def _checkpoint(stage: StageStatus) -> str:
    if stage.checkpoint is None:
        return "none yet"
    return f"{stage.checkpoint:,}" + ("" if stage.checkpoint_age is None else f", {duration(stage.checkpoint_age)} ago")


def _left(stage: StageStatus) -> str:
    if stage.state == "finished":
        return f"took {duration(stage.seconds)}" if stage.seconds is not None else ""
    if stage.steps is None:
        return ""
    return MISSING if stage.seconds_left is None else duration(stage.seconds_left)


def _title(stage: StageStatus, failure: Failed) -> str:
    return f"{stage.name}, attempt {failure.attempt}: {failure.kind}: {plain(failure.message)}"


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"
