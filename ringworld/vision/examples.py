"""Examples of a training stage from clips: what is said of a clip and its codes become one document of mixed ids. Pure.

- Pairs: the caption, then the clip, or the clip, then the caption; which, is drawn for each example by a hash. Of what
  is held out both are made, so that both are measured on the same clips. All of a pair counts.
- Chat: of every clip a question, which the clip comes with and text answers, and a generation, which the clip answers.
  The turns are the clip's conversation where it has one, else made of its caption and one of a few fixed wordings,
  drawn by a hash; no model writes them. Answers alone count.
- A clip gets as many frames as its recipe says and its sequence holds: of pairs the first ones at a rate, of chat some
  spread over the whole video. It is never cut inside a frame, and a text is never cut.
- What cannot become an example is `Left`, with a reason that is counted (`REASONS`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ringworld.data.conversations import Refused, Turn
from ringworld.data.templates import Encoded, template_of
from ringworld.data.tokenizers import Tokenizer
from ringworld.errors import UserError
from ringworld.vision.clips import Kind
from ringworld.vision.rows import MARKS
from ringworld.vision.stream import (
    CLIP,
    CLOSING,
    OPENING,
    VisionIds,
    VisionTemplate,
    check_apart,
    clip_ids,
    spliced,
    vision_span,
    without_clips,
)

REASONS = ("no caption", "too long", "template")  # the last with the template's own reason

QUESTIONS: Mapping[Kind, tuple[str, ...]] = {
    "image": (
        "What does this image show?",
        "Describe the picture.",
        "What can be seen here?",
        "Give a caption for this image.",
        "What is in the picture?",
    ),
    "video": (
        "What happens in this video?",
        "Describe the video.",
        "What can be seen in this clip?",
        "Give a caption for this video.",
        "What is the video about?",
    ),
}
REQUESTS: Mapping[Kind, tuple[str, ...]] = {
    "image": (
        "Generate an image of the following. {caption}",
        "Draw a picture: {caption}",
        "Make an image that this describes: {caption}",
        "Show me this as an image: {caption}",
    ),
    "video": (
        "Generate a video of the following. {caption}",
        "Make a video: {caption}",
        "Make a clip that this describes: {caption}",
        "Show me this as a video: {caption}",
    ),
}


@dataclass(frozen=True)
class ExampleOptions:
    """form: pairs, or the four tasks of chat. sequence: slots of a row, which an example is to fit whole.

    frames: of a video at most; 0: as many as fit. rate: of pairs, frames a second, or the stored rate where that is
    lower. kinds: of the clips that are taken. seed: of the draws of orders and wordings.
    """

    form: Literal["pairs", "chat"]
    sequence: int
    frames: int = 30
    rate: float = 4.0
    kinds: tuple[Kind, ...] = ("image", "video")
    seed: int = 0

    def __post_init__(self) -> None:
        if self.form not in ("pairs", "chat"):
            raise UserError(f"form={self.form!r}: pairs or chat")
        if self.sequence < 1:
            raise UserError(f"sequence={self.sequence}: a row needs at least one slot")
        if self.frames < 0:
            raise UserError(f"frames={self.frames}: 1 or more, or 0 for as many as fit")
        if not self.rate > 0:
            raise UserError(f"rate={self.rate}: frames a second, more than 0, such as 4")
        if not self.kinds or not set(self.kinds) <= {"image", "video"}:
            raise UserError(f"kinds={list(self.kinds)}: one or both of image, video")


@dataclass(frozen=True)
class CodedClip:
    """What a store of codes knows of a clip. rate: stored frames a second; None for an image. held_out: its split."""

    name: str
    kind: Kind
    sha256: str
    caption: str | None = None
    conversation: tuple[Turn, ...] = ()
    rate: float | None = None
    held_out: bool = False


@dataclass(frozen=True, eq=False)
class Example:
    """ids int32 [tokens], with the end-of-text id at the end of a pair. answer bool [tokens]: what the loss counts.

    corpus: `image`, `video`, or the task. frames: those that it holds, of `wanted`. how: of a pair `text first` or
    `vision first`; of chat `conversation`, or `wording` for turns made here.
    """

    ids: np.ndarray
    answer: np.ndarray
    corpus: str
    frames: int
    wanted: int
    how: str


@dataclass(frozen=True)
class Left:
    """Why a clip is in no example of a corpus: one of `REASONS`, and what exactly was found."""

    corpus: str
    reason: str
    detail: str = ""


class Maker:
    """Makes the examples of one stage: its options, tokenizer and ids."""

    def __init__(self, how: ExampleOptions, tokenizer: Tokenizer, ids: VisionIds) -> None:
        """UserError where text and codes share ids, and for a template that nothing can be trained with."""
        check_apart(ids, tokenizer)
        self._how, self._tokenizer, self._ids = how, tokenizer, ids
        self._around = sum(len(found) for found in tokenizer.encode_batch([OPENING, CLOSING]))
        self._template = VisionTemplate(template_of(tokenizer), tokenizer)
        if how.form == "chat":
            self._template.check()

    @property
    def template(self) -> VisionTemplate:
        return self._template

    def make(self, clip: CodedClip, codes: np.ndarray) -> list[Example | Left]:
        """codes: int [frames, h, w], all that is stored of the clip. Nothing for a clip of another kind."""
        if clip.kind not in self._how.kinds:
            return []
        if self._how.form == "pairs":
            return self._pairs(clip, codes)
        return [self._question(clip, codes), self._generation(clip, codes)]

    def _pairs(self, clip: CodedClip, codes: np.ndarray) -> list[Example | Left]:
        corpus, caption = clip.kind, without_clips(clip.caption or "").strip()
        if not caption:
            return [Left(corpus, "no caption")]
        text = self._tokenizer.encode(caption)
        chosen = first_frames(len(codes), clip.rate, self._how.rate)
        wanted = min(len(chosen), self._how.frames or len(chosen))
        fit = self._fits(len(text) + self._around + 1, codes)
        if fit < 1:
            return [self._too_long(corpus, len(text), codes)]
        count = min(wanted, fit)
        span, end = vision_span(codes[chosen[:count]], self._ids, self._tokenizer), [self._tokenizer.eos_id]
        orders = {"text first": [text, span, end], "vision first": [span, text, end]}
        if not clip.held_out:
            drawn = list(orders)[int(2 * draw(self._how.seed, "order", clip.sha256, caption))]
            orders = {drawn: orders[drawn]}
        made: list[Example | Left] = []
        for how, parts in orders.items():
            ids = np.concatenate(parts).astype(np.int32)
            made.append(Example(ids, np.ones(len(ids), bool), corpus, count, wanted, how))
        return made

    def _question(self, clip: CodedClip, codes: np.ndarray) -> Example | Left:
        corpus, caption = f"{clip.kind}-question", without_clips(clip.caption or "").strip()
        if clip.conversation:
            return self._chat(corpus, with_clip(clip.conversation), codes, "conversation")
        if not caption:
            return Left(corpus, "no caption")
        asked = self._worded(QUESTIONS[clip.kind], corpus, clip)
        return self._chat(corpus, [Turn("user", f"{CLIP}\n{asked}"), Turn("assistant", caption)], codes, "wording")

    def _generation(self, clip: CodedClip, codes: np.ndarray) -> Example | Left:
        corpus, caption = f"{clip.kind}-generation", without_clips(clip.caption or "").strip()
        if not caption:
            return Left(corpus, "no caption")
        asked = self._worded(REQUESTS[clip.kind], corpus, clip).replace("{caption}", caption)
        return self._chat(corpus, [Turn("user", asked), Turn("assistant", CLIP)], codes, "wording")

    def _chat(self, corpus: str, turns: Sequence[Turn], codes: np.ndarray, how: str) -> Example | Left:
        [encoded] = self._template.encode([turns])
        if isinstance(encoded, Refused):
            return Left(corpus, "template", f"{encoded.reason}: {encoded.detail}")
        assert isinstance(encoded, Encoded)
        wanted = min(len(codes), self._how.frames or len(codes))
        fit = self._fits(len(encoded.ids) - 1, codes)
        if fit < 1:
            return self._too_long(corpus, len(encoded.ids) - 1, codes)
        count = min(wanted, fit)
        whole = spliced(encoded, [clip_ids(codes[spread_frames(len(codes), count)], self._ids)])
        return Example(whole.ids, whole.answer, corpus, count, wanted, how)

    def _fits(self, others: int, codes: np.ndarray) -> int:
        """How many frames the sequence holds beside other ids: an example of n ids fills n - 1 slots of a row."""
        return (self._how.sequence + 1 - others) // (codes[0].size + 1)

    def _too_long(self, corpus: str, text: int, codes: np.ndarray) -> Left:
        frame = codes[0].size + 1
        return Left(corpus, "too long", f"{text} ids of text and one frame of {frame}, sequence={self._how.sequence}")

    def _worded(self, wordings: Sequence[str], corpus: str, clip: CodedClip) -> str:
        return wordings[int(draw(self._how.seed, corpus, clip.sha256, clip.caption or "") * len(wordings))]


def first_frames(stored: int, stored_rate: float | None, rate: float) -> np.ndarray:
    """int64: the stored frames that are shown at 0, 1 / rate, 2 / rate, ... seconds; each once where fewer are stored.

    stored_rate: None for an image, which has one frame.
    """
    step = max(1.0, (stored_rate or rate) / rate)
    # A little more, so that a product just below a whole frame is that frame.
    chosen = np.floor(np.arange(int(np.ceil(stored / step))) * step + 1e-6).astype(np.int64)
    return chosen[chosen < stored]


def spread_frames(stored: int, count: int) -> np.ndarray:
    """int64 [count]: the stored frames in the middle of `count` equal parts; `count` is at most `stored`."""
    return np.floor((np.arange(count) + 0.5) * stored / count).astype(np.int64)


def with_clip(conversation: Sequence[Turn]) -> list[Turn]:
    """A clip's conversation with `CLIP` where it is marked, which is once, or before the first question."""
    turns = [replace(turn, text=without_clips(turn.text)) for turn in conversation]
    for number, turn in enumerate(turns):
        mark = next((mark for mark in MARKS.values() if mark in turn.text), None)
        if turn.role == "user" and mark is not None:
            turns[number] = replace(turn, text=turn.text.replace(mark, CLIP, 1))
            return turns
    first = next(number for number, turn in enumerate(turns) if turn.role == "user")
    turns[first] = replace(turns[first], text=f"{CLIP}\n{turns[first].text}")
    return turns


def draw(seed: int, *what: str) -> float:
    """Uniform in [0, 1), by a hash."""
    told = "\0".join((str(seed), *what))
    return int.from_bytes(hashlib.sha256(told.encode()).digest()[:6], "big") / (1 << 48)
