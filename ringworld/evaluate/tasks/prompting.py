"""How a draft is put to a model: as text that the model goes on from, or through its chat template.

As text, the draft's beginning of an answer follows after a space, as in lm-eval, or after the white space that it
brings. In a chat the assistant begins by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ringworld.data.tokenizers import Tokenizer
from ringworld.evaluate.tasks.task import Draft
from ringworld.generate.chat import Prompts
from ringworld.generate.checkpoint import Checkpoint


@dataclass(frozen=True, eq=False)
class ModelPrompting:
    """chat: every draft through the template; a conversation always goes through it. plainly: through LWM's plain one,
    whatever the model brings."""

    prompts: Prompts
    tokenizer: Tokenizer
    chat: bool = False
    plainly: bool = False

    def ids(self, draft: Draft) -> np.ndarray:
        if self.chat or len(draft.turns) > 1:
            return self.prompts.of_turns(draft.turns, self.plainly)
        return self.prompts.of_text(plain_text(draft))

    def count(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([len(ids) for ids in self.tokenizer.encode_batch(texts)], np.int64)


def prompting_of(checkpoint: Checkpoint, chat: bool = False, plainly: bool = False) -> ModelPrompting:
    return ModelPrompting(Prompts(checkpoint), checkpoint.tokenizer, chat, plainly)


def plain_text(draft: Draft) -> str:
    """A draft of one turn as the text that a model goes on from."""
    between = "" if not draft.prefix or draft.prefix[0].isspace() else " "
    return f"{draft.turns[0].text}{between}{draft.prefix}"
