"""The command line: who owns which word, and what is refused before any work."""

import pytest

from flows import full_curriculum
from flows.arguments import SUBMITTED, parse
from infra.errors import UserError
from ringworld import errors
from stages.graph import build


def test_every_word_reaches_its_owner():
    words = (
        "curriculum=tiny placement=local run=2026 root=/r hosts=2 dry_run=true only=text-1k force=a,b "
        "placement.mesh.ring=2 stages.text-1k.steps=7"
    )
    flow = parse(words.split())
    assert (flow.arguments.run_name, flow.arguments.root, flow.arguments.dry_run) == ("2026", "/r", True)
    assert (flow.arguments.only, flow.arguments.force) == ("text-1k", "a,b")
    assert (flow.site.hosts, flow.site.mesh) == (2, "data=1,fsdp=1,tensor=1,ulysses=1,ring=2")
    assert flow.curriculum.stages["text-1k"].steps == 7


def test_a_run_is_named_after_its_curriculum():
    assert parse([]).arguments.run_name == "tiny"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["only"], "KEY=VALUE"),
        (["hosts=two"], "argument.hosts"),
        (["hosts=0"], "hosts=0"),
        (["curriculum=tiny2"], "did you mean tiny"),
        (["placement.mesh.ring=1.5"], "ring"),
        (["placement.mesh.ring=3"], "placement of text-64: mesh .* does not fit 1 devices"),
        (["stepz=3"], "curriculum.stepz: unknown key"),
    ],
)
def test_a_command_line_that_cannot_work_is_refused(words, said):
    def plan():
        flow = parse(words)
        return build(flow.curriculum, flow.site)

    with pytest.raises((UserError, errors.UserError), match=said):
        plan()


def test_a_submitted_job_needs_a_root_that_outlives_it(monkeypatch):
    monkeypatch.setenv(SUBMITTED, "{}")
    with pytest.raises(UserError, match="temporary copy"):
        parse([])
    parse(["root=/shared/runs"])
    parse(["root=gs://bucket/runs"])


@pytest.mark.parametrize("curriculum", ["tiny", "lwm_7b"])
def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, capsys, curriculum):
    assert full_curriculum.main([f"curriculum={curriculum}", f"root={tmp_path}/runs", "dry_run=true"]) == 0
    printed = capsys.readouterr().out
    assert "evaluate-text-" in printed
    if curriculum == "lwm_7b":
        assert all(f"text-{kind}" in printed for kind in ("32k", "128k", "256k", "512k", "1m", "chat-128k", "chat-1m"))
    assert not list(tmp_path.iterdir())


def test_an_unknown_stage_is_an_error_with_the_nearest_one(tmp_path, capsys):
    assert full_curriculum.main(["only=text-1kk", f"root={tmp_path}", "dry_run=true"]) == 2
    assert "text-1k" in capsys.readouterr().err


def test_help_names_every_key(capsys):
    assert full_curriculum.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(
        key in printed
        for key in ("curriculum=", "placement=", "only=", "start=", "force=", "dry_run=", "run=", "root=")
    )
