"""Turns to the tokens of a prompt: by the Jinja template that came with a tokenizer, or by LWM's plain one.

A template is rendered by transformers, in Jinja's immutable sandbox. What a person says is only ever text: where a turn
spells a special token, it gets the ids of its letters, and the template's own special tokens get theirs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ringworld.data.conversations import Turn, encode, plain
from ringworld.data.tokenizers import FastTokenizer, Tokenizer
from ringworld.errors import UserError
from ringworld.generate.checkpoint import Checkpoint

ROLES = ("system", "user", "assistant")
# A character of Unicode's last private plane stands in a rendered text for one special token that a turn spells.
_STAND_IN = 0x100000


class Prompts:
    """How texts and conversations become prompts of one model."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tokenizer, self._begin = checkpoint.tokenizer, checkpoint.begin
        self._template = _Template(checkpoint.template, checkpoint.tokenizer) if checkpoint.template else None

    def of_text(self, text: str) -> np.ndarray:
        """int32 [tokens] of a text to go on from; the beginning's id first where the model was trained so."""
        ids = self._tokenizer.encode(text)
        return ids if self._begin is None else np.concatenate([np.array([self._begin], np.int32), ids])

    def of_turns(self, turns: Sequence[Turn], plainly: bool = False) -> np.ndarray:
        """int32 [tokens] of a conversation that waits for the assistant. `plainly`: never by the model's own template.

        UserError where the turns cannot be answered, or the template has no place for one of them.
        """
        _check(turns)
        if self._template is not None and not plainly:
            return self._template.ids(turns)
        return self.of_parts(turns)

    def of_parts(self, turns: Sequence[Turn]) -> np.ndarray:
        ids = encode(self._tokenizer, [plain(turns)])[0].ids
        return ids if self._begin is None else np.concatenate([np.array([self._begin], np.int32), ids])


def _check(turns: Sequence[Turn]) -> None:
    if not turns:
        raise UserError("the conversation has no turns; give a user's")
    for number, turn in enumerate(turns, start=1):
        if turn.role not in ROLES:
            raise UserError(f"turn {number} has role {turn.role!r}; known: {', '.join(ROLES)}")
        if turn.role == "system" and number > 1:
            raise UserError(f"turn {number} is the system's; it may only be the first")
        if not turn.text and turn.role == "user":
            raise UserError(f"turn {number}, the user's, says nothing")
    if turns[-1].role != "user":
        raise UserError(
            f"the conversation ends with a turn of the {turns[-1].role}; it must end with the user's, for the "
            f"assistant to answer"
        )


class _Template:
    """A Jinja chat template with the tokenizer that it came with."""

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        self._source, self._tokenizer = source, tokenizer

    def ids(self, turns: Sequence[Turn]) -> np.ndarray:
        rendered = self._render([{"role": turn.role, "content": self._masked(turn.text)} for turn in turns])
        for number, turn in enumerate(turns, start=1):
            # Templates may leave parts of earlier answers out (a model's thinking), but never what it is asked.
            if turn.role != "assistant" and self._masked(turn.text).strip() not in rendered:
                raise UserError(
                    f"the model's chat template leaves out turn {number}, the {turn.role}'s: it has no place for that "
                    f"role; put it into a user's turn"
                )
        pieces = []
        for piece in re.split(f"([{chr(_STAND_IN)}-{chr(_STAND_IN + max(len(self._specials), 1) - 1)}])", rendered):
            if len(piece) == 1 and (index := ord(piece) - _STAND_IN) >= 0:
                pieces.append(self._tokenizer.encode(self._specials[index]))
            elif piece:
                pieces.append(np.array(self._model.encode(piece, add_special_tokens=False).ids, np.int32))
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int32)

    def _render(self, messages: list[dict[str, str]]) -> str:
        import jinja2
        from transformers.utils.chat_template_utils import render_jinja_template

        begin = self._tokenizer.bos_id
        known: dict[str, Any] = {
            "bos_token": "" if begin is None else self._name(begin),
            "eos_token": self._name(self._tokenizer.eos_id),
        }
        try:
            rendered: Any = render_jinja_template(
                [messages], chat_template=self._source, add_generation_prompt=True, **known
            )
        except jinja2.TemplateError as refused:
            raise UserError(f"the model's chat template refuses the conversation: {refused}") from refused
        texts = rendered[0] if isinstance(rendered, tuple) else rendered
        return texts[0]

    def _masked(self, text: str) -> str:
        for index, special in enumerate(self._specials):
            text = text.replace(special, chr(_STAND_IN + index))
        return text

    def _name(self, token: int) -> str:
        return self._model.id_to_token(token) or ""

    @cached_property
    def _model(self) -> Any:
        """The tokenizer's model, reading special tokens as such."""
        from tokenizers import Tokenizer as Model

        assert isinstance(self._tokenizer, FastTokenizer)  # no other kind comes with a template
        model = Model.from_buffer(self._tokenizer.files["tokenizer.json"])
        model.no_truncation()
        model.no_padding()
        return model

    @cached_property
    def _specials(self) -> list[str]:
        """Special tokens, longest first, so that none is taken for a part of another."""
        added = self._model.get_added_tokens_decoder().values()
        return sorted((token.content for token in added if token.special and token.content), key=len, reverse=True)
