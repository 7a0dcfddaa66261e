"""The parts of synthesis that need no server: what is chosen, what a budget remembers, and engines on a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ringworld.errors import UserError
from ringworld.synthesis.budget import Limits
from ringworld.synthesis.options import ServerOptions
from ringworld.synthesis.records import Reply
from stages.questions_plan import Choice, ask_about, choose_documents, draw
from stages.questions_ray_llm import EngineOptions, _answered, _reply_row, answer_by_engine, engine_config
from stages.questions_work import Keeper
from stages.synthesize_qa import SynthesizeOptions, SynthesizeRecipe, _key

DOCUMENTS = [f"{number:064x}" for number in range(100)]


def test_documents_are_chosen_of_both_splits_in_proportion_and_whatever_their_order() -> None:
    held = [number % 10 == 0 for number in range(100)]
    chosen = choose_documents(DOCUMENTS, held, 40, seed=1)
    assert len(chosen) == 40
    assert sum(held[at] for at in chosen) == 4
    turned = choose_documents(DOCUMENTS[::-1], held[::-1], 40, seed=1)
    assert {DOCUMENTS[::-1][at] for at in turned} == {DOCUMENTS[at] for at in chosen}
    assert chosen != choose_documents(DOCUMENTS, held, 40, seed=2)
    assert sum(held[at] for at in choose_documents(DOCUMENTS, held, 3, seed=1)) == 1
    assert not any(held[at] for at in choose_documents(DOCUMENTS, held, 1, seed=1))
    assert choose_documents(DOCUMENTS, held, 1000, seed=1) == list(range(100))
    assert choose_documents(DOCUMENTS, [True] * 100, 7, seed=1)
    for most in range(1, 101):
        assert len(choose_documents(DOCUMENTS, [number > 40 for number in range(100)], most, 0)) == most


def test_chunks_are_drawn_by_share_and_at_most_so_many() -> None:
    draws = [draw(0, "chunk", number) for number in range(1000)]
    some = ask_about(1000, draws, Choice(share=0.3))
    assert 250 < sum(some) < 350
    few = ask_about(1000, draws, Choice(share=0.3, per_document=20))
    assert sum(few) == 20
    assert all(wide for wide, narrow in zip(some, few, strict=True) if narrow)
    assert sum(ask_about(1000, draws, Choice(share=0.5))) > sum(some)
    with pytest.raises(UserError, match=r"share=0\.0: of the chunks"):
        Choice(share=0.0)


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ({"provider": "openai"}, "provider=openai needs a model"),
        ({"model": "gpt"}, "provider=extractive asks no model"),
        ({"shard_chunks": 0}, "shard_chunks=0"),
        ({"prompt_version": 0}, "prompt_version=0: this code asks by version"),
    ],
)
def test_recipes_that_cannot_be_are_refused(recipe: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        SynthesizeRecipe(**recipe)


def test_a_budget_outlives_its_keeper_even_one_that_is_killed(tmp_path: Path) -> None:
    place, limits = str(tmp_path / "budget.json"), Limits(requests=1000, tokens=100_000)
    keeper = Keeper(limits, place)
    assert keeper.take(0, [100] * 50) == 50
    told = json.loads(Path(place).read_text())
    assert 50 <= told["requests"] <= 50 + 10
    assert 5000 <= told["tokens"] <= 5000 + 1000
    # Never closed.
    after = Keeper(limits, place)
    assert after.take(0, [100] * 1000) == (100_000 - told["tokens"]) // 100
    after.give_back(0, 10_000)
    assert after.close() == {"requests": told["requests"] + 940, "tokens": 90_000}
    assert Keeper(limits, place).take(0, [1] * 100) == 1000 - told["requests"] - 940


def test_a_key_that_is_not_there_is_named_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = SynthesizeRecipe(provider="openai", model="m")
    options = SynthesizeOptions(openai=ServerOptions(base_url="http://localhost:1/v1", api_key_env="WRITER_KEY"))
    monkeypatch.delenv("WRITER_KEY", raising=False)
    with pytest.raises(UserError, match=r"openai\.api_key_env=WRITER_KEY: no such variable where this runs"):
        _key(recipe, options)
    monkeypatch.setenv("WRITER_KEY", "sk-of-a-test")
    found = _key(recipe, options)
    assert found is not None
    assert found.reveal() == "sk-of-a-test"
    assert _key(recipe, SynthesizeOptions()) is None
    assert _key(SynthesizeRecipe(), options) is None


def test_engines_need_vllm_and_no_budget() -> None:
    job: Any = None
    context: Any = None
    with pytest.raises(UserError, match="budget: engines of one's own are not metered"):
        answer_by_engine(context, job, EngineOptions(), [], Limits(requests=5))
    with pytest.raises(UserError, match=r"needs vLLM, which is not installed: pip install 'ringworld\[llm\]'"):
        answer_by_engine(context, job, EngineOptions(), [], Limits())


def test_the_configuration_of_engines_is_one_that_ray_takes() -> None:
    """Ray checks the names of its own fields; vLLM's are those of its documentation."""
    made = engine_config("org/model", EngineOptions(engines=3, tensor_parallel=2, accelerator="H100"))
    assert (made.model_source, made.concurrency, made.batch_size, made.accelerator_type) == ("org/model", 3, 64, "H100")
    assert made.engine_kwargs == {"tensor_parallel_size": 2, "max_model_len": 4096, "task_type": "generate"}
    assert made.should_continue_on_error


def test_a_row_that_an_engine_could_not_answer_is_a_reply_with_its_reason() -> None:
    """As `should_continue_on_error` hands it out: with what was asked, without what was not answered."""
    place = {"shard": 3, "index": 5, "max_tokens": 50}
    reply = {"generated_text": "Question: ...", "num_input_tokens": 90, "num_generated_tokens": 50}
    good = _reply_row(_answered(place | reply) | {"__inference_error__": ""}, "m")
    assert (good.pop("shard"), good.pop("index")) == (3, 5)
    assert Reply(**good) == Reply("Question: ...", "length", "m", 90, 50)
    bad = _reply_row(place | {"messages": [], "__inference_error__": "ValueError: too long"}, "m")
    assert (bad.pop("shard"), bad.pop("index")) == (3, 5)
    assert Reply(**bad) == Reply("ValueError: too long", "error", "m", error="request refused")
