"""Every task: its answers can be read from the prompt, which has the length and depth that were asked for."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ringworld.errors import UserError
from ringworld.evaluate.tasks import registry, wording
from ringworld.evaluate.tasks.fitting import largest
from ringworld.evaluate.tasks.names import ALONE, GROUPS, IN_DOCUMENTS, WITH_QUESTIONS, names_of
from ringworld.evaluate.tasks.task import Ask, Example, Refused, make
from tests.ringworld.evaluate.tasks.readers import read
from tests.ringworld.evaluate.tasks.world import prompting, tasks

# A prompt ends where one more piece would be too much; most pieces are words of a few tokens.
SLACK = {"kv": 120, "niah_multikey_3": 60, "fwe": 40}
ALL = sorted(tasks())


def build(name: str, length: int, depth: float | None = 0.5, seed: int = 0, byte: bool = False, **how) -> Example:
    task = tasks()[name]
    return make(task, Ask(length, depth if task.placed else None, (seed,), prompting(byte, **how)))


@pytest.mark.parametrize("name", ALL)
def test_the_answers_stand_in_the_prompt_which_fills_its_length(name):
    for byte, length in ((False, 3000), (True, 8192)):
        for seed in range(3):
            example = build(name, length, seed=seed, byte=byte)
            text = prompting(byte).tokenizer.decode(example.ids)
            assert sorted(read(name, text)) == sorted(example.draft.answers)
            used = len(example.ids) + example.room
            assert length - SLACK.get(name, 16) * (2 if byte else 1) <= used <= length


@pytest.mark.parametrize("name", [name for name in ALL if tasks()[name].placed])
def test_a_needle_lies_at_its_depth_in_tokens(name):
    for depth in (0.0, 0.3, 1.0):
        example = build(name, 4096, depth)
        assert example.needles[0] == pytest.approx(depth, abs=0.06)
        begin, end = example.draft.needles[0]
        assert example.draft.answers[0] in example.draft.context[begin:end]
        whole, before = prompting().count([example.draft.context, example.draft.context[:begin]])
        [own] = prompting().count([example.draft.context[begin:end]])
        assert example.needles[0] == pytest.approx(before / (whole - own), abs=1e-3)


def test_needles_stand_after_whole_sentences_and_in_lines_of_their_own():
    single = build("niah_single_2", 3000).draft
    begin, end = single.needles[0]
    assert re.search(r"[.!?] $", single.context[:begin])
    assert single.context[end] == " "
    for name in ("niah_single_1", "niah_multikey_2", "passkey"):
        draft = build(name, 3000).draft
        begin, end = draft.needles[0]
        assert draft.context[begin - 1] == draft.context[end] == "\n"


def test_prompts_read_as_rulers_do():
    said = build("niah_single_1", 1024).draft
    lines = said.turns[0].text.splitlines()
    assert lines[0].startswith("A special magic number is hidden within the following text. Make sure to memorize it. ")
    assert lines[1] == wording.NOISE
    assert re.fullmatch(r"What is the special magic number for \S+ mentioned in the provided text\?", lines[-1])
    several = build("niah_multiquery", 3000).draft
    assert re.search(
        r"\nWhat are all the special magic numbers for \S+, \S+, \S+, and \S+ mentioned", several.turns[0].text
    )
    assert several.prefix.endswith("mentioned in the provided text are")
    tracked = build("vt_bare", 3000).draft
    assert re.search(r"There and back again\.\n VAR [A-Z]{5} = \d{5} The grass", tracked.turns[0].text)
    assert build("vt", 3000).draft.turns[0].text.count("they are:") == 1


def test_the_same_seed_makes_the_same_prompt_and_another_another():
    for name in ALL:
        one, same, other = (build(name, 3000, seed=seed) for seed in (1, 1, 2))
        assert one.sha256 == same.sha256 != other.sha256
        assert np.array_equal(one.ids, same.ids)


def test_a_beginning_id_and_a_chat_template_are_counted():
    plain, begun, chat = build("passkey", 1000), build("passkey", 1000, begin=398), build("passkey", 1000, chat=True)
    assert begun.ids[0] == 398
    for example in (plain, begun, chat):
        assert 1000 - 16 <= len(example.ids) + example.room <= 1000
    assert prompting().tokenizer.decode(chat.ids).startswith("You are a helpful assistant. USER: There is an important")
    assert prompting().tokenizer.decode(chat.ids).endswith("ASSISTANT:")


def test_a_talk_says_its_needle_in_one_turn_of_the_user():
    for depth in (0.0, 0.2, 0.9, 1.0):
        turns = build("niah_chat", 4096, depth).draft.turns
        assert [turn.role for turn in turns] == ["user", "assistant"] * (len(turns) // 2) + ["user"]
        assert sum("One of the special magic" in turn.text for turn in turns) == 1


@pytest.mark.parametrize("name", ["niah_single_2", "qa", "niah_chat"])
def test_a_length_that_the_documents_cannot_fill_is_refused(name):
    with pytest.raises(Refused, match="never repeated"):
        build(name, 1 << 17)


@pytest.mark.parametrize("name", ALL)
def test_a_length_that_holds_no_question_is_refused(name):
    with pytest.raises(Refused, match=r"at the least|cannot be told"):
        build(name, 100)


def test_every_name_has_a_task():
    assert (tuple(registry.ALONE), tuple(registry.IN_DOCUMENTS)) == (ALONE, IN_DOCUMENTS)
    assert tuple(registry.WITH_QUESTIONS) == WITH_QUESTIONS
    assert {name for group in GROUPS.values() for name in group} == {*ALONE, *IN_DOCUMENTS, *WITH_QUESTIONS}


def test_tasks_are_found_by_name_and_need_what_they_need():
    assert set(names_of(["ruler"], documents=False, questions=False)) == {
        "niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe",
    }  # fmt: skip
    assert len(names_of(["ruler", "vt"], documents=True, questions=True)) == 12
    with pytest.raises(UserError, match="did you mean niah_single_1"):
        names_of(["niah_singel_1"], documents=True, questions=True)
    with pytest.raises(UserError, match="give --haystack"):
        registry.tasks_of(["niah_single_2"], None, [])
    with pytest.raises(UserError, match="give --questions"):
        registry.tasks_of(["qa"], None, [])


@pytest.mark.parametrize("per", [0.1, 3.0, 100.0])
def test_the_largest_that_fits_is_found_with_few_looks(per):
    sizes = np.cumsum(np.random.default_rng(0).integers(1, 6, 5000))
    for budget in (1, 40, 7000, int(sizes[-1]), 10**6):
        if budget < sizes[0]:
            continue
        looks = []

        def size(pieces: int, looks=looks) -> int:
            looks.append(pieces)
            return int(sizes[pieces])

        found = largest(size, 0, 4999, budget, per)
        assert sizes[found] <= budget
        assert found == 4999 or sizes[found + 1] > budget
        assert len(looks) < 30
