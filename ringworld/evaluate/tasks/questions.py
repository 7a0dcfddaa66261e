"""Questions about given texts among other texts of the same file (RULER's question answering, from files of one's own).

A record has `context`, `question` and `answers` (or `answer`), as JSON lines or Parquet. The text that a question
belongs to stands among those of other questions, in random order; the last of these ends where the prompt is full.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ringworld.data.conversations import Turn
from ringworld.data.readers import read_rows
from ringworld.data.sources import SourceFile, expand
from ringworld.errors import UserError
from ringworld.evaluate.tasks import wording
from ringworld.evaluate.tasks.task import Ask, Draft, Growth, Scored

_WHICH, _OTHERS, _PLACE = range(3)  # purposes of random numbers
_COLUMNS = ("context", "question", "answers", "answer")
_LARGEST_ROW = 1 << 26


@dataclass(frozen=True)
class Asked:
    """A question, the text that holds its answer, and what may be said for an answer."""

    context: str
    question: str
    answers: tuple[str, ...]


def read_questions(specs: Sequence[str]) -> list[Asked]:
    """The questions of files, folders, globs and URLs. UserError naming the row for one that is none."""
    found = []
    for item in expand(specs, 0):
        assert isinstance(item, SourceFile)
        for row in read_rows(item, _COLUMNS, _LARGEST_ROW):
            if not isinstance(row.value, Mapping):
                raise UserError(f"questions: {row.source}: {row.reason or 'no object'} {row.detail}")
            found.append(_asked(row.value, row.source))
    if not found:
        raise UserError(f"questions={list(specs)}: no row; give lines of {{context, question, answers}}")
    return found


def _asked(row: Mapping[str, Any], source: str) -> Asked:
    answers = row.get("answers") if row.get("answers") is not None else row.get("answer")
    listed = [answers] if isinstance(answers, str) else answers
    texts = (row.get("context"), row.get("question"))
    if not all(isinstance(text, str) and text.strip() for text in texts) or not _are_texts(listed):
        raise UserError(f"questions: {source}: give texts for context and question, and one or more for answers")
    return Asked(str(texts[0]).strip(), str(texts[1]).strip(), tuple(listed))  # type: ignore[arg-type]


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) and one.strip() for one in value)


@dataclass(frozen=True, eq=False)
class Questions:
    """questions: of which each example asks one. A reply that holds any of its answers is right, as in RULER."""

    questions: Sequence[Asked]
    name: str = "qa"
    room: int = 32
    scored: Scored = "part"
    placed: bool = True

    def growth(self, ask: Ask) -> Growth:
        chosen = self.questions[int(ask.rng(_WHICH).integers(len(self.questions)))]
        texts = sorted({asked.context for asked in self.questions} - {chosen.context})
        texts = [texts[number] for number in ask.rng(_OTHERS).permutation(len(texts)).tolist()]
        words = [text.split(" ") for text in texts]
        ends = np.cumsum([len(said) for said in words])
        whole = int(ends[-1]) if len(ends) else 0

        def draft(pieces: int) -> Draft:
            full = int(np.searchsorted(ends, pieces, "right"))
            others = texts[:full]
            if full < len(words):
                others = [*others, " ".join(words[full][: pieces - (int(ends[full - 1]) if full else 0)])]
            others = [text for text in others if text]
            context, span = _documents(chosen.context, others, self._depth(ask))
            said = wording.ANSWER_FROM.format(context=context, query=chosen.question)
            return Draft((Turn("user", said),), wording.ANSWERED, chosen.answers, context, (span,))

        sample = [f" {word}" for said in words[:16] for word in said[:64]]
        per = float(ask.prompting.count(sample).mean()) if sample else 1.0
        short = (
            f"the questions' texts have {whole} words besides the one that is asked about, and are never repeated: "
            f"give more questions"
        )
        return Growth(draft, 0, whole, max(per, 1.0), short)

    def _depth(self, ask: Ask) -> float:
        return float(ask.rng(_PLACE).random()) if ask.depth is None else ask.depth


def _documents(text: str, others: Sequence[str], depth: float) -> tuple[str, tuple[int, int]]:
    """All texts under their numbers, the one that is asked about where the others' lengths come nearest to a depth; and
    where it stands."""
    before = np.concatenate([np.zeros(1), np.cumsum([len(other) for other in others])])
    at = int(np.argmin(np.abs(before - depth * before[-1])))
    listed = [*others[:at], text, *others[at:]]
    said = [wording.DOCUMENT.format(number=number, text=one) for number, one in enumerate(listed, start=1)]
    begin = sum(len(one) + 2 for one in said[:at])
    return "\n\n".join(said), (begin, begin + len(said[at]))
