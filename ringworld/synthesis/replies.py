"""What a model said, read as one question and one answer, or refused with a reason that can be counted.

Known are the lines that the prompt asks for, `Question: ...` and `Answer: ...`, with numbers, in bold, as headings,
with the labels in some other languages, and JSON objects with the two; in a fence or not, and after a model's thinking.
What follows an answer after a blank line is talk and is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from ringworld.synthesis.prompts import BEGIN, EXAMPLE, OPENING, RULES
from ringworld.synthesis.records import Pair

REASONS = (
    "empty reply",
    "prompt repeated",
    "cut off",
    "no question",
    "several questions",
    "no answer",
    "too long",
)

_MOST = 1000  # characters of a question or an answer: more is a passage
_SHOWN = 120

_THOUGHT = re.compile(r"(?is)\A.*</\s*(think|thinking|thought|reasoning)\s*>")
_THINKING = re.compile(r"(?is)<\s*(?:think|thinking|thought|reasoning)\s*>.*")
_FENCE = re.compile(r"(?m)^[ \t]*(?:```|~~~)[^\n]*$")
# Models that write in the passage's language translate the labels too: to German, French, Spanish, Italian, Portuguese,
# Dutch, Russian, Chinese and Japanese.
_QUESTIONS = "|".join(
    (
        "(?i:questions?|frage|pregunta|domanda|pergunta|vraag)",
        "Q",
        "\u0412\u043e\u043f\u0440\u043e\u0441",
        "\u95ee\u9898|\u554f\u984c|\u8cea\u554f",
    )
)
_ANSWERS = "|".join(
    (
        "(?i:answers?|antwort|r[e\u00e9]ponse|respuesta|risposta|resposta|antwoord)",
        "A",
        "\u041e\u0442\u0432\u0435\u0442",
        "\u7b54\u6848|\u7b54\u3048|\u56de\u7b54",
    )
)
_BULLET = r"[ \t>#*_\u2022-]*(?:\(?\d+[.):]?[ \t]*)?[*_]*"
_COLON = r"[ \t]*(?:\#?\d+)?[ \t]*[*_]*[ \t]*[:\uff1a][*_]*"
_LABEL = re.compile(
    rf"^{_BULLET}(?P<question>{_QUESTIONS}){_COLON}"
    rf"|(?:^{_BULLET}|(?<=[?\uff1f\"'\u201d*_])[ \t]+[*_]*)(?P<answer>{_ANSWERS}){_COLON}",
    re.MULTILINE,
)
_MARK = re.compile(r"[?\uff1f\u061f]")
_QUOTED = re.compile(
    r"\"[^\"]*\"|\u201c[^\u201d]*\u201d|\u201e[^\u201c]*\u201c|\u00ab[^\u00bb]*\u00bb|`[^`]*`|\u300c[^\u300d]*\u300d"
)
_WRAPS = (
    *((mark, mark) for mark in ("**", "__", "``", '"', "`", "*")),
    ("\u201c", "\u201d"),
    ("\u00ab", "\u00bb"),
    ("\u300c", "\u300d"),
    ("<", ">"),
)
_BLANK = re.compile(r"\n[ \t]*\n")


@dataclass(frozen=True)
class Unparsed:
    """Why a reply is no pair: one of `REASONS`, and what was found, for a person."""

    reason: str
    detail: str = ""


def parse(text: str, finish: str = "stop") -> Pair | Unparsed:
    """The pair of a reply. finish: as in `Reply`; what ended at the limit of its length is refused.

    The same pair said again is one; two different questions, or two marks of a question outside of quotations, are
    refused: which of them the answer belongs to is anybody's guess.
    """
    if not text.strip():
        return Unparsed("empty reply")
    said = _FENCE.sub("", _THINKING.sub("", _THOUGHT.sub("", text))).strip()
    if (repeated := _repeated(said)) is not None:
        return Unparsed("prompt repeated", repeated)
    if finish == "length":
        return Unparsed("cut off", f"... {text.strip()[-_SHOWN:]}")
    pairs = list(dict.fromkeys(_from_json(said) or _from_labels(said)))
    if not pairs:
        return Unparsed("no question", said[:_SHOWN] or "thinking without an end")
    questions = list(dict.fromkeys(question for question, _ in pairs if question))
    if not questions:
        return Unparsed("no question", said[:_SHOWN])
    if len(questions) > 1 or len(_MARK.findall(_QUOTED.sub("", questions[0]))) > 1:
        return Unparsed("several questions", " | ".join(questions)[: 2 * _SHOWN])
    answers = [answer for question, answer in pairs if question and answer]
    if not answers:
        return Unparsed("no answer", questions[0][:_SHOWN])
    pair = Pair(questions[0], answers[0])
    longest = max(pair.question, pair.answer, key=len)
    if len(longest) > _MOST:
        return Unparsed("too long", f"{len(longest)} characters: {longest[:_SHOWN]}")
    return pair


def _repeated(said: str) -> str | None:
    """A sentence of the prompt that is said again."""
    plain = " ".join(said.split())
    given = (OPENING, BEGIN, *RULES, *EXAMPLE.splitlines()[:1])
    return next((sentence for sentence in given if sentence in plain), None)


def _from_json(said: str) -> list[tuple[str, str]]:
    return [
        (_cleaned(fields["question"]), _cleaned(fields.get("answer", "")))
        for found in _objects(said)
        if "question" in (fields := {str(name).strip().lower(): value for name, value in found.items()})
    ]


def _objects(said: str) -> Iterator[Mapping[str, Any]]:
    """JSON objects that stand in a text, in a list or not, one after another."""
    decoder = json.JSONDecoder(strict=False)  # models write line ends into strings
    at = 0
    while (at := said.find("{", at)) >= 0:
        try:
            found, at = decoder.raw_decode(said, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        yield found


def _from_labels(said: str) -> list[tuple[str, str]]:
    """What stands after each label, as pairs; an answer without a question before it has none."""
    labels = list(_LABEL.finditer(said))
    pairs: list[tuple[str, str]] = []
    for label, after in zip_longest(labels, labels[1:]):
        value = _cleaned(said[label.end() : after.start() if after else len(said)])
        if label["question"]:
            pairs.append((value, ""))
        elif pairs and not pairs[-1][1]:
            pairs[-1] = (pairs[-1][0], value)
        elif not pairs:
            pairs.append(("", value))
    return pairs


def _cleaned(value: Any) -> str:
    """One line, without marks of quotation or emphasis around the whole; empty for what has no letter or digit."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return ""
    text = " ".join(_BLANK.split(value.strip(), maxsplit=1)[0].split())
    while text != (bare := _unwrapped(text)):
        text = bare
    return text if any(map(str.isalnum, text)) else ""


def _unwrapped(text: str) -> str:
    for opens, closes in _WRAPS:
        inner = text[len(opens) : -len(closes)]
        if text.startswith(opens) and text.endswith(closes) and inner and opens not in inner and closes not in inner:
            return inner.strip()
    return text
