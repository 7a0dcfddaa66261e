"""The stage's identity: what enters it, what never does, and what a recipe may hold."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from infra.errors import UserError
from infra.manifest import FileEntry, Manifest, Provenance
from infra.placement import Placement
from infra.stage import Artifact, Result, Stage, canonical, topological
from tests.infra.tiny import Number, Rope, add, stage


@dataclass(frozen=True)
class Anything:
    kind: ClassVar[str] = "anything"
    field: Any = None


def test_fingerprint_is_the_sha256_of_the_canonical_identity_written_by_hand():
    parent = stage("tokens", value=3)
    child = stage("text-8k", value=4, source=parent)
    text = (
        '{"code_version":1,"inputs":{"source":"'
        + parent.fingerprint
        + '"},"kind":"number","recipe":{"rope":{"theta":10000.0},"value":4}}'
    )
    assert child.fingerprint == hashlib.sha256(text.encode()).hexdigest()


def test_placement_name_and_run_never_enter_the_fingerprint():
    one = stage("a")
    other = Stage("b", Number(), lambda context, recipe: Result(()), {}, Placement(hosts=2))
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize(
    "other",
    [
        stage("a", value=2),
        stage("a", code_version=2),
        Stage("a", Number(rope=Rope(5e5)), add, {}, Placement()),
        stage("a", source=stage("p")),
        Stage("a", Anything(), add, {}, Placement()),
    ],
)
def test_recipe_kind_code_version_and_inputs_enter_the_fingerprint(other: Stage):
    assert other.fingerprint != stage("a").fingerprint


def test_a_changed_recipe_changes_every_fingerprint_below():
    def bottom(value: int) -> Stage:
        return stage("c", source=stage("b", source=stage("a", value=value)))

    assert bottom(1).fingerprint != bottom(2).fingerprint


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({1, 2}, "set"),
        ([1], "list"),
        (float("nan"), "finite"),
        (b"x", "bytes"),
        ({1: 2}, "keys"),
        (Path := type("Path", (), {})(), "Path"),
    ],
)
def test_a_recipe_that_is_not_plain_data_is_refused_by_field(value: Any, said: str):
    with pytest.raises(UserError, match=r"recipe\.field") as caught:
        canonical(Anything(field=value))
    assert said in str(caught.value)


def test_a_recipe_becomes_plain_json():
    recipe = Anything(field=(1, "x", None, True, Rope(2.0), {"k": (1.5,)}))
    assert canonical(recipe) == {"field": [1, "x", None, True, {"theta": 2.0}, {"k": [1.5]}]}


def test_a_field_that_a_recipe_gained_is_no_part_of_it_while_it_has_its_default():
    @dataclasses.dataclass(frozen=True)
    class Gained:
        size: int
        later: bool = dataclasses.field(default=False, metadata={"identity": "unless default"})

    assert canonical(Gained(3)) == {"size": 3}
    assert canonical(Gained(3, later=True)) == {"size": 3, "later": True}


@pytest.mark.parametrize("name", ["", "-a", "a-", "a b", "a/b", "..", "a_b", "ä"])
def test_a_name_that_is_no_folder_is_refused(name: str):
    with pytest.raises(UserError, match="letters, digits"):
        stage(name)


def test_topological_puts_inputs_first_and_takes_in_what_was_not_named():
    a = stage("a")
    b, c = stage("b", source=a), stage("c", source=a)
    d = stage("d", left=b, right=c)
    assert [s.name for s in topological([d])] == ["a", "b", "c", "d"]


def test_two_stages_of_one_name_are_an_error():
    with pytest.raises(UserError, match="two different stages are named 'a'"):
        topological([stage("b", source=stage("a")), stage("a")])
    with pytest.raises(UserError, match="two different stages are named 'a'"):
        topological([stage("a", source=stage("b", source=stage("a")))])


def test_a_cycle_is_an_error_that_shows_it():
    a = stage("a")
    b = stage("b", source=a)
    a.inputs["source"] = b  # type: ignore[index]
    with pytest.raises(UserError, match=r"a -> b -> a|b -> a -> b"):
        topological([b])


def test_values_that_json_lacks_are_refused_by_key():
    with pytest.raises(ValueError, match=r"values\['loss'\]"):
        Result((), {"loss": float("nan")})


def test_an_artifact_gives_only_what_its_manifest_lists():
    origin = Provenance(None, {}, "host", "", "", 0.0, 1)
    files = (FileEntry("params/a.bin", 1), FileEntry("out.json", 2))
    artifact = Artifact(Manifest("s", "k", 1, "f", {}, {}, files, {}, 1, 1, origin), "/runs/tiny/s/attempt-1")
    assert artifact.path("out.json") == "/runs/tiny/s/attempt-1/out.json"
    assert artifact.path("params") == "/runs/tiny/s/attempt-1/params"
    with pytest.raises(KeyError, match="other"):
        artifact.path("other")
    with pytest.raises(KeyError):
        artifact.path("param")


def test_stages_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        stage("a").name = "b"  # type: ignore[misc]
