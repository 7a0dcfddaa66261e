"""The plan as tables: from what storage holds and what is asked, to one action per stage."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from infra.errors import UserError
from infra.manifest import InputRef, Manifest, Provenance
from infra.placement import Placement
from infra.plan import Plan, StageFacts, differences, plan
from infra.stage import Stage, canonical
from infra.storage import Version
from tests.infra.tiny import Number, Rope, add, stage

ORIGIN = Provenance(None, {}, "host", "", "", 0.0, 1)
V = Version(b"v")


@dataclass(frozen=True)
class Graph:
    """tokens -> text-1k -> text-2k, text-1k -> chat-1k, tokens -> vision."""

    tokens: Stage
    text_1k: Stage
    text_2k: Stage
    chat_1k: Stage
    vision: Stage

    @property
    def stages(self) -> list[Stage]:
        return [self.tokens, self.text_1k, self.text_2k, self.chat_1k, self.vision]


def graph(tokens: int = 1, text_1k: int = 1, theta: float = 1e4, version: int = 1) -> Graph:
    a = stage("tokens", tokens)
    b = Stage("text-1k", Number(text_1k, Rope(theta)), add, {"source": a}, Placement(), version)
    return Graph(a, b, stage("text-2k", source=b), stage("chat-1k", source=b), stage("vision", tokens=a))


def done(stage: Stage, series: int = 1, more: tuple[tuple[int, str], ...] = ()) -> StageFacts:
    inputs = {port: InputRef(parent.name, parent.fingerprint) for port, parent in stage.inputs.items()}
    manifest = Manifest(
        stage.name,
        stage.recipe.kind,
        stage.code_version,
        stage.fingerprint,
        canonical(stage.recipe),
        inputs,
        (),
        {},
        series,
        series,
        ORIGIN,
    )
    return StageFacts(manifest, V, ((series, stage.fingerprint), *more))


def facts(*stages: Stage) -> dict[str, StageFacts]:
    return {s.name: done(s) for s in stages}


def actions(decided: Plan) -> dict[str, str]:
    return {step.stage.name: step.action for step in decided.steps}


NOW = graph()
ALL = facts(*NOW.stages)
NOTHING: dict[str, StageFacts] = {}
STARTED = {"text-1k": StageFacts(series=((1, NOW.text_1k.fingerprint),))}
OTHERS = {"text-1k": StageFacts(series=((1, "of another recipe"),))}


@pytest.mark.parametrize(
    ("held", "options", "expected"),
    [
        (NOTHING, {}, "run wait wait wait wait"),
        (ALL, {}, "reuse reuse reuse reuse reuse"),
        (facts(NOW.tokens), {}, "reuse run wait wait run"),
        (facts(NOW.tokens) | STARTED, {}, "reuse resume wait wait run"),
        (facts(NOW.tokens) | OTHERS, {}, "reuse run wait wait run"),
        (STARTED, {}, "run wait wait wait wait"),
        (facts(NOW.tokens, NOW.text_1k), {}, "reuse reuse run run run"),
        (ALL, {"force": "text-1k"}, "reuse run reuse reuse reuse"),
        (ALL, {"force": "text-1k, text-2k"}, "reuse run wait reuse reuse"),
        (NOTHING, {"force": "tokens"}, "run wait wait wait wait"),
        (facts(NOW.tokens), {"only": "text-1k"}, "reuse run wait wait wait"),
        (facts(NOW.tokens) | STARTED, {"only": "text-1k"}, "reuse resume wait wait wait"),
        (facts(NOW.text_1k), {"only": "chat-1k"}, "wait reuse wait run wait"),
        (ALL, {"only": "text-1k"}, "reuse reuse reuse reuse reuse"),
        (ALL, {"only": "text-1k", "force": "text-1k"}, "reuse run reuse reuse reuse"),
        (facts(NOW.tokens), {"start": "text-1k"}, "reuse run wait wait wait"),
        (NOTHING, {"start": "tokens"}, "run wait wait wait wait"),
        (ALL, {"start": "text-1k"}, "reuse reuse reuse reuse reuse"),
        (facts(NOW.tokens, NOW.text_1k), {"start": "text-1k"}, "reuse reuse run run wait"),
    ],
)
def test_each_stage_gets_its_action(held: dict[str, StageFacts], options: dict[str, str], expected: str):
    decided = plan(NOW.stages, held, **options)  # type: ignore[arg-type]
    assert " ".join(actions(decided).values()) == expected
    assert decided.problem is None
    decided.require_possible()


@pytest.mark.parametrize(
    ("held", "options", "due"),
    [
        (NOTHING, {}, {"tokens", "text-1k", "text-2k", "chat-1k", "vision"}),
        (facts(NOW.tokens), {"only": "text-1k"}, {"text-1k"}),
        (facts(NOW.tokens), {"start": "text-1k"}, {"text-1k", "text-2k", "chat-1k"}),
        (ALL, {"force": "text-1k"}, {"text-1k"}),
        (ALL, {"only": "text-1k"}, set()),
    ],
)
def test_only_what_is_selected_and_unfinished_is_due(held: dict[str, StageFacts], options: dict[str, str], due: set):
    assert {step.stage.name for step in plan(NOW.stages, held, **options).steps if step.due} == due  # type: ignore[arg-type]


def test_a_reused_stage_says_how_to_make_it_again():
    assert "force=text-1k" in plan(NOW.stages, ALL, only="text-1k")["text-1k"].reason


def test_drift_prints_the_fields_and_both_ways_out():
    changed = graph(text_1k=7, theta=5e4)
    with pytest.raises(UserError) as caught:
        plan(changed.stages, ALL).require_possible()
    assert str(caught.value).splitlines() == [
        "stage 'text-1k' is finished, and has changed since (drift):",
        "    value: 1 -> 7",
        "    rope.theta: 10000.0 -> 50000.0",
        "stage 'text-2k' is finished, and has changed since (drift):",
        "    input source (text-1k) has changed",
        "stage 'chat-1k' is finished, and has changed since (drift):",
        "    input source (text-1k) has changed",
        "Nothing was run. Two ways out:",
        "    run=NEWNAME           keeps this run as it is and makes a new one",
        "    force=text-1k,text-2k,chat-1k  makes new attempts here; nothing is deleted",
    ]


def test_the_way_out_that_drift_names_works():
    changed = graph(text_1k=7)
    decided = plan(changed.stages, ALL, force="text-1k,text-2k,chat-1k")
    assert " ".join(actions(decided).values()) == "reuse run wait wait reuse"
    assert decided["text-1k"].replaces == V
    assert decided.problem is None


def test_drift_above_is_drift_below_even_where_the_changed_stage_itself_is_not_finished():
    decided = plan(graph(tokens=2).stages, facts(NOW.text_1k))
    assert actions(decided)["text-1k"] == "drift"
    assert "input source (tokens) has changed" in str(decided.problem)


def test_an_unfinished_stage_below_a_drifted_one_is_blocked_and_the_error_is_the_drift():
    decided = plan(graph(text_1k=2).stages, facts(NOW.tokens, NOW.text_1k))
    assert actions(decided) == {
        "tokens": "reuse",
        "text-1k": "drift",
        "text-2k": "blocked",
        "chat-1k": "blocked",
        "vision": "run",
    }
    assert "value: 1 -> 2" in str(decided.problem)
    assert "force=text-1k " in str(decided.problem)


def test_code_version_is_drift():
    decided = plan(graph(version=2).stages, ALL)
    assert "code_version: 1 -> 2" in str(decided.problem)


def test_an_input_plugged_elsewhere_is_drift():
    other = Graph(NOW.tokens, NOW.text_1k, stage("text-2k", tokens=NOW.tokens), NOW.chat_1k, NOW.vision)
    problem = str(plan(other.stages, ALL).problem)
    assert "input source: text-1k -> (absent)" in problem
    assert "input tokens: (absent) -> tokens" in problem


def test_only_demands_its_inputs_manifests_and_names_them():
    decided = plan(NOW.stages, facts(NOW.tokens), only="text-2k")
    assert decided["text-2k"].action == "blocked"
    assert str(decided.problem).splitlines() == [
        "stage 'text-2k' is blocked: it needs text-1k, which is not finished and not selected",
        "Nothing was run. Make text-1k first (only=text-1k), or leave only= and start= out",
    ]


def test_only_refuses_an_input_that_has_drifted():
    decided = plan(graph(text_1k=3).stages, facts(NOW.tokens, NOW.text_1k), only="text-2k")
    assert "value: 1 -> 3" in str(decided.problem)
    assert "only= and start= left out" in str(decided.problem)


def test_drift_that_the_selected_stage_does_not_need_stops_nothing():
    changed = Graph(NOW.tokens, NOW.text_1k, NOW.text_2k, NOW.chat_1k, stage("vision", 9, tokens=NOW.tokens))
    decided = plan(changed.stages, ALL | {"text-2k": StageFacts()}, only="text-2k")
    assert decided.problem is None
    assert decided["text-2k"].action == "run"
    assert "value: 1 -> 9" in decided["vision"].reason


def test_start_is_blocked_by_an_unfinished_input_beside_it():
    side = stage("side")
    both = stage("both", left=NOW.text_1k, right=side)
    decided = plan([both], facts(NOW.tokens, NOW.text_1k), start="text-1k")
    assert decided["both"].action == "blocked"
    assert "side" in str(decided.problem)


F = NOW.text_1k.fingerprint


@pytest.mark.parametrize(
    ("fact", "force", "action", "series"),
    [
        (StageFacts(series=((1, F), (2, "other"))), None, "resume", 1),
        (StageFacts(series=((1, F), (2, F))), None, "resume", 2),
        (StageFacts(series=((1, "other"),)), None, "run", None),
        (done(NOW.text_1k), "text-1k", "run", None),
        (done(NOW.text_1k, 1, ((2, F),)), "text-1k", "resume", 2),
        (done(NOW.text_1k, 1, ((2, "other"),)), "text-1k", "run", None),
        (done(NOW.text_1k, 1, ((2, F),)), None, "reuse", None),
        (replace(done(NOW.text_1k, 2), series=((1, F), (2, F))), "text-1k", "run", None),
        (StageFacts(series=((1, F),)), "text-1k", "resume", 1),
    ],
)
def test_which_state_series_goes_on(fact: StageFacts, force: str | None, action: str, series: int | None):
    step = plan(NOW.stages, facts(NOW.tokens) | {"text-1k": fact}, force=force)["text-1k"]
    assert (step.action, step.series) == (action, series)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"only": "text-1q"}, "only='text-1q' is no stage: did you mean 'text-1k'"),
        ({"start": "visoin"}, "did you mean 'vision'"),
        ({"force": "tokens,zzzz"}, "force='zzzz' is no stage: stages are tokens"),
        ({"only": "tokens", "start": "tokens"}, "give one of them"),
        ({"only": "tokens", "force": "vision"}, "force=vision: only=tokens leaves it out"),
    ],
)
def test_a_wrong_choice_is_an_error_that_helps(options: dict[str, str], said: str):
    with pytest.raises(UserError) as caught:
        plan(NOW.stages, ALL, **options)  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_differences_name_leaves_by_their_path():
    assert differences(
        {"a": 1, "b": {"c": 1, "d": [1]}, "gone": 0}, {"a": 1, "b": {"c": 2, "d": [2]}, "new": None}
    ) == (
        ("b.c", "1", "2"),
        ("b.d", "[1]", "[2]"),
        ("gone", "0", "(absent)"),
        ("new", "(absent)", "None"),
    )
