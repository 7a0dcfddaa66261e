"""Stages that see, in a curriculum: what they train on, what they start from, and what a row may not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infra.config import compose
from infra.stage import Stage
from ringworld.errors import UserError
from stages import pack_vision
from stages.curriculum import load_curriculum
from stages.graph import build
from stages.site import load_site

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def graph(curriculum: str = "tiny", words: tuple[str, ...] = ()) -> dict[str, Stage]:
    found = load_curriculum(compose(CONFIGS / "curricula", curriculum, list(words)))
    place = "v4_512" if curriculum == "lwm_7b" else "local"
    return {stage.name: stage for stage in build(found, load_site(compose(CONFIGS / "placements", place, [])))}


def recipe(stage: Stage) -> Any:
    return stage.recipe


def test_a_stage_that_sees_grows_the_last_text_stage_and_draws_on_two_stores() -> None:
    stages = graph()
    first, examples = stages["vision-256"], stages["examples-vision-256"]
    assert dict(first.inputs) == {
        "tokens": stages["tokens"],
        "vision": examples,
        "plan": stages["pack-vision-256"],
        "params": stages["text-8k"],
    }
    assert stages["pack-vision-256"].run is pack_vision.run
    assert dict(stages["pack-vision-256"].inputs) == {"tokens": stages["tokens"], "vision": examples}
    assert recipe(stages["text-8k"]).model.vision_vocabulary == 0
    assert recipe(first).model.vision_vocabulary == recipe(examples).vision_vocabulary == 1152
    assert recipe(examples).vocabulary == recipe(first).model.vocabulary
    assert (recipe(examples).how.form, recipe(examples).how.kinds) == ("pairs", ("image",))
    chat = stages["vision-chat-2k"]
    assert dict(chat.inputs) == {
        "tokens": stages["examples-vision-chat-2k"],
        "plan": stages["pack-vision-chat-2k"],
        "params": stages["vision-1k"],
    }
    assert recipe(stages["examples-vision-chat-2k"]).how.form == "chat"
    assert dict(stages["codes"].inputs) == {"media": stages["media"], "vqgan": stages["vqgan"]}
    # Nothing of the text waits for pictures.
    text = [stage for name, stage in stages.items() if "text" in name]
    assert not any(port.name in ("media", "vqgan", "codes") for stage in text for port in stage.inputs.values())


def test_lwm_7b_states_the_papers_stages_that_see() -> None:
    stages = graph("lwm_7b")
    facts = {
        "vision-1k": (2**10, 45000, 1000, 6e-4, 6e-5, "cosine"),
        "vision-8k": (2**13, 14000, 500, 6e-4, 6e-5, "cosine"),
        "vision-chat-32k": (2**15, 1200, 100, 8e-5, 0.0, "constant"),
        "vision-chat-128k": (2**17, 450, 50, 8e-5, 0.0, "constant"),
        "vision-chat-1m": (2**20, 50, 5, 8e-5, 0.0, "constant"),
    }
    before = "text-1m"
    for name, (sequence, steps, warmup, rate, least, schedule) in facts.items():
        made = recipe(stages[name])
        optimizer = made.optimizer
        assert (made.sequence, made.steps, made.batch_tokens) == (sequence, steps, 2**23)
        assert (optimizer.warmup_steps, optimizer.learning_rate, optimizer.minimum_rate) == (warmup, rate, least)
        assert optimizer.schedule == schedule
        assert (made.model.rope.theta, made.model.vision_vocabulary) == (5e7, 8448)
        assert stages[name].inputs["params"] is stages[before]
        packed = recipe(stages[f"pack-{name}"])
        assert (packed.vision_weight, packed.weigh_by) == (0.5, "example")
        before = name
    assert recipe(stages["pack-vision-1k"]).mixture == {"text": 0.16, "image": 0.84}
    assert set(recipe(stages["pack-vision-chat-1m"]).mixture.values()) == {0.25}
    how = recipe(stages["examples-vision-8k"]).how
    assert (how.frames, how.rate) == (30, 4.0)


def test_what_has_learned_to_see_goes_on_seeing_and_may_read_again() -> None:
    row = "after=vision-1k sequence=2048 steps=2 batch_tokens=4096 learning_rate=1e-3"
    again = graph(words=tuple(f"stages.text-again-2k.{word}" for word in row.split()))
    assert recipe(again["text-again-2k"]).model.vision_vocabulary == 1152
    assert dict(again["text-again-2k"].inputs)["tokens"] is again["tokens"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("vision=null",), "stages.vision-256.data=vision: needs the curriculum's `vision`"),
        (("stages.text-512.vision_weight=0.3",), "vision_weight=0.3 is for stages that see"),
        (("stages.vision-256.untie={share: 0.5}",), "is for text; a vision stage takes whole examples"),
        (("stages.vision-chat-2k.lengths=[5,null]",), r"lengths=\[5, None\] filters text"),
        (("stages.vision-256.mixture.music=0.1",), "mixture.music: no such corpus of a stage of data=vision; allowed"),
        (("model.vision_vocabulary=9",), "model.vision_vocabulary: stages that see have it"),
        (("vision.vocabulary=1000", "vision.vqgan.folder=x"), "train and folder: both given"),
    ],
)
def test_a_row_that_cannot_be_is_refused_by_key(words: tuple[str, ...], told: str) -> None:
    with pytest.raises(UserError, match=told):
        graph(words=words)
