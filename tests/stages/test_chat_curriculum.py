"""Chat branches of a curriculum: what they train on, what they start from, and what a mixture may not be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from infra.config import compose
from infra.placement import Placement
from infra.stage import Stage
from ringworld.errors import UserError
from stages import pack_whole
from stages.curriculum import load_curriculum
from stages.graph import build
from stages.site import load_site

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def graph(curriculum: str = "lwm_7b", words: tuple[str, ...] = ()) -> dict[str, Stage]:
    found = load_curriculum(compose(CONFIGS / "curricula", curriculum, list(words)))
    place = "v4_512" if curriculum == "lwm_7b" else "local"
    return {stage.name: stage for stage in build(found, load_site(compose(CONFIGS / "placements", place, [])))}


def test_chat_branches_train_on_conversations_and_are_evaluated_on_both() -> None:
    stages = graph(words=("sources.chat=ultra/*.jsonl,more.parquet", "sources.qa=[qa.jsonl]"))
    made = stages["conversations"]
    assert dict(made.recipe.sources) == {"chat": ("ultra/*.jsonl", "more.parquet"), "qa": ("qa.jsonl",)}  # type: ignore[attr-defined]
    assert dict(made.inputs) == {"tokenizer": stages["tokenizer"]}
    for length in ("128k", "256k", "512k", "1m"):
        name = f"text-chat-{length}"
        packed, training, evaluation = (stages[n] for n in (f"pack-{name}", name, f"evaluate-{name}"))
        assert packed.run is pack_whole.run
        assert packed.recipe.mixture == {"chat": 0.7, "qa": 0.3}  # type: ignore[attr-defined]
        assert packed.recipe.weigh_by == "example"  # type: ignore[attr-defined]
        assert dict(packed.inputs) == {"tokens": made}
        assert dict(training.inputs) == {"tokens": made, "plan": packed, "params": stages[f"text-{length}"]}
        assert evaluation.inputs["tokens"] is stages["tokens"]
        assert evaluation.inputs["conversations"] is made
        assert evaluation.inputs["before"] is stages[f"text-{length}"]
    # Branches: nothing of the text chain waits for chat data.
    text = [stage for name, stage in stages.items() if "chat" not in name]
    assert not any("chat" in port.name for stage in text for port in stage.inputs.values())


def test_a_curriculum_without_chat_has_no_conversations_and_is_what_it_was() -> None:
    given = compose(CONFIGS / "curricula", "lwm_7b", [])
    text_only = {**given, "stages": {name: row for name, row in given["stages"].items() if "chat" not in name}}
    site = load_site(compose(CONFIGS / "placements", "v4_512", []))
    found = {stage.name: stage.fingerprint for stage in build(load_curriculum(text_only), site)}
    both = {name: stage.fingerprint for name, stage in graph().items()}
    assert "conversations" not in found
    assert found == {name: both[name] for name in found}


def test_a_corpus_of_share_zero_needs_no_sources_and_no_questions() -> None:
    words = tuple(f"stages.text-chat-{length}.mixture.qa=0" for length in ("128k", "256k", "512k", "1m"))
    stages = graph(words=words)
    assert list(stages["conversations"].recipe.sources) == ["chat"]  # type: ignore[attr-defined]
    assert "questions" not in stages


def test_without_files_conversations_are_made_of_the_documents() -> None:
    stages = graph("tiny")
    made = stages["conversations"]
    assert {port: stage.name for port, stage in made.inputs.items()} == {
        "tokenizer": "tokenizer",
        "chat": "talk",
        "qa-2k": "examples-2k",
        "qa-8k": "examples-8k",
    }
    assert dict(made.recipe.sources) == {}  # type: ignore[attr-defined]
    assert [stages[f"examples-{label}"].recipe.sequence for label in ("2k", "8k")] == [2048, 8192]  # type: ignore[attr-defined]
    assert stages["examples-2k"].inputs["questions"] is stages["examples-8k"].inputs["questions"]
    assert stages["pack-text-chat-8k"].recipe.mixture == {"chat": 0.7, "qa-8k": 0.3}  # type: ignore[attr-defined]
    asked = stages["evaluate-text-chat-8k"]
    assert asked.recipe.chat.corpora == ("chat", "qa-8k")  # type: ignore[attr-defined]
    assert asked.inputs["conversations"] is made
    assert stages["evaluate-text-8k"].recipe.chat is None  # type: ignore[attr-defined]
    for name in ("talk", "questions", "examples-2k"):  # what is dropped or cut of the documents is so here, too
        assert {"documents", "deduplicate", "decontaminate"} <= set(stages[name].inputs)


def test_questions_are_asked_of_a_server_by_one_processor_and_of_a_model_where_it_fits() -> None:
    at = graph()["questions"].placement
    assert (at.resources, at.hosts, at.mesh, at.options["workers"]) == (
        {"TPU": 4},
        1,
        "fsdp=-1,tensor=4",
        64,
    )
    asked = graph(words=("questions.provider=openai",))["questions"].placement
    assert (asked.resources, asked.mesh) == (Placement().resources, Placement().mesh)


def test_a_stage_of_the_curriculum_may_write_the_questions() -> None:
    words = ("questions.provider=checkpoint", "questions_by=text-1k")
    stages = graph("tiny", words)
    assert stages["questions"].inputs["model"] is stages["text-1k"]
    for by in ("text-8m", "text-chat-8k", "tokens"):
        with pytest.raises(UserError, match=f"questions_by={by}: a training stage above the first chat stage"):
            graph("tiny", (words[0], f"questions_by={by}"))
    with pytest.raises(UserError, match=r"and questions\.provider=checkpoint"):
        graph("tiny", words[1:])


@pytest.mark.parametrize(("words", "missing"), [(("talk=null",), "chat"), (("questions=null",), "qa")])
def test_what_nobody_makes_needs_files(words: tuple[str, ...], missing: str) -> None:
    """The stage says so when it runs; a plan needs no data."""
    made = graph("tiny", words)["conversations"]
    assert dict(made.recipe.sources) == {missing: ()}  # type: ignore[attr-defined]
    assert not any(port.startswith(missing) for port in made.inputs)


CHAT = {"data": "chat", "mixture": {"chat": 1}, "sequence": 512, "steps": 1, "batch_tokens": 512, "learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"mixture": {}}, r"stages.text-chat-512: mixture=\{\}: give each its share"),
        ({"mixture": {"chat": 0, "qa": 0}}, "mixture=.*at least 0 and one of them above it"),
        ({"mixture": {"chat": 1, "qa": -1}}, "mixture=.*'qa': -1.0"),
        ({"mixture": {"chatt": 1}}, "mixture.chatt: no such corpus of a stage of data=chat; allowed: chat, qa"),
        ({"replay": 0.4}, "replay=0.4 is for text"),
        ({"over_long": "drop"}, "over_long=drop is for text"),
        ({"data": "video"}, "data='video': allowed: text, recall, chat"),
        ({"lengths": [5, None]}, r"lengths=\[5, None\] filters text"),
    ],
)
def test_a_chat_stage_that_cannot_be_is_refused_by_key(changed: Mapping[str, Any], said: str) -> None:
    given = compose(CONFIGS / "curricula", "tiny", [])
    stages = {**given["stages"], "text-chat-512": {**CHAT, "after": "text-512", **changed}}
    with pytest.raises(UserError, match=said):
        load_curriculum({**given, "stages": stages})
