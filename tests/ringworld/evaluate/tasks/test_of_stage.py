"""The tasks of an evaluation stage: asked of the weights that it evaluates, and what is not asked is said."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental import multihost_utils

from ringworld.data.token_store import TokenStore
from ringworld.errors import UserError
from ringworld.evaluate.recipe import EvaluateInputs, EvaluateJob, EvaluateRecipe, NeedleConfig, TasksConfig
from ringworld.evaluate.tasks.answerers import Said
from ringworld.evaluate.tasks.of_stage import Planned, ask_tasks, plan_tasks, tasks_figures, write_tasks
from ringworld.evaluate.tasks.task import Example
from ringworld.model.config import ModelConfig
from tests.ringworld.corpus import TOKENIZER, prose, write_corpus
from tests.ringworld.evaluate.tasks.readers import read

CONFIG = TasksConfig(("passkey", "cities_1_1", "vt_bare"), (900, 1000), (0.0, 1.0), count=2)


class Reader:
    """Answers by reading the prompt, but not at length 1,000, and counts."""

    def __init__(self) -> None:
        self.asked = 0

    def answers(self, examples: Iterable[Example]) -> Iterator[tuple[int, Said]]:
        for index, example in enumerate(examples):
            self.asked += 1
            found = read(example.task, TOKENIZER.decode(example.ids)) if example.length < 1000 else []
            yield index, Said(", ".join(found), "stop")


@pytest.fixture
def planned(tmp_path: Path):
    def plan(config: TasksConfig | None = CONFIG, held_out: int = 1) -> Planned | None:
        if not (tmp_path / "tokens").exists():
            write_corpus(tmp_path, [prose(0, 40), prose(1, 40)], held_out)
        model = ModelConfig(264, 1, 16, 2, 1, 8, 16)
        recipe = EvaluateRecipe(model, 1000, 1, NeedleConfig((256,)), tasks=config)
        inputs = EvaluateInputs(str(tmp_path / "tokens"), "", str(tmp_path / "after"), str(tmp_path))
        return plan_tasks(EvaluateJob(recipe, inputs), TokenStore.open(str(tmp_path / "tokens")), TOKENIZER)

    return plan


def test_tasks_are_asked_once_and_again_only_where_they_are_missing(planned, tmp_path):
    plan, reader, done = planned(), Reader(), []
    assert plan.room == (1000, 2 * len(plan.cells)) == (1000, 20)
    results, not_asked = ask_tasks(plan, str(tmp_path), lambda: reader, lambda: done.append(1))
    assert (not_asked, len(done), reader.asked) == ("", len(plan.cells), 20)
    figures = tasks_figures(plan, results, not_asked)
    assert figures["tasks"]["mean"] == {"900": 100.0, "1000": 0.0}
    assert (figures["tasks_mean"], figures["effective_length"]) == (50.0, 900)
    write_tasks(plan, str(tmp_path), results)
    assert (tmp_path / "tasks" / "needles.png").exists()
    next((tmp_path / "tasks" / "cells").glob("vt_bare-900*")).unlink()
    again, _ = ask_tasks(plan, str(tmp_path), lambda: reader, lambda: None)
    assert (again, reader.asked) == (results, 22)


def test_of_several_processes_all_ask_what_the_first_one_has_not_kept_and_it_alone_writes(
    planned, tmp_path, monkeypatch
):
    """Each process in turn here; the first one's look goes to the other by hand."""
    plan, first, second, looks = planned(), Reader(), Reader(), []
    ask_tasks(plan, str(tmp_path), lambda: first, lambda: None)
    next((tmp_path / "tasks" / "cells").glob("passkey-900*")).unlink()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", lambda look: looks.append(look) or looks[0])
    whole, _ = ask_tasks(plan, str(tmp_path), lambda: first, lambda: None)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    part, _ = ask_tasks(plan, str(tmp_path / "other"), lambda: second, lambda: None)
    assert (first.asked, second.asked) == (20 + 2, 2)
    assert [result for result in whole if result in part] == part
    assert len(part) == 1
    assert not (tmp_path / "other").exists()


def test_without_held_out_documents_the_other_tasks_are_asked(planned, tmp_path):
    plan = planned(held_out=0)
    assert set(plan.tasks) == {"passkey", "vt_bare"}
    results, not_asked = ask_tasks(plan, str(tmp_path), Reader, lambda: None)
    refused = tasks_figures(plan, results, not_asked)["tasks"]["refused"]
    assert "holds out no document" in refused["cities_1_1"]


def test_broken_weights_leave_a_reason(planned, tmp_path):
    class Broken:
        def answers(self, examples: Iterable[Example]) -> Iterator[tuple[int, Said]]:
            raise UserError("the model's output is no number")

    assert ask_tasks(planned(), str(tmp_path), Broken, lambda: None) == ([], "the model's output is no number")


def test_a_recipe_without_tasks_asks_none_and_unknown_ones_are_refused_at_once(planned):
    assert planned(None) is None
    with pytest.raises(UserError, match="did you mean passkey"):
        TasksConfig(("passkye",), (512,))
    with pytest.raises(UserError, match="qa asks about texts"):
        TasksConfig(("qa",), (512,))
    with pytest.raises(UserError, match="none may be over sequence=1000"):
        planned(TasksConfig(("passkey",), (1001,)))
