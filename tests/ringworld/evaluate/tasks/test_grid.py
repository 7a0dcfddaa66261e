"""A grid keeps what it has finished, scores as RULER does, and is asked of an engine or a server alike."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ringworld.errors import UserError
from ringworld.evaluate.tasks.__main__ import lengths_of, main
from ringworld.evaluate.tasks.answerers import Said, ServerAnswerer, ServerOptions
from ringworld.evaluate.tasks.grid import Answered, Cell, Grid, Result, Settings, cells_of
from ringworld.evaluate.tasks.report import draw, summarize, table
from ringworld.evaluate.tasks.scoring import effective_length, score
from ringworld.evaluate.tasks.task import Example
from ringworld.exits import USER_ERROR
from tests.ringworld.evaluate.tasks.oracle import oracle
from tests.ringworld.evaluate.tasks.readers import read
from tests.ringworld.evaluate.tasks.world import prompting, tasks

SETTINGS = Settings("m", "t", "h", "", count=2, seed=0, chat="")
NAMES = ("passkey", "vt_bare")
TASKS = {name: tasks()[name] for name in NAMES}
CELLS = cells_of(list(TASKS.values()), [1200, 2000], (0.0, 1.0))


class Knowing:
    """Answers by reading the prompt; the last example first. after: how many, before it breaks down."""

    def __init__(self, after: int | None = None) -> None:
        self.after, self.asked = after, 0

    def __call__(self) -> Knowing:
        return self

    def answers(self, examples: Iterable[Example]) -> Iterator[tuple[int, Said]]:
        for index, example in reversed(list(enumerate(examples))):
            if self.asked == self.after:
                raise RuntimeError("pulled")
            self.asked += 1
            answers = read(example.task, prompting().tokenizer.decode(example.ids))
            yield index, Said(f" {', '.join(answers[: 3 if example.task == 'vt_bare' else None])}.", "stop")


def test_cells_are_tasks_at_lengths_and_those_that_take_one_at_depths():
    assert [cell.name for cell in CELLS] == [
        "passkey-1200-0.0000", "passkey-1200-1.0000", "passkey-2000-0.0000", "passkey-2000-1.0000",
        "vt_bare-1200", "vt_bare-2000",
    ]  # fmt: skip
    assert [cell.depth for cell in cells_of([TASKS["passkey"]], [64], ())] == [None]


def test_prompts_replies_and_scores_are_kept(tmp_path):
    results = Grid(str(tmp_path), SETTINGS).answer(CELLS, TASKS, prompting(), Knowing())
    assert [result.score for result in results] == [1.0] * 4 + [0.6] * 2
    kept = json.loads((tmp_path / "cells" / "vt_bare-2000.json").read_text())
    prompts = gzip.decompress((tmp_path / "prompts" / "vt_bare-2000.jsonl.gz").read_bytes()).decode().splitlines()
    for example, line in zip(kept["examples"], prompts, strict=True):
        asked = json.loads(line)
        assert read("vt", asked["turns"][0]["content"]) == example["answers"]
        ids = prompting().tokenizer.encode(f"{asked['turns'][0]['content']} {asked['prefix']}")
        assert hashlib.sha256(ids.astype(np.int32).tobytes()).hexdigest() == example["sha256"] == asked["sha256"]
        assert example["reply"] == f" {', '.join(example['answers'][:3])}."
        assert len(example["needles"]) == 5


def test_a_grid_goes_on_where_it_was_stopped_and_the_answers_are_the_same(tmp_path):
    whole = Grid(str(tmp_path / "whole"), SETTINGS).answer(CELLS, TASKS, prompting(), Knowing())
    folder = str(tmp_path / "parts")
    with pytest.raises(RuntimeError, match="pulled"):
        Grid(folder, SETTINGS).answer(CELLS, TASKS, prompting(), Knowing(after=5))
    done = len(list(Path(folder, "cells").glob("*.json")))
    assert 0 < done < len(CELLS)
    again = Knowing()
    assert Grid(folder, SETTINGS).answer(CELLS, TASKS, prompting(), again) == whole
    assert again.asked == (len(CELLS) - done) * SETTINGS.count
    never = Knowing(after=0)
    assert Grid(folder, SETTINGS).answer(CELLS, TASKS, prompting(), never) == whole


def test_a_grid_lives_in_a_bucket_as_in_a_folder():
    there = Grid("memory://bucket/tasks", SETTINGS).answer(CELLS[:1], TASKS, prompting(), Knowing())
    never = Knowing(after=0)
    assert Grid("memory://bucket/tasks", SETTINGS).answer(CELLS[:1], TASKS, prompting(), never) == there
    assert draw("memory://bucket/tasks/needles.png", there)


def test_a_folder_of_another_grid_is_refused(tmp_path):
    Grid(str(tmp_path), SETTINGS)
    with pytest.raises(UserError, match="seed was 0, is 1"):
        Grid(str(tmp_path), replace(SETTINGS, seed=1))


def test_a_cell_that_cannot_be_asked_keeps_its_reason(tmp_path):
    cells = [Cell("passkey", 40, 0.0), Cell("passkey", 1200, 0.0)]
    first, second = Grid(str(tmp_path), SETTINGS).answer(cells, TASKS, prompting(), Knowing())
    assert "at the least" in first.refused
    assert first.score is None
    assert second.score == 1.0
    told = summarize([first, second])
    assert told["tasks"]["passkey"] == {"40": None, "1200": 100.0}
    assert list(told["refused"]) == ["passkey-40-0.0000"]
    assert told["effective_length"] == 1200
    assert "| passkey |  - | 100.0 |" in table(told)
    assert draw(str(tmp_path / "needles.png"), [first, second])
    assert not draw(str(tmp_path / "none.png"), [first])


@pytest.mark.parametrize(
    ("reply", "answers", "all_of", "any_of"),
    [
        ("The number is 123.", ("123",), 1.0, 1.0),
        ("AbC and\x00x", ("abc", "x", "y"), 2 / 3, 1.0),
        ("", ("1",), 0.0, 0.0),
        ("12", ("123", "4"), 0.0, 0.0),
    ],
)
def test_scores_are_rulers(reply, answers, all_of, any_of):
    assert score(reply, answers, "all") == pytest.approx(all_of)
    assert score(reply, answers, "part") == any_of


def test_the_effective_length_is_the_last_before_the_first_that_falls_short():
    assert effective_length({512: 99.0, 1024: 85.6, 2048: 85.5, 4096: 90.0}) == 1024
    assert effective_length({512: 50.0}) == 0
    assert effective_length({512: 50.0}, threshold=40) == 512


def test_means_are_over_examples_of_all_depths():
    def result(depth: float, *scores: float) -> Result:
        made = tuple(Answered("", 1, (), ("a",), "", "stop", one) for one in scores)
        return Result(Cell("kv", 64, depth), made)

    found = summarize([result(0.0, 1.0, 0.0), result(1.0, 1.0, 1.0)])
    assert found["tasks"]["kv"]["64"] == found["mean"]["64"] == 75.0
    assert found["examples"] == 4


def test_a_server_is_sent_the_ids_that_were_measured_or_the_text():
    examples = list(_examples())

    def reply(prompt: str | list[int]) -> str:
        text = prompt if isinstance(prompt, str) else prompting().tokenizer.decode(prompt)
        return "|".join(read("passkey", text))

    with oracle(reply) as (url, requests):
        for send, sent in (("ids", "ids"), ("text", "text")):
            answerer = ServerAnswerer(ServerOptions(url, "m", send))  # type: ignore[arg-type]
            found = dict(answerer.answers(iter(examples)))
            assert [found[n].text for n in range(3)] == [example.draft.answers[0] for example in examples]
            given = [request["prompt"] for request in requests[-3:]]
            if sent == "ids":
                assert sorted(given) == sorted(example.ids.tolist() for example in examples)
            else:
                assert all(text.endswith("What is the pass key? The pass key is") for text in given)
            assert all(request["max_tokens"] == 16 and request["temperature"] == 0 for request in requests)
        list(ServerAnswerer(ServerOptions(url, "m", "text", chat=True)).answers(examples[:1]))
        assert requests[-1]["path"] == "/v1/chat/completions"
    with pytest.raises(UserError, match="m at http"):
        list(ServerAnswerer(ServerOptions(url, "m", retries=0)).answers(examples[:1]))


def _examples() -> Iterator[Example]:
    from ringworld.evaluate.tasks.task import Ask, make

    for number in range(3):
        yield make(TASKS["passkey"], Ask(600, 0.5, (number,), prompting()))


def test_lengths_are_read_and_wrong_words_refused(capsys):
    assert lengths_of("512,4k, 1M") == [512, 4096, 1 << 20]
    with pytest.raises(UserError, match="'12x' is no length"):
        lengths_of("12x")
    words = ["--checkpoint", "x", "--out", "y"]
    assert main([*words, "--lengths", "512", "--depths", "2"]) == USER_ERROR
    assert "give numbers in 0..1" in capsys.readouterr().err
