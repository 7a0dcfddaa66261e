"""Turns to the tokens of a prompt: by the template that came with a model's tokenizer, or by LWM's plain one.

The template is the one that trained the model: `ringworld.data.templates`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ringworld.data.conversations import Turn
from ringworld.data.templates import Encoded, JinjaTemplate, PlainTemplate, Template
from ringworld.errors import UserError
from ringworld.generate.checkpoint import Checkpoint
from ringworld.vision.stream import OPENING, VisionTemplate, spliced

ROLES = ("system", "user", "assistant")


class Prompts:
    """How texts and conversations become prompts of one model."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tokenizer, self._begin = checkpoint.tokenizer, checkpoint.begin
        self._plain = PlainTemplate(checkpoint.tokenizer)
        self._template = JinjaTemplate(checkpoint.template, checkpoint.tokenizer) if checkpoint.template else None

    def of_text(self, text: str) -> np.ndarray:
        """int32 [tokens] of a text to go on from; the beginning's id first where the model was trained so."""
        return self._begun(self._tokenizer.encode(text))

    def of_turns(self, turns: Sequence[Turn], plainly: bool = False, clips: Sequence[np.ndarray] = ()) -> np.ndarray:
        """int32 [tokens] of a conversation that waits for the assistant. `plainly`: never by the model's own template.

        clips: what stands in the place of each `CLIP` of the turns, as `ringworld.vision.stream.clip_ids` makes it.
        UserError where the turns cannot be answered, or the template has no place for one of them.
        """
        _check(turns)
        template, begins = self._chosen(plainly)
        if clips:
            ids = VisionTemplate(template, self._tokenizer).prompt(turns)
            ids = spliced(Encoded(ids, np.zeros(len(ids), bool)), clips).ids
        else:
            ids = template.prompt(turns)
        return self._begun(ids) if begins else ids

    def of_picture(self, turns: Sequence[Turn], plainly: bool = False) -> np.ndarray:
        """int32 [tokens] of a conversation that the assistant answers by a clip, up to the clip's first code.

        UserError as `of_turns`.
        """
        _check(turns)
        template, begins = self._chosen(plainly)
        ids = VisionTemplate(template, self._tokenizer).drawing(turns)
        return self._begun(ids) if begins else ids

    def of_caption(self, caption: str) -> np.ndarray:
        """int32 [tokens] of a text that a clip follows, up to the clip's first code; empty: of a clip by itself."""
        texts = [caption, OPENING] if caption else [OPENING]
        return self._begun(np.concatenate(self._tokenizer.encode_batch(texts)))

    def _chosen(self, plainly: bool) -> tuple[Template, bool]:
        """The template, and whether the beginning's id is still to be put before what it writes."""
        if self._template is not None and not plainly:
            return self._template, False
        return self._plain, True

    def _begun(self, ids: np.ndarray) -> np.ndarray:
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
