"""A curriculum is data: this file says what it may hold, and `stages.graph` builds the stages from it.

What a stage is (`Curriculum`) and where it runs (`stages.site.Site`) come from two files and never mix: a fingerprint
holds nothing of the second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ringworld.data.clean import PRESETS, Cleaning, cleaning_from
from ringworld.data.sources import KINDS
from ringworld.data.templates import OWN
from ringworld.errors import UserError
from ringworld.evaluate.recipe import ContextConfig, TasksConfig, VideoNeedleConfig, VisionConfig, context_config
from ringworld.evaluate.tasks.names import RULER_THRESHOLD
from ringworld.model.config import ModelConfig, RopeConfig
from ringworld.strict import from_mapping, to_mapping
from ringworld.synthesis.exchanges import TalkRules
from ringworld.vision.vqgan_job import VQRecipe
from stages.assemble import AssembleRecipe
from stages.codes import CodesRecipe
from stages.decontaminate import DecontaminateRecipe
from stages.deduplicate import DeduplicateRecipe
from stages.media import MediaRecipe
from stages.synthesize_qa import SynthesizeRecipe
from stages.training import CONVERSATION_CORPORA, SEES, Training, length_label


@dataclass(frozen=True)
class Sources:
    """Where documents come from. text: paths, globs and folders, local or gs://, or `installed`.

    domains: further sources of text by the name of their domain; those of `text` are in the domain `text`.
    cleaning: by domain or by kind of text (prose, web, code): the name of a preset, or one with changes; see
    `ringworld.data.clean`. A kind that is not named is cleaned by the preset of its name.
    chat, qa: files of conversations, .jsonl (.gz, .zst) or .parquet, for chat stages whose mixture names them. Without
    files they are made of the documents: see `talk` and `questions` of the curriculum.
    """

    text: tuple[str, ...] = ("installed",)
    domains: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cleaning: Mapping[str, Cleaning] = field(default_factory=lambda: {kind: PRESETS[kind] for kind in KINDS})
    chat: tuple[str, ...] = ()
    qa: tuple[str, ...] = ()
    field: str = "text"
    column: str = "text"
    installed_bytes: int = 1 << 18
    max_document_bytes: int = 1 << 26
    minimum_bytes: int = 64


@dataclass(frozen=True)
class TokenizerConfig:
    """kind: bytes | bpe (trained on the documents) | huggingface | sentencepiece (both from `path`).

    template: of conversations: own (that of the tokenizer, else LWM's plain one) | plain | the place of a Jinja file.
    """

    kind: str = "bpe"
    vocabulary: int = 2048
    path: str = ""
    sample_bytes: int = 1 << 22
    template: str = OWN


@dataclass(frozen=True)
class OptimizerDefaults:
    """What all stages share of AdamW; rates and schedules are the stages' own."""

    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0


@dataclass(frozen=True)
class Examples:
    """How questions become long examples, of the length of the chat stage; see `ringworld.synthesis.compose`."""

    pairs_per_example: int = 4
    least_pairs: int = 1
    distractors: int = 0


@dataclass(frozen=True)
class Vision:
    """What stages that see need beside text.

    vocabulary: rows for vision ids: the codes, the ends of a frame and of a clip, and room. media: where images and
    videos come from, and what is left out. vqgan: how what makes codes of pictures is trained, or its folder. codes:
    how much of a video is stored.
    """

    vocabulary: int
    vqgan: VQRecipe
    media: MediaRecipe = field(default_factory=MediaRecipe)
    codes: CodesRecipe = field(default_factory=CodesRecipe)


@dataclass(frozen=True)
class ContextUse:
    """What more context is worth: in windows of held-out documents, as long as the stage's sequence. tokens: of all
    windows together, about; one is read at the least and `windows` at most.

    short: tokens of the beginnings of at most `documents` held-out documents, whose loss shows what is forgotten.
    """

    tokens: int = 32768
    windows: int = 16
    short: int = 512
    documents: int = 16

    def __post_init__(self) -> None:
        if min(self.tokens, self.windows, self.short, self.documents) < 1:
            raise UserError(
                f"context: tokens={self.tokens}, windows={self.windows}, short={self.short}, "
                f"documents={self.documents}: 1 or more of each"
            )

    def at(self, sequence: int) -> ContextConfig:
        """For a stage of so many tokens."""
        windows = min(self.windows, max(1, self.tokens // sequence))
        return context_config(sequence, windows, self.short, self.documents)


@dataclass(frozen=True)
class TasksUse:
    """Long-context tasks: `count` examples of each at each length and depth. names: of tasks and groups, as in
    `ringworld.evaluate.tasks`.

    fractions: lengths as shares of the stage's sequence. lengths: in tokens, those that the stage's sequence holds.
    """

    names: tuple[str, ...]
    fractions: tuple[float, ...] = ()
    lengths: tuple[int, ...] = ()
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    count: int = 1
    threshold: float = RULER_THRESHOLD

    def __post_init__(self) -> None:
        if not (self.fractions or self.lengths) or not all(0 < share <= 1 for share in self.fractions):
            raise UserError(
                f"tasks.fractions={list(self.fractions)}, lengths={list(self.lengths)}: give shares in 0..1 of the "
                f"sequence, or lengths in tokens, as in fractions: [0.5, 1.0]"
            )
        self.at(1 << 60, chat=False)  # refuses what no stage could be asked

    def at(self, sequence: int, chat: bool) -> TasksConfig | None:
        """What a stage of so many tokens is asked; None where it holds none of the lengths."""
        lengths = {max(1, round(sequence * share)) for share in self.fractions}
        lengths |= {length for length in self.lengths if length <= sequence}
        if not lengths:
            return None
        return TasksConfig(self.names, tuple(sorted(lengths)), self.depths, self.count, chat, self.threshold)


@dataclass(frozen=True)
class Evaluation:
    """needle_fractions: needle lengths as shares of the stage's sequence. context, tasks: null leaves them out.

    conversations, questions: of chat stages and of each corpus, held-out ones that are scored and that are asked.
    vision: of stages that see; videos of more frames than a row holds are left out of the needle's grid.
    """

    rows: int = 8
    needle_fractions: tuple[float, ...] = (0.25, 0.5, 1.0)
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    rounds: int = 1
    conversations: int = 64
    questions: int = 16
    context: ContextUse | None = field(default_factory=ContextUse)
    tasks: TasksUse | None = None
    vision: VisionConfig = field(default_factory=lambda: VisionConfig(VideoNeedleConfig((4, 16, 64, 256))))


@dataclass(frozen=True)
class Curriculum:
    """The whole curriculum.

    base: `scratch`, or the Hugging Face folder that the first stage starts from.
    base_theta, base_sequence: what that was trained at, for the comparison before and after the first stage.
    deduplicate, decontaminate: null leaves the stage out. assemble: used where a stage's documents are assembled.
    talk: conversations from the documents' own words: the corpus chat where sources.chat names no files; null: none.
    questions: who writes questions on the documents: the corpus qa where sources.qa names no files; null: nobody.
    questions_by: the stage whose weights write them, with questions.provider=checkpoint; empty: the folder of `model`.
    vision: for stages of data vision and vision-chat.
    """

    model: ModelConfig
    stages: Mapping[str, Training]
    base: str = "scratch"
    base_theta: float = 10_000.0
    base_sequence: int = 0
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    held_out: float = 0.05
    sources: Sources = field(default_factory=Sources)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    deduplicate: DeduplicateRecipe | None = field(default_factory=DeduplicateRecipe)
    decontaminate: DecontaminateRecipe | None = field(default_factory=DecontaminateRecipe)
    assemble: AssembleRecipe = field(default_factory=AssembleRecipe)
    talk: TalkRules | None = field(default_factory=TalkRules)
    questions: SynthesizeRecipe | None = field(default_factory=SynthesizeRecipe)
    questions_by: str = ""
    examples: Examples = field(default_factory=Examples)
    vision: Vision | None = None
    optimizer: OptimizerDefaults = field(default_factory=OptimizerDefaults)
    evaluate: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        if self.model.rope != RopeConfig():
            raise UserError("model.rope: positions belong to a stage; give stages.NAME.theta or stages.NAME.rope")
        if not self.stages:
            raise UserError("stages: none given; a curriculum trains at least one")
        names = list(self.stages)
        for index, (name, stage) in enumerate(self.stages.items()):
            if not name.endswith(f"-{length_label(stage.sequence)}"):
                raise UserError(
                    f"stages.{name}: sequence={stage.sequence}, so its name ends in -{length_label(stage.sequence)}, "
                    f"as in text-{length_label(stage.sequence)}"
                )
            if stage.after and stage.after not in names[:index]:
                raise UserError(
                    f"stages.{name}.after={stage.after!r}: must be a stage above it: {names[:index] or 'none is'}"
                )
            if stage.data in SEES and self.vision is None:
                raise UserError(
                    f"stages.{name}.data={stage.data}: needs the curriculum's `vision`, with vocabulary and vqgan at "
                    f"least"
                )
        if self.model.vision_vocabulary:
            raise UserError("model.vision_vocabulary: stages that see have it; give vision.vocabulary")

    def vision_vocabulary(self, stage: str) -> int:
        """Rows for vision ids of a stage's model: what has learned to see does not forget how."""
        row = self.stages[stage]
        while row.data not in SEES:
            if not row.after:
                return 0
            row = self.stages[row.after]
        assert self.vision is not None
        return self.vision.vocabulary


def load_curriculum(mapping: Mapping[str, Any]) -> Curriculum:
    """A Curriculum from a config's mapping. UserError names the key, the value and what is allowed."""
    mapping = dict(mapping)
    sources = mapping.get("sources")
    if isinstance(sources, Mapping):
        # A person writes sources.text=books/*.txt; a list is what it means.
        mapping["sources"] = {
            key: _listed(given) if key in ("text", *CONVERSATION_CORPORA) else given for key, given in sources.items()
        } | _by_domain(sources)
    vision = mapping.get("vision")
    if isinstance(vision, Mapping) and isinstance(media := vision.get("media"), Mapping) and "sources" in media:
        mapping["vision"] = {**vision, "media": {**media, "sources": _listed(media["sources"])}}
    checks = mapping.get("decontaminate")
    if isinstance(checks, Mapping) and "benchmarks" in checks:
        mapping["decontaminate"] = {**checks, "benchmarks": _listed(checks["benchmarks"])}
    return from_mapping(Curriculum, mapping, at="curriculum")


def _by_domain(sources: Mapping[str, Any]) -> dict[str, Any]:
    """What `sources` says by domain, written out. Who names domains and no text means no other text."""
    said: dict[str, Any] = {}
    if isinstance(domains := sources.get("domains"), Mapping) and domains:
        said["domains"] = {name: _listed(given) for name, given in domains.items()}
        said["text"] = _listed(sources.get("text", []))
    cleaning = sources.get("cleaning", {})
    if isinstance(cleaning, Mapping):
        chosen: dict[str, Any] = {**{kind: kind for kind in KINDS}, **cleaning}
        said["cleaning"] = {
            name: to_mapping(cleaning_from(given, f"curriculum.sources.cleaning.{name}"))
            for name, given in chosen.items()
        }
    return said


def _listed(given: Any) -> Any:
    """A word of names between commas as the list that it means; anything else as it is."""
    return [part.strip() for part in given.split(",") if part.strip()] if isinstance(given, str) else given
