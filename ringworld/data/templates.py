"""Turns to token ids with the marks of their answers: by LWM's plain template, or by a Jinja template of Hugging Face.

- One object serves training (`encode`: a whole conversation) and generation (`prompt`: one that waits for the
  assistant). The ids of a prompt are the first ids of every conversation that goes on from it, or the conversation is
  refused: what a model is asked is what it was trained on, token by token.
- A template makes parts: stretches that are given or are answers, cut where an answer begins and where it ends. Each is
  encoded by itself, so no token lies half in an answer. An answer begins where its prompt ends and includes the token
  that ends the turn; a Jinja template may mark answers itself, by `{% generation %}`.
- What a turn says is only ever text: a special token that it spells gets the ids of its letters.
- A Jinja template is a stranger's program. transformers renders it in an immutable sandbox, and what it makes of a
  conversation is checked: nothing that a person asks is left out, no answer is changed, each ends with a special token.
- The template belongs to the tokenizer and travels in its artifact: `template_of`.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from ringworld.data.conversations import Refused, Turn
from ringworld.data.files import read_bytes
from ringworld.data.special_tokens import Atoms, Span, SpecialTokens
from ringworld.data.tokenizers import Tokenizer
from ringworld.errors import UserError

OWN, PLAIN = "own", "plain"
REASONS = ("template refuses", "no place for role", "prompt is no prefix", "answer changed", "no end of turn")

# What LWM's prompts begin with (scripts/eval_needle.py of its repository) unless a record brings its own system turn.
LWM_SYSTEM = "You are a helpful assistant."

_FILE = "chat_template.json"
_REMEDY = "and give it as tokenizer.template, or take tokenizer.template=plain"
_RENDERING = threading.Lock()  # transformers keeps the marks of a rendering in the template, which it shares
# Llama 3's templates write a date, by default this one. A fixed date keeps prompts the same from day to day.
_DATE = "26 Jul 2024"
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PROBE = (
    Turn("user", "Which is it?"),
    Turn("assistant", "The second."),
    Turn("user", "Since when?"),
    Turn("assistant", "Always."),
)


@dataclass(frozen=True)
class Part:
    """A stretch of a rendered conversation. pieces: texts, and ids of special tokens. answer: the loss counts it."""

    pieces: tuple[str | int, ...]
    answer: bool


@dataclass(frozen=True, eq=False)
class Encoded:
    """ids int32 [tokens]; answer bool [tokens]: True for the tokens of answers and the special token after each."""

    ids: np.ndarray
    answer: np.ndarray


class Template(ABC):
    """How the turns of conversations become token ids of one tokenizer.

    name: `plain` or `jinja`. hash: sha256 (64 hexadecimal digits) of all that decides what it writes.
    """

    name: str
    hash: str

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @abstractmethod
    def ends(self) -> frozenset[int]:
        """The ids that end an answer. UserError for a template that ends none, or cannot be rendered."""

    @abstractmethod
    def parts(self, turns: Sequence[Turn], waiting: bool = False) -> list[Part] | Refused:
        """What is written for a conversation that is whole, or that waits for the assistant."""

    @abstractmethod
    def check(self) -> None:
        """UserError for a template that nothing can be trained with: broken, without end of turn, or of another day."""

    def encode(self, conversations: Iterable[Sequence[Turn]]) -> list[Encoded | Refused]:
        """The ids of each whole conversation and which of them are answers; or one of `REASONS`."""
        rendered = [self.parts(turns) for turns in conversations]
        encoded = iter(self._encoded([parts for parts in rendered if not isinstance(parts, Refused)]))
        return [parts if isinstance(parts, Refused) else next(encoded) for parts in rendered]

    def prompt(self, turns: Sequence[Turn]) -> np.ndarray:
        """int32 [tokens] of a conversation that ends with the user's turn.

        UserError where the template refuses it or has no place for one of its turns.
        """
        parts = self.parts(turns, waiting=True)
        if isinstance(parts, Refused):
            raise UserError(parts.detail)
        return self._encoded([parts])[0].ids

    def _encoded(self, conversations: Sequence[Sequence[Part]]) -> list[Encoded]:
        texts = _Texts(self._tokenizer, self._begins_anew())
        for parts in conversations:
            before: str | int | None = None
            for piece in (piece for part in parts for piece in part.pieces):
                if isinstance(piece, str):
                    texts.add(piece, before)
                before = piece
        found = iter(texts.ids())
        encoded = []
        for parts in conversations:
            ids, answer = [np.zeros(0, np.int32)], [np.zeros(0, bool)]
            for part in parts:
                for piece in part.pieces:
                    ids.append(next(found) if isinstance(piece, str) else np.array([piece], np.int32))
                    answer.append(np.full(len(ids[-1]), part.answer))
            encoded.append(Encoded(np.concatenate(ids), np.concatenate(answer)))
        return encoded

    def _begins_anew(self) -> bool:
        """Whether the tokenizer treats text after a special token as it treats the beginning of a text."""
        return True


class PlainTemplate(Template):
    """LWM's template: `You are a helpful assistant. USER: question ASSISTANT: answer` end-of-text `USER: ...`."""

    name = PLAIN
    hash = hashlib.sha256(f"{LWM_SYSTEM} USER: ASSISTANT:".encode()).hexdigest()

    def ends(self) -> frozenset[int]:
        return frozenset({self._tokenizer.eos_id})

    def check(self) -> None:
        """Nothing can be wrong with it."""

    def parts(self, turns: Sequence[Turn], waiting: bool = False) -> list[Part]:
        parts: list[Part] = []
        opening = "" if turns and turns[0].role == "system" else f"{LWM_SYSTEM} "
        for turn in turns:
            if turn.role == "system":
                opening = f"{turn.text} "
            elif turn.role == "user":
                parts.append(Part((f"{opening}USER: {turn.text} ASSISTANT:",), answer=False))
                opening = ""
            else:
                parts.append(Part((f" {turn.text}", self._tokenizer.eos_id), answer=True))
        return parts


class JinjaTemplate(Template):
    """A chat template in Jinja, of the tokenizer that it writes special tokens of."""

    name = "jinja"

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._source = source
        self._specials = SpecialTokens(tokenizer)
        self._marks = _GENERATION.search(source) is not None
        self.hash = hashlib.sha256(source.encode()).hexdigest()

    def ends(self) -> frozenset[int]:
        found = self.parts(_PROBE)
        if isinstance(found, Refused):
            found = self.parts(_PROBE[:2])  # for templates that write earlier turns otherwise than the last
        if isinstance(found, Refused):
            raise UserError(f"{found.detail}; repair a copy of it, {_REMEDY}")
        specials = [[piece for piece in part.pieces if isinstance(piece, int)] for part in found if part.answer]
        return frozenset(ids[-1] for ids in specials if ids)

    def check(self) -> None:
        if "strftime_now" in self._source and "date_string" not in self._source:
            raise UserError(
                "the chat template writes the day's date (strftime_now), so a prompt would differ from what was "
                f"trained on; write a fixed date into a copy of it, {_REMEDY}"
            )
        if not self.ends():
            raise UserError(
                f"the chat template has the word {{% generation %}} and marks no answer by it; repair a copy, {_REMEDY}"
            )

    def parts(self, turns: Sequence[Turn], waiting: bool = False) -> list[Part] | Refused:
        atoms = self._specials.among([turn.text for turn in turns])
        messages = [{"role": turn.role, "content": atoms.hide(turn.text)} for turn in turns]
        try:
            whole, marks = self._render(atoms, messages, waiting)
            _check_all_there(whole, messages)
            try:
                edges, answers = self._answers(atoms, messages, whole, marks)
            except _Unfit:
                # Nothing is trained on a conversation that goes on from this one; who only asks gets what is written.
                if not waiting:
                    raise
                edges, answers = [], []
        except _Unfit as unfit:
            return unfit.refused
        cuts = sorted({0, len(whole), *edges, *(edge for span in answers for edge in span)})
        return [
            Part(atoms.pieces(whole[start:end]), any(a <= start and end <= b for a, b in answers))
            for start, end in pairwise(cuts)
        ]

    def _answers(
        self, atoms: Atoms, messages: list[dict[str, str]], whole: str, marks: list[Span]
    ) -> tuple[list[int], list[Span]]:
        """Where the prompts of a rendered conversation end, and the stretches that are its answers."""
        given = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        begins = []
        for number in given:
            prompt, before = self._render(atoms, messages[:number], waiting=True)
            if not whole.startswith(prompt) or before != [mark for mark in marks if mark[1] <= len(prompt)]:
                raise _Unfit(
                    "prompt is no prefix",
                    f"asks for turn {number + 1} by a prompt that the whole conversation does not begin with",
                )
            begins.append(len(prompt))
        answers = []
        for number, begin, limit in zip(given, begins, [*begins, len(whole)][1:], strict=True):
            said = messages[number]["content"].strip()
            at = whole.find(said, begin, limit)
            if at < 0:
                raise _Unfit("answer changed", f"does not repeat turn {number + 1}, the assistant's, word for word")
            spoken = at + len(said)
            end = atoms.end_of_next(whole, spoken, limit)
            if end is None:
                raise _Unfit("no end of turn", f"writes no special token after turn {number + 1}, the assistant's")
            if self._marks:
                # Whatever is marked, what the prompt has is not the model's to say; and the end of the turn is.
                own = [mark for mark in marks if begin < mark[1] <= limit]
                answers += [(max(start, begin), end if spoken <= stop < end else stop) for start, stop in own]
            else:
                answers.append((begin, end))
        return begins, answers

    def _render(self, atoms: Atoms, messages: list[dict[str, str]], waiting: bool) -> tuple[str, list[Span]]:
        """What is written, a character for each special token, and the stretches that the template marks."""
        import jinja2
        from transformers.utils.chat_template_utils import render_jinja_template

        # date_string: without it, a template may ask for the day.
        known: dict[str, Any] = {
            "bos_token": self._specials.begin,
            "eos_token": self._specials.end,
            "date_string": _DATE,
        }
        try:
            with _RENDERING:
                found: Any = render_jinja_template(
                    [messages],
                    chat_template=self._source,
                    add_generation_prompt=waiting,
                    return_assistant_tokens_mask=self._marks,
                    **known,
                )
        except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as wrong:
            raise _Unfit("template refuses", f"refuses the conversation{_line_of(wrong)}: {wrong}") from wrong
        [rendered], marks = found
        return atoms.mark(rendered, marks[0] if self._marks else ())

    def _begins_anew(self) -> bool:
        return self._specials.begins_anew


def template_of(tokenizer: Tokenizer) -> Template:
    """The template that a tokenizer brings, else the plain one."""
    source = source_of(tokenizer)
    return PlainTemplate(tokenizer) if source is None else JinjaTemplate(source, tokenizer)


def source_of(tokenizer: Tokenizer) -> str | None:
    """The Jinja source that a tokenizer brings; of several by name, the one named default."""
    if _FILE not in tokenizer.files:
        return None
    told = json.loads(tokenizer.files[_FILE])
    return told.get("default") if isinstance(told, Mapping) else told


def with_template(tokenizer: Tokenizer, choice: str) -> Tokenizer:
    """The tokenizer with the template chosen: `own` (what it brings, if any), `plain`, or the place of a Jinja file.

    UserError for a file that is not there, is broken, or could not be trained with. What the tokenizer brings is not
    checked here: texts can be trained on without it.
    """
    files = dict(tokenizer.files)
    if choice == PLAIN:
        files.pop(_FILE, None)
    elif choice != OWN:
        try:
            files[_FILE] = json.dumps(read_bytes(choice).decode()).encode()
            template_of(replace(tokenizer, files=files)).check()
        except (OSError, ValueError) as wrong:
            raise UserError(
                f"tokenizer.template={choice!r}: neither {OWN}, {PLAIN} nor a file that can be read ({wrong})"
            ) from wrong
        except UserError as wrong:
            raise UserError(f"tokenizer.template={choice}: {wrong}") from None
    return replace(tokenizer, files=files)


class _Unfit(Exception):
    """A template that cannot be used for a conversation."""

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(reason)
        self.refused = Refused(reason, f"the chat template {what}"[:500])


class _Texts:
    """Texts that stand somewhere in a conversation, to the ids that they have there."""

    def __init__(self, tokenizer: Tokenizer, begins_anew: bool) -> None:
        self._tokenizer, self._begins_anew = tokenizer, begins_anew
        self._given: list[tuple[str, str, bool]] = []  # the text, what is encoded, whether after a newline
        # SentencePiece puts a space before each text: one that goes on from others gives up its own.
        whole, first, second, newline = tokenizer.encode_batch(["a b", "a", "b", "\n"])
        self._spaced = np.array_equal(whole, np.concatenate([first, second]))
        self._newline = newline

    def add(self, text: str, before: str | int | None) -> None:
        goes_on = before is not None and (isinstance(before, str) or not self._begins_anew)
        if not self._spaced or not goes_on:
            self._given.append((text, text, False))
        elif text.startswith(" ") and len(text) > 1:
            self._given.append((text, text[1:], False))
        else:
            self._given.append((text, f"\n{text}", True))

    def ids(self) -> list[np.ndarray]:
        found = self._tokenizer.encode_batch([encoded for _, encoded, _ in self._given])
        size = len(self._newline)
        for index, (text, _, after) in enumerate(self._given):
            if after and np.array_equal(found[index][:size], self._newline):
                found[index] = found[index][size:]
            elif after:
                found[index] = self._tokenizer.encode(text)
        return found


def _check_all_there(whole: str, messages: Sequence[Mapping[str, str]]) -> None:
    for number, message in enumerate(messages, start=1):
        # Templates may leave parts of earlier answers out (a model's thinking), but never what it is asked.
        if message["role"] != "assistant" and message["content"].strip() not in whole:
            raise _Unfit(
                "no place for role",
                f"leaves out turn {number}, the {message['role']}'s: it has no place for that role; put it into a "
                f"user's turn",
            )


def _line_of(error: Exception) -> str:
    """The line of the template where it went wrong, where that is known."""
    line = getattr(error, "lineno", None)
    if line is None:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
        line = lines[-1] if lines else None
    return "" if line is None else f", line {line}"
