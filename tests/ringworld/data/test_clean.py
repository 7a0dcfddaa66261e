"""Cleaned text: what two copies of a document have in common, and what each preset does."""

from __future__ import annotations

import itertools
from typing import Any

import ftfy.badness
import pytest

from ringworld.data.clean import PRESETS, Cleaning, clean, cleaning_from, repair, unusable
from ringworld.errors import UserError
from ringworld.strict import from_mapping, to_mapping

NONE = PRESETS["none"]
PARAGRAPH = (
    "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse, and "
    "nothing particular to interest me on shore, I thought I would sail about a little and see the watery part of "
    "the world. It is a way I have of driving off the spleen and regulating the circulation of the blood.\n"
)


def form(text: str) -> str | None:
    return clean(text, NONE, 1).text


def test_copies_that_differ_in_form_become_equal() -> None:
    assert form("\ufeffcafe\u0301\r\nb\x00\x07\rc\n") == form("caf\u00e9\nb\nc") == "caf\u00e9\nb\nc"


def test_any_string_of_json_can_be_stored_as_utf_8() -> None:
    assert (form("a\ud800b") or "").encode() == "a\ufffdb".encode()


def test_tabs_indentation_and_two_blank_lines_stay() -> None:
    assert form("def f():\n\treturn 1\n\n\n    x\n\n\n\n\n\ny") == "def f():\n\treturn 1\n\n\n    x\n\n\ny"


def test_reasons() -> None:
    assert clean(" \x00\n", NONE, 10).reason == "empty"
    assert unusable("nine char", 10) == "too short"
    assert unusable("éééééé", 10) is None


@pytest.mark.parametrize(
    ("broken", "whole"),
    [
        ("The Mona Lisa doesnÃ¢â‚¬â„¢t have eyebrows.", "The Mona Lisa doesn\u2019t have eyebrows."),  # noqa: RUF001
        ("schÃ¶n\nfine\nl\u2019Ã©tÃ©", "schön\nfine\nl\u2019été"),
        ("Fish &amp; chips &eacute;", "Fish & chips é"),
        ("<b>Fish &amp; chips</b>", "<b>Fish &amp; chips</b>"),
        ("a\x1b[31mred\x1b[0m", "ared"),
        ("\u201cquotes\u201d \u2014 and ﬁ ligatures, ＷＩＤＥ", "\u201cquotes\u201d \u2014 and ﬁ ligatures, ＷＩＤＥ"),  # noqa: RUF001
    ],
)
def test_wrongly_decoded_text_is_repaired_and_sound_text_stays(broken: str, whole: str) -> None:
    assert repair(broken) == whole
    assert repair(broken.encode().decode() * 3000) == whole * 3000  # in windows


def test_nothing_that_is_skipped_as_sound_would_ftfy_change() -> None:
    """Its heuristic looks at neighbours: all pairs and all triples around one sign of what is skipped."""
    signs = "\u2013\u2014\u2018\u2019\u201c\u201d\u2026"
    plain = [chr(point) for point in range(0x20, 0x7F)] + ["\t"]
    triples = ["".join(triple) for triple in itertools.product(signs, repeat=3)]
    around = [a + sign + b for sign in signs for a in plain for b in plain]
    assert not [text for text in (*triples, *around) if ftfy.badness.is_bad(text)]


def test_prose_is_repaired_judged_and_masked() -> None:
    made = clean(PARAGRAPH * 1 + "It wasnâ€™t for ahab@pequod.com to say.", PRESETS["prose"], 64)
    assert made.reason is None
    assert made.text == PARAGRAPH + "It wasn\u2019t for <email> to say."
    assert (made.language, made.masked["email"], made.masked["phone"]) == ("en", 1, 0)
    dropped = clean(PARAGRAPH * 20, PRESETS["prose"], 64)
    assert (dropped.text, dropped.reason) == (None, "gopher: characters in duplicate lines")
    assert dropped.detail.endswith("at most 0.2")


def test_code_is_not_judged_as_prose() -> None:
    code = "# Copyright 2020 X\n\nimport os\n\n\ndef f(x):\n    return {'a': x, 'b': 'â€™', 'mail': 'a@b.org'}\n" * 5
    made = clean(code, PRESETS["code"], 64)
    assert made.text is not None
    assert "Copyright" not in made.text
    assert "â€™" in made.text  # may be what the code is about
    assert (made.language, made.masked) == (None, {"key": 0, "email": 5, "ip": 0})
    assert clean(code, PRESETS["prose"], 64).reason is not None


def test_documents_in_other_languages_are_dropped_when_languages_are_chosen() -> None:
    english = cleaning_from({"preset": "prose", "languages": ["en"]})
    german = "Als Gregor Samsa eines Morgens aus unruhigen Träumen erwachte, fand er sich in seinem Bett verwandelt. "
    german += "Er lag auf seinem panzerartig harten Rücken und sah, wenn er den Kopf ein wenig hob, den Bauch."
    made = clean(german, english, 64)
    assert (made.reason, made.detail) == ("language", "de in 100% of it")
    assert clean(PARAGRAPH, english, 64).reason is None


def test_a_preset_is_changed_key_by_key() -> None:
    changed = cleaning_from({"preset": "prose", "mask": [], "rules": {"words": [10, None]}})
    prose = PRESETS["prose"]
    assert changed.mask == ()
    assert changed.repair
    assert changed.rules is not None
    assert prose.rules is not None
    assert (changed.rules.words, changed.rules.mean_word) == ((10, None), prose.rules.mean_word)
    assert cleaning_from({"preset": "prose", "rules": None}).rules is None
    assert cleaning_from("web") == PRESETS["web"]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_being_written_down(name: str) -> None:
    assert from_mapping(Cleaning, to_mapping(PRESETS[name])) == PRESETS[name]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("prosa", r"at\.preset='prosa': allowed: prose, web, code, none"),
        ({"preset": "prose", "rules": {"word": 3}}, r"at\.rules\.word: unknown key \(did you mean words\?\)"),
        ({"cut": ["ads"]}, "cut: unknown 'ads'; allowed: gutenberg, pages"),
        ({"mask": ["names"]}, "mask: unknown 'names'; allowed: key, email, ip, phone"),
        ({"languages": ["en"]}, r"languages=\['en'\] needs identify: true"),
        (3, "at=3: expected one of prose"),
    ],
)
def test_what_cannot_be_is_refused(given: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        cleaning_from(given, "at")
