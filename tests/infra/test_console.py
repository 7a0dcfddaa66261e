"""What people see: a plain log, a table that fits any terminal, and a plan."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from infra.advice import CLASSES, OFTEN
from infra.console import Console, duration, plain, print_plan, seconds_left
from infra.plan import plan
from infra.retries import Again, Failure, Stop
from infra.runner import run
from infra.stage import Result, StageContext
from infra.storage import Store
from tests.infra.tiny import Number, add, stage


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def training(context: StageContext, recipe: Number) -> Result:
    for step in range(1, 51):
        context.report(
            step=step, of=50, loss=5.0 - step / 50, tokens_per_second=12345.6, note="[red]\x1b[31mwarm[/red]"
        )
    return add(context, recipe)


def test_the_log_is_plain_lines_and_progress_is_sparse(tmp_path: Path):
    out = io.StringIO()
    graph = [stage("text-2k", source=stage("text-1k", 1, training))]
    with Console(out) as console:
        run(graph, Store(str(tmp_path), "tiny"), observer=console)
    text = out.getvalue()
    assert "\x1b" not in text
    lines = text.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d text-[12]k ", line) for line in lines)
    progress = [line for line in lines if "loss" in line]
    # The first, and where it ended; nothing of the 48 between, as they came within ten seconds.
    assert len(progress) == 2
    assert progress[0].endswith("text-1k step 1/50, loss 4.9800, 12,346 tokens/s, [red]warm[/red]")
    assert "text-1k step 50/50, loss 4.0000" in progress[1]
    assert sum("plan:" in line for line in lines) == 2
    assert "finished: 1 files" in lines[-1]


@pytest.mark.parametrize("width", [1, 5, 20, 80, 200])
def test_the_table_fits_any_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("LINES", "8")
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    graph = [stage("text-2k", source=stage("text-1k", 1, training))]
    with Console(out) as console:
        outcome = run(graph, Store(str(tmp_path), "tiny"), observer=console)
    assert outcome.ok
    if width >= 80:
        assert "text-1k" in out.getvalue()
        assert "finished" in out.getvalue()
        assert "\x1b[31mwarm" not in out.getvalue()


def test_a_final_failure_shows_the_end_of_its_log():
    out = io.StringIO()
    tail = "\n".join(f"line {number}" for number in range(100))
    Console(out).on_failure(stage("a"), Failure("crashed", "exit 1", None, tail), Stop("3 attempts"))
    assert "crashed: exit 1" in out.getvalue()
    assert "line 99" in out.getvalue()
    assert "line 79" not in out.getvalue()
    assert out.getvalue().splitlines()[-1].partition(" advice: ")[2] == CLASSES["crashed"]


def test_only_frequent_preemptions_are_worth_advice():
    out = io.StringIO()
    console = Console(out)
    for _ in range(OFTEN):
        console.on_failure(stage("a"), Failure("preempted", "asked to leave", 5), Again(1.0, "after checkpoint 5"))
    advice = [line for line in out.getvalue().splitlines() if "advice" in line]
    assert len(advice) == 1
    assert f"Preempted {OFTEN} times" in advice[0]


@pytest.mark.parametrize("file", [io.StringIO(), Terminal()])
def test_the_plan_lists_every_stage_with_action_and_reason(file: io.StringIO, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "160")
    print_plan(plan([stage("text-2k", source=stage("text-1k"))], {}), file)
    text = plain(file.getvalue())
    for word in ("text-1k", "text-2k", "number", "run", "wait", "nothing on storage yet", "for text-1k"):
        assert word in text
    assert file.isatty() or "\x1b" not in file.getvalue()


def test_control_sequences_do_not_reach_a_log():
    assert plain("a\x1b[1;31mb\x1b[0m\rc\x07\x1b]0;title\x07d\te\n") == "abcd\te\n"


def test_time_left_is_at_the_rate_since_the_first_report():
    assert seconds_left(step=60, of=100, first_step=50, elapsed=20) == 80
    assert seconds_left(step=50, of=100, first_step=50, elapsed=20) is None
    assert seconds_left(step=100, of=100, first_step=50, elapsed=20) == 0
    assert [duration(s) for s in (0.4, 42, 725, 12000, 792000)] == ["0:00", "0:42", "12:05", "3:20:00", "9d 4h"]
