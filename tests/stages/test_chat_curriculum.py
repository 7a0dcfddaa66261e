"""Chat branches of a curriculum: what they train on, what they start from, and what a mixture may not be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from infra.config import compose
from infra.stage import Stage
from ringworld.errors import UserError
from stages import pack_conversations
from stages.curriculum import load_curriculum, load_site
from stages.graph import build

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def graph(curriculum: str = "lwm_7b", words: tuple[str, ...] = ()) -> dict[str, Stage]:
    found = load_curriculum(compose(CONFIGS / "curricula", curriculum, list(words)))
    return {stage.name: stage for stage in build(found, load_site(compose(CONFIGS / "placements", "v4_512", [])))}


def test_chat_branches_train_on_conversations_and_are_evaluated_on_text() -> None:
    stages = graph(words=("sources.chat=ultra/*.jsonl,more.parquet", "sources.qa=[qa.jsonl]"))
    made = stages["conversations"]
    assert dict(made.recipe.sources) == {"chat": ("ultra/*.jsonl", "more.parquet"), "qa": ("qa.jsonl",)}  # type: ignore[attr-defined]
    assert dict(made.inputs) == {"tokenizer": stages["tokenizer"]}
    for length in ("128k", "256k", "512k", "1m"):
        name = f"text-chat-{length}"
        packed, training, evaluation = (stages[n] for n in (f"pack-{name}", name, f"evaluate-{name}"))
        assert packed.run is pack_conversations.run
        assert packed.recipe.mixture == {"chat": 0.7, "qa": 0.3}  # type: ignore[attr-defined]
        assert packed.recipe.weigh_by == "example"  # type: ignore[attr-defined]
        assert dict(packed.inputs) == {"tokens": made}
        assert dict(training.inputs) == {"tokens": made, "plan": packed, "params": stages[f"text-{length}"]}
        assert evaluation.inputs["tokens"] is stages["tokens"]
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


def test_a_corpus_of_share_zero_needs_no_sources() -> None:
    words = tuple(f"stages.text-chat-{length}.mixture.qa=0" for length in ("128k", "256k", "512k", "1m"))
    assert list(graph(words=words)["conversations"].recipe.sources) == ["chat"]  # type: ignore[attr-defined]


CHAT = {"data": "chat", "mixture": {"chat": 1}, "sequence": 512, "steps": 1, "batch_tokens": 512, "learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"mixture": {}}, r"stages.text-chat-512: mixture=\{\}: give each its share"),
        ({"mixture": {"chat": 0, "qa": 0}}, "mixture=.*at least 0 and one of them above it"),
        ({"mixture": {"chat": 1, "qa": -1}}, "mixture=.*'qa': -1.0"),
        ({"mixture": {"chatt": 1}}, "mixture.chatt: no such corpus of conversations; allowed: chat, qa"),
        ({"replay": 0.4}, "replay=0.4 is for text"),
        ({"over_long": "drop"}, "over_long=drop is for text"),
        ({"data": "video"}, "data='video': allowed: text, chat"),
        ({"lengths": [5, None]}, r"lengths=\[5, None\] filters text"),
    ],
)
def test_a_chat_stage_that_cannot_be_is_refused_by_key(changed: Mapping[str, Any], said: str) -> None:
    given = compose(CONFIGS / "curricula", "tiny", [])
    stages = {**given["stages"], "text-chat-512": {**CHAT, "after": "text-512", **changed}}
    with pytest.raises(UserError, match=said):
        load_curriculum({**given, "stages": stages})
