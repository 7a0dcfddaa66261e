"""What an evaluation measures (identity) and where its inputs lie."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ringworld.errors import UserError
from ringworld.evaluate.marked_frames import COLOURS
from ringworld.evaluate.tasks.names import RULER_THRESHOLD, WITH_QUESTIONS, names_of
from ringworld.job_file import read_job, write_job
from ringworld.model.config import ModelConfig, RopeConfig

# Of a field that recipes have not always had: see `infra.stage.canonical`.
_ADDED = {"identity": "unless default"}


@dataclass(frozen=True)
class NeedleConfig:
    """A grid of prompts: `rounds` for each of `lengths` (tokens) x `depths` (0 the beginning .. 1 the end)."""

    lengths: tuple[int, ...]
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    rounds: int = 1

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1 or self.rounds < 1:
            raise UserError(
                f"needle.lengths={list(self.lengths)}, rounds={self.rounds}: give lengths and rounds of 1 or more"
            )
        if not self.depths or not all(0 <= depth <= 1 for depth in self.depths):
            raise UserError(f"needle.depths={list(self.depths)}: depths lie in 0..1")


@dataclass(frozen=True)
class ContextConfig:
    """What more context is worth, and whether short text is forgotten, on held-out documents.

    tail: the last tokens of a window, whose loss counts. least: tokens of the shortest context before them; the longer
    ones are its doubles, and all of the window. windows: at most. short: the first tokens of at most `documents`
    documents, whose loss counts.
    """

    tail: int
    least: int
    windows: int = 4
    short: int = 512
    documents: int = 16

    def __post_init__(self) -> None:
        if min(self.tail, self.least, self.windows, self.short, self.documents) < 1:
            raise UserError(
                f"context: tail={self.tail}, least={self.least}, windows={self.windows}, short={self.short}, "
                f"documents={self.documents}: 1 or more of each"
            )


def context_config(sequence: int, windows: int, short: int, documents: int) -> ContextConfig:
    """For windows of `sequence` tokens: a tail of an eighth of them and a least context of a sixteenth, as the nearest
    powers of two, neither over 512 tokens and the context not under 32. Of a sequence of 8K both are 512."""
    tail = min(512, _power_of_two(sequence / 8))
    least = min(512, max(32, _power_of_two(sequence / 16)))
    return ContextConfig(tail, least, windows, min(short, sequence), documents)


def _power_of_two(size: float) -> int:
    return 1 << max(0, round(math.log2(size)))


@dataclass(frozen=True)
class TasksConfig:
    """Long-context tasks of `ringworld.evaluate.tasks`: `count` examples of each at each length and depth.

    names: of tasks and groups. lengths: tokens of prompt and answer. depths: 0..1, of tasks that take one; empty:
    random ones. chat: every prompt goes through the chat template. threshold: of the effective length, percent.
    """

    names: tuple[str, ...]
    lengths: tuple[int, ...]
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    count: int = 1
    chat: bool = False
    threshold: float = RULER_THRESHOLD

    def __post_init__(self) -> None:
        if not self.names or not self.lengths or min(self.lengths) < 1 or self.count < 1:
            raise UserError(
                f"tasks: names={list(self.names)}, lengths={list(self.lengths)}, count={self.count}: name tasks, and "
                f"give lengths and a count of 1 or more"
            )
        if not all(0 <= depth <= 1 for depth in self.depths):
            raise UserError(f"tasks.depths={list(self.depths)}: depths lie in 0..1")
        if set(WITH_QUESTIONS) & set(names_of(self.names, documents=True, questions=False)):
            raise UserError(
                "tasks.names: qa asks about texts that are given on the command line alone: python -m "
                "ringworld.evaluate.tasks --questions FILE"
            )


@dataclass(frozen=True)
class ChatConfig:
    """What is measured of a chat stage on held-out conversations of `corpora`, those that it trains on.

    examples: conversations of each that are scored, at most. asked: questions of each that are asked, at most.
    """

    corpora: tuple[str, ...]
    examples: int = 32
    asked: int = 16

    def __post_init__(self) -> None:
        if not self.corpora or len(set(self.corpora)) < len(self.corpora):
            raise UserError(f"chat.corpora={list(self.corpora)}: name the corpora of the stage's mixture, each once")
        if self.examples < 1 or self.asked < 0:
            raise UserError(
                f"chat.examples={self.examples}, asked={self.asked}: score 1 conversation or more, and ask 0 or more"
            )


@dataclass(frozen=True)
class VideoNeedleConfig:
    """A grid of clips with a marked frame: `rounds` for each of `frames` (of a clip) x `depths` (0 the first frame .. 1
    the last). colours: the names among which the right one is to be found.
    """

    frames: tuple[int, ...]
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    rounds: int = 1
    colours: tuple[str, ...] = ("red", "green", "blue", "yellow")

    def __post_init__(self) -> None:
        if not self.frames or min(self.frames) < 1 or self.rounds < 1:
            raise UserError(
                f"vision.needle.frames={list(self.frames)}, rounds={self.rounds}: give frames and rounds of 1 or more"
            )
        if not self.depths or not all(0 <= depth <= 1 for depth in self.depths):
            raise UserError(f"vision.needle.depths={list(self.depths)}: depths lie in 0..1")
        if len(self.colours) < 2 or len(set(self.colours)) < len(self.colours) or not set(self.colours) <= set(COLOURS):
            raise UserError(
                f"vision.needle.colours={list(self.colours)}: give two or more different ones of {', '.join(COLOURS)}"
            )


@dataclass(frozen=True)
class VisionConfig:
    """What is measured of a vision stage on held-out examples of every corpus of its store.

    examples: of each corpus that are scored, at most. asked: questions of each that are asked, at most, where the store
    has conversations. drawn: captions of each that are drawn, at most, and frames: of a video. scale, video_scale: of
    the guidance, for an image or a video's first frame, and for the frames after it; 1: none.
    """

    needle: VideoNeedleConfig
    examples: int = 32
    asked: int = 4
    drawn: int = 4
    frames: int = 4
    scale: float = 5.0
    video_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.examples < 1 or self.asked < 0 or self.drawn < 0 or self.frames < 1:
            raise UserError(
                f"vision.examples={self.examples}, asked={self.asked}, drawn={self.drawn}, frames={self.frames}: score "
                f"1 example or more, ask and draw 0 or more, of 1 frame or more"
            )


@dataclass(frozen=True)
class EvaluateRecipe:
    """An evaluation at one length.

    sequence       tokens a row
    past           the length of the stage before: loss at positions from here on is reported apart; 0 for the first
                   stage
    rows           held-out rows for the loss by position
    before_rope    rotary positions of the weights the stage started from; None when it started from random weights
    before_folder  the Hugging Face folder that the stage started from, when that is not another stage
    chat           what is measured on conversations of text; None for a stage that trains on none
    vision         what is measured on examples with pictures; None for a stage that trains on none
    context        what more context is worth, and what short text costs; None: not measured
    tasks          long-context tasks that are asked; None: none
    """

    kind: ClassVar[str] = "evaluate"
    model: ModelConfig
    sequence: int
    rows: int
    needle: NeedleConfig
    past: int = 0
    before_rope: RopeConfig | None = None
    before_folder: str = ""
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    chat: ChatConfig | None = None
    vision: VisionConfig | None = None
    context: ContextConfig | None = field(default=None, metadata=_ADDED)
    tasks: TasksConfig | None = field(default=None, metadata=_ADDED)

    def __post_init__(self) -> None:
        if not 0 <= self.past < self.sequence:
            raise UserError(f"past={self.past}: the length before must lie in 0..{self.sequence - 1}")
        if self.rows < 1:
            raise UserError(f"rows={self.rows}: evaluate 1 row or more")
        if max(self.needle.lengths) > self.sequence:
            raise UserError(f"needle.lengths={list(self.needle.lengths)}: none may be over sequence={self.sequence}")
        if self.context is not None and self.context.tail >= self.sequence:
            raise UserError(f"context.tail={self.context.tail}: must leave context in a sequence of {self.sequence}")
        if self.tasks is not None and max(self.tasks.lengths) > self.sequence:
            raise UserError(f"tasks.lengths={list(self.tasks.lengths)}: none may be over sequence={self.sequence}")
        if self.vision is not None and not self.model.vision_vocabulary:
            raise UserError("vision is given, but model.vision_vocabulary=0: a text model sees nothing")


@dataclass(frozen=True)
class EvaluateInputs:
    """Paths: token store, tokenizer, the stage's weights and those it started from, the folder to write to.

    conversations: the token store of a conversations stage, when the recipe has `chat`. When it has `vision`: vision,
    the token store of the stage's examples; codes, the store of clips that they were made of; vqgan, the folder of the
    VQGAN that made the codes.
    """

    tokens: str
    tokenizer: str
    after: str
    output: str
    before: str | None = None
    conversations: str | None = None
    vision: str | None = None
    codes: str | None = None
    vqgan: str | None = None


@dataclass(frozen=True)
class EvaluateOptions:
    """How to run it here.

    slots: questions under way at a time, for each data x fsdp shard of the mesh; each keeps the keys and values of a
    whole row.
    """

    loss_chunk: int = 1024
    slots: int = 4
    stall_seconds: float = 1800.0
    compilation_cache: str = ""


@dataclass(frozen=True)
class EvaluateJob:
    """The whole file given to `--recipe`."""

    recipe: EvaluateRecipe
    inputs: EvaluateInputs
    options: EvaluateOptions = field(default_factory=EvaluateOptions)

    def save(self, path: str) -> None:
        """Write the job as YAML."""
        write_job(path, self)


def load_job(path: str) -> EvaluateJob:
    """Read a job; UserError for anything that is not one."""
    return read_job(EvaluateJob, path)
