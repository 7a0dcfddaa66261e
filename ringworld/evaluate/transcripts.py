"""What a person reads of the questions that were asked: a few of them, in full, as a page of Markdown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ringworld.data.files import join, write_bytes
from ringworld.evaluate.asking import Asked

SHOWN = 6
_ENDED = {"length": ", cut off", "error": ", ended by numbers that are not finite"}


def pick(asked: Sequence[Asked], most: int = SHOWN) -> list[Asked]:
    """Up to `most` of them, by turns from each corpus, those of a corpus spread evenly over the depths."""
    corpora: dict[str, list[Asked]] = {}
    for item in sorted(asked, key=lambda item: item.answer.passage.depth or 0.0):
        corpora.setdefault(item.answer.corpus, []).append(item)
    turns = sorted((turn, name) for name, items in corpora.items() for turn in range(len(items)))
    counts = Counter(name for _, name in turns[:most])
    return [
        corpora[name][(2 * place + 1) * len(corpora[name]) // (2 * count)]
        for name, count in sorted(counts.items())
        for place in range(count)
    ]


def as_value(item: Asked) -> dict[str, Any]:
    """As plain JSON values, under the names that reports know."""
    passage = item.answer.passage
    return {
        "corpus": item.answer.corpus,
        "prompt_tokens": len(item.answer.prompt),
        "depth": passage.depth,
        "excerpt": passage.excerpt,
        "question": passage.question,
        "answer": passage.truth,
        "said": item.said,
        "finish": item.finish,
        "exact": item.exact,
        "f1": item.f1,
    }


def as_markdown(asked: Sequence[Asked], not_asked: str) -> str:
    """A page. What was said stands in indented blocks, where Markdown has no meaning. not_asked: why nothing was."""
    parts = ["# Questions of held-out conversations, and the model's answers"]
    if not_asked:
        parts.append(f"Nothing was asked: {not_asked}.")
    for number, item in enumerate(asked, start=1):
        passage = item.answer.passage
        depth = "" if passage.depth is None else f", depth {passage.depth:.0%}"
        verdict = "exact match" if item.exact else f"token F1 {item.f1:.2f}"
        ended = _ENDED.get(item.finish, "")
        prompt = f"prompt of {len(item.answer.prompt):,} tokens"
        parts.append(f"## {number}. {item.answer.corpus}, {prompt}{depth}: {verdict}{ended}")
        for title, text in (
            ("Before the question" if passage.depth is None else "Around the answer's place", passage.excerpt),
            ("Asked", passage.question),
            ("True answer", passage.truth),
            ("Model's answer", item.said or "(nothing)"),
        ):
            if text:
                parts += [f"{title}:", "\n".join(f"    {line}" for line in text.splitlines())]
    return "\n\n".join(parts) + "\n"


def write(output: str, asked: Sequence[Asked], not_asked: str) -> None:
    """`questions.jsonl`, every question and answer, and `transcript.md`, a few of them to read."""
    lines = "".join(json.dumps(as_value(item)) + "\n" for item in asked)
    write_bytes(join(output, "questions.jsonl"), lines.encode())
    write_bytes(join(output, "transcript.md"), as_markdown(pick(asked), not_asked).encode())
