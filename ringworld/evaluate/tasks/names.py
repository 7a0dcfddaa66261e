"""The names of the tasks, and RULER's threshold, for who must know them without JAX: a curriculum is checked where
nothing is asked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from ringworld.errors import UserError

ALONE = (
    "niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "vt_bare", "cwe", "cwe_bare", "fwe", "passkey", "kv",
)  # fmt: skip
IN_DOCUMENTS = (
    "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery", "cities_1_1",
    "cities_2_2", "cities_4_1", "cities_4_2", "niah_chat",
)  # fmt: skip
WITH_QUESTIONS = ("qa",)
RULER = (
    "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3",
    "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa",
)  # fmt: skip
# Llama-2-7B (chat) at 4K in RULER's table (arXiv 2404.06654), in percent: what a model must reach to be said to use a
# length.
RULER_THRESHOLD = 85.6
GROUPS: Mapping[str, tuple[str, ...]] = {"ruler": RULER, "all": (*ALONE, *IN_DOCUMENTS, *WITH_QUESTIONS)}


def names_of(given: Sequence[str], documents: bool, questions: bool) -> list[str]:
    """Single tasks of names and groups, each once. A group leaves out what there is no haystack or file for; a name
    does not. UserError for an unknown one, with the nearest that is known."""
    usable = {*ALONE, *(IN_DOCUMENTS if documents else ()), *(WITH_QUESTIONS if questions else ())}
    found: dict[str, None] = {}
    for name in given:
        for one in [one for one in GROUPS[name] if one in usable] if name in GROUPS else [name]:
            found.setdefault(one)
    for name in found:
        if name not in GROUPS["all"]:
            known = [*GROUPS, *GROUPS["all"]]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(f"tasks: {name} is unknown{hint}; known: {', '.join(known)}")
    return list(found)
