"""What a chat stage learned, on held-out conversations: what answers cost before and after, and how questions are
answered.

Both on any mesh, of any number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ringworld.data.token_store import TokenStore
from ringworld.data.tokenizers import Tokenizer, check_same
from ringworld.errors import UserError
from ringworld.evaluate.answers import CLASSES, Answer, Talks, TalkScores, by_depth, read_talks
from ringworld.evaluate.asking import Asked, choose, graded
from ringworld.evaluate.recipe import EvaluateJob
from ringworld.evaluate.transcripts import as_value, pick


@dataclass(frozen=True, eq=False)
class HeldOutChat:
    """What is to be scored and asked. refused: of each corpus of which no conversation can be scored, why.

    not_asked: why no question is asked; empty where some are.
    """

    talks: Mapping[str, Talks]
    refused: Mapping[str, str]
    chosen: tuple[Answer, ...]
    not_asked: str


def read_chat(job: EvaluateJob, tokenizer: Tokenizer) -> HeldOutChat | None:
    """The held-out conversations of the recipe's corpora; None for a recipe without them."""
    wanted, url = job.recipe.chat, job.inputs.conversations
    if wanted is None and url is None:
        return None
    if wanted is None or url is None:
        raise UserError("recipe.chat and inputs.conversations belong together: give both, or neither")
    store = TokenStore.open(url)
    check_same(store.info.tokenizer_hash, tokenizer.hash, f"evaluation of {url}")
    if not store.info.answers:
        raise UserError(f"inputs.conversations={url}: a store of plain text; give that of a conversations stage")
    talks: dict[str, Talks] = {}
    refused: dict[str, str] = {}
    for corpus in wanted.corpora:
        try:
            talks[corpus] = read_talks(store, tokenizer, corpus, job.recipe.sequence, wanted.examples)
        except UserError as none_fits:
            refused[corpus] = str(none_fits)
    chosen = [answer for found in talks.values() for answer in choose(found.answers, wanted.asked, job.recipe.seed)]
    not_asked = ""
    if not chosen:
        not_asked = "no held-out conversation has a question" if wanted.asked else "chat.asked=0"
    return HeldOutChat(talks, refused, tuple(chosen), not_asked)


def chat_figures(
    chat: HeldOutChat, before: Mapping[str, TalkScores], after: Mapping[str, TalkScores], asked: Sequence[Asked]
) -> dict[str, Any]:
    """Plain JSON values. Losses in nats; shares 0..1; None for what was not measured."""
    return {
        "corpora": {
            corpus: _corpus(
                talks, before[corpus], after[corpus], [item for item in asked if item.answer.corpus == corpus]
            )
            for corpus, talks in chat.talks.items()
        },
        "refused": dict(chat.refused),
        "not_asked": chat.not_asked,
        **graded(asked),
        "transcripts": [as_value(item) for item in pick(asked)],
    }


def _corpus(talks: Talks, before: TalkScores, after: TalkScores, asked: Sequence[Asked]) -> dict[str, Any]:
    depths = []
    for depth, numbers in by_depth(talks.answers).items():
        depths.append(
            {
                "from": depth / CLASSES,
                "to": (depth + 1) / CLASSES,
                "answers": len(numbers),
                "loss_before": float(before.losses[numbers].mean()),
                "loss_after": float(after.losses[numbers].mean()),
                **graded([item for item in asked if item.answer.depth_class == depth]),
            }
        )
    return {
        "conversations": talks.conversations,
        "left_out": dict(talks.left_out),
        "answers": len(talks.answers),
        "loss_before": before.loss,
        "loss_after": after.loss,
        "verbatim_before": float(before.verbatim.mean()),
        "verbatim_after": float(after.verbatim.mean()),
        **graded(asked),
        "depths": depths,
    }
