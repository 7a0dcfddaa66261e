"""The tasks by name; the names themselves are in `names.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ringworld.errors import UserError
from ringworld.evaluate.tasks.counting import CommonWords, FrequentWords
from ringworld.evaluate.tasks.haystack import Haystack
from ringworld.evaluate.tasks.key_values import KeyValues
from ringworld.evaluate.tasks.needles import Cities, Needles, Passkey
from ringworld.evaluate.tasks.questions import Asked, Questions
from ringworld.evaluate.tasks.talk import Talk
from ringworld.evaluate.tasks.task import Task
from ringworld.evaluate.tasks.variables import Variables

ALONE: Mapping[str, Callable[[str], Task]] = {
    "niah_single_1": lambda name: Needles(name, "noise"),
    "niah_multikey_2": lambda name: Needles(name, "needles"),
    "niah_multikey_3": lambda name: Needles(name, "needles", keys="uuids", kind="uuids"),
    "vt": lambda name: Variables(name),
    "vt_bare": lambda name: Variables(name, worked=False),
    "cwe": lambda name: CommonWords(name),
    "cwe_bare": lambda name: CommonWords(name, worked=False),
    "fwe": lambda name: FrequentWords(name),
    "passkey": lambda name: Passkey(name),
    "kv": lambda name: KeyValues(name),
}
IN_DOCUMENTS: Mapping[str, Callable[[str, Haystack], Task]] = {
    "niah_single_2": lambda name, hay: Needles(name, hay),
    "niah_single_3": lambda name, hay: Needles(name, hay, kind="uuids"),
    "niah_multikey_1": lambda name, hay: Needles(name, hay, planted=4),
    "niah_multivalue": lambda name, hay: Needles(name, hay, values=4),
    "niah_multiquery": lambda name, hay: Needles(name, hay, planted=4, asked=4),
    "cities_1_1": lambda name, hay: Cities(name, hay, 1, 1),
    "cities_2_2": lambda name, hay: Cities(name, hay, 2, 2),
    "cities_4_1": lambda name, hay: Cities(name, hay, 4, 1),
    "cities_4_2": lambda name, hay: Cities(name, hay, 4, 2),
    "niah_chat": lambda name, hay: Talk(hay, name),
}
WITH_QUESTIONS: Mapping[str, Callable[[str, Sequence[Asked]], Task]] = {
    "qa": lambda name, questions: Questions(questions, name),
}


def tasks_of(names: Sequence[str], haystack: Haystack | None, questions: Sequence[Asked]) -> list[Task]:
    """UserError for a task that needs documents or questions which are not given."""
    tasks: list[Task] = []
    for name in names:
        if name in ALONE:
            tasks.append(ALONE[name](name))
        elif name in IN_DOCUMENTS:
            if haystack is None:
                raise UserError(
                    f"task {name} hides its needles in documents: give --haystack FILES, or --tokens of a run"
                )
            tasks.append(IN_DOCUMENTS[name](name, haystack))
        else:
            if not questions:
                raise UserError(f"task {name} asks about given texts: give --questions FILE")
            tasks.append(WITH_QUESTIONS[name](name, questions))
    return tasks
