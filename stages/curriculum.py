"""A curriculum is data: this file says what it may hold, and `stages.graph` builds the stages from it.

What a stage is (`Curriculum`) and where it runs (`Site`) come from two files and never mix: a fingerprint holds nothing
of the second.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from infra.placement import Placement
from ringworld.data.clean import PRESETS, Cleaning, cleaning_from
from ringworld.data.decompose import Decompose
from ringworld.data.mixture import Mixture, check_shares
from ringworld.data.sources import KINDS
from ringworld.data.templates import OWN
from ringworld.data.untie import Untie
from ringworld.errors import UserError
from ringworld.mesh import parse_mesh
from ringworld.model.config import ModelConfig, RopeConfig
from ringworld.strict import from_mapping, to_mapping
from ringworld.synthesis.exchanges import TalkRules
from stages.assemble import AssembleRecipe
from stages.decontaminate import DecontaminateRecipe
from stages.deduplicate import DeduplicateRecipe
from stages.pack import PackRecipe
from stages.synthesize_qa import SynthesizeRecipe

# Of conversations: the names in `Sources` and in a mixture.
CHAT, QA = CORPORA = ("chat", "qa")


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
class Training:
    """A training stage as a row of a table.

    after        the stage whose weights it starts from; empty: the curriculum's `base`
    theta        RoPE base; rope: any further scaling (see RopeConfig), instead of theta
    lengths      documents of so many tokens only, [least, most]; most may be null
    weigh_by     token (each token the same) or example (each document window or conversation the same)
    documents    text only: natural, or assembled: related documents joined to long examples (see `assemble`)
    data         text, or chat: whole conversations, of which the loss counts the answers
    mixture      text: the weight of each domain; chat: the share of the rows from each corpus, chat and qa
    upsample, replay, max_epochs   text only: see `ringworld.data.mixture.Mixture`
    over_long, cut   text only: documents longer than a row: cut at a boundary or at the end of the row, or drop
    untie, decompose   text only: see `ringworld.data.untie` and `ringworld.data.decompose`
    window       steps whose rows are sorted by attention work, so that the rows of a step are equal; 1: none
    """

    sequence: int
    steps: int
    batch_tokens: int
    learning_rate: float
    theta: float = 10_000.0
    after: str = ""
    rope: RopeConfig | None = None
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    minimum_rate: float = 0.0
    lengths: tuple[int, int | None] = (2, None)
    weigh_by: Literal["token", "example"] = "token"
    documents: Literal["natural", "assembled"] = "natural"
    data: Literal["text", "chat"] = "text"
    mixture: Mapping[str, float] = field(default_factory=dict)
    upsample: Mapping[str, float] = field(default_factory=dict)
    replay: float | str = 0.0
    max_epochs: float | None = None
    over_long: Literal["cut", "drop"] = "cut"
    cut: Literal["boundary", "row"] = "boundary"
    untie: Untie = field(default_factory=Untie)
    decompose: Decompose = field(default_factory=Decompose)
    window: int = 256

    def __post_init__(self) -> None:
        if self.data == "text":
            self.packing(0)
            return
        plain = Training(self.sequence, self.steps, self.batch_tokens, self.learning_rate)
        for name in ("upsample", "replay", "max_epochs", "over_long", "cut", "untie", "decompose"):
            if getattr(self, name) != getattr(plain, name):
                raise UserError(f"{name}={getattr(self, name)} is for text; a chat stage takes whole conversations")
        if unknown := sorted(set(self.mixture) - set(CORPORA)):
            raise UserError(f"mixture.{unknown[0]}: no such corpus of conversations; allowed: {', '.join(CORPORA)}")
        check_shares(self.mixture, "chat: 0.7, qa: 0.3")
        if self.lengths != (2, None):
            raise UserError(f"lengths={list(self.lengths)} filters text; a chat stage takes all that fits a row")
        if self.documents != "natural":
            raise UserError(f"documents={self.documents} joins texts; a chat stage takes conversations as they are")

    def packing(self, seed: int) -> PackRecipe:
        """How a text stage packs. Steps and batch are part of it only where the packing depends on them."""
        mixture = Mixture(self.mixture, self.upsample, self.replay, self.max_epochs)
        counted = mixture != Mixture() or self.decompose.least > 0
        return PackRecipe(
            sequence=self.sequence,
            lengths=self.lengths,
            weigh_by=self.weigh_by,
            mixture=mixture,
            over_long=self.over_long,
            cut=self.cut,
            documents=self.documents,
            untie=self.untie,
            decompose=self.decompose,
            window=self.window,
            steps=self.steps if counted else 0,
            batch_tokens=self.batch_tokens if counted else 0,
            seed=seed if self.untie.share else 0,
        )

    @property
    def row_lengths(self) -> set[int]:
        """Slots that the rows of a step may have."""
        shortest = self.decompose.least or self.sequence
        return {self.sequence >> halvings for halvings in range((self.sequence // shortest).bit_length())}


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
class Evaluation:
    """needle_fractions: needle lengths as shares of the stage's sequence.

    conversations, questions: of chat stages and of each corpus, held-out ones that are scored and that are asked.
    """

    rows: int = 8
    needle_fractions: tuple[float, ...] = (0.25, 0.5, 1.0)
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    rounds: int = 1
    conversations: int = 64
    questions: int = 16


@dataclass(frozen=True)
class Curriculum:
    """The whole curriculum.

    base: `scratch`, or the Hugging Face Llama folder that the first stage starts from.
    base_theta, base_sequence: what that was trained at, for the comparison before and after the first stage.
    deduplicate, decontaminate: null leaves the stage out. assemble: used where a stage's documents are assembled.
    talk: conversations from the documents' own words: the corpus chat where sources.chat names no files; null: none.
    questions: who writes questions on the documents: the corpus qa where sources.qa names no files; null: nobody.
    questions_by: the stage whose weights write them, with questions.provider=checkpoint; empty: the folder of `model`.
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


@dataclass(frozen=True)
class StagePlace:
    """What one training stage has otherwise than the rest of the site."""

    mesh: str | None = None
    hosts: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Site:
    """A placement file: where training runs, with exceptions by stage. CPU: 0 means this machine's cores, shared
    evenly.

    train, evaluate: execution options of ringworld.train and ringworld.evaluate. questions: of
    `stages.synthesize_qa`, such as the server's address.
    """

    kind: Literal["cpu", "gpu", "tpu"] = "cpu"
    hosts: int = 1
    resources: Mapping[str, float] = field(default_factory=lambda: {"CPU": 0.0})
    mesh: str = "fsdp=-1"
    topology: str | None = None
    accelerator: str | None = None
    slices: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    evaluate: Mapping[str, Any] = field(default_factory=dict)
    questions: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, StagePlace] = field(default_factory=dict)
    wait_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.hosts < 1 or any(own.hosts is not None and own.hosts < 1 for own in self.stages.values()):
            raise UserError(f"placement.hosts={self.hosts}: 1 or more")
        for own in (self, *self.stages.values()):
            if own.mesh is not None:
                parse_mesh(own.mesh)

    def devices(self, stage: str) -> int | None:
        """Devices of a stage's hosts together, as JAX will count them; None where only the hosts know."""
        hosts = self.stages.get(stage, StagePlace()).hosts or self.hosts
        if self.kind == "cpu":
            return None if "XLA_FLAGS" in self.env else hosts
        return int(hosts * self.resources[self.kind.upper()])

    def place(self, stage: str, options: Mapping[str, Any]) -> Placement:
        """The placement of a stage, with these execution options."""
        own = self.stages.get(stage, StagePlace())
        hosts = own.hosts or self.hosts
        resources = dict(self.resources)
        if resources.get("CPU") == 0:
            resources["CPU"] = float(max(1, (os.cpu_count() or 1) // hosts))
        return Placement(
            hosts=hosts,
            resources=resources,
            kind=self.kind,
            topology=self.topology,
            accelerator=self.accelerator,
            slices=self.slices,
            mesh=own.mesh or self.mesh,
            env=dict(self.env),
            options={**options, **own.options},
            wait_seconds=self.wait_seconds,
        )


def load_curriculum(mapping: Mapping[str, Any]) -> Curriculum:
    """A Curriculum from a config's mapping. UserError names the key, the value and what is allowed."""
    mapping = dict(mapping)
    sources = mapping.get("sources")
    if isinstance(sources, Mapping):
        # A person writes sources.text=books/*.txt; a list is what it means.
        mapping["sources"] = {
            key: _listed(given) if key in ("text", *CORPORA) else given for key, given in sources.items()
        } | _by_domain(sources)
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


def load_site(mapping: Mapping[str, Any]) -> Site:
    """A Site from a placement file's mapping; meshes may be written as a mapping of axes."""

    def as_text(part: Mapping[str, Any]) -> dict[str, Any]:
        mesh = part.get("mesh")
        text = ",".join(f"{axis}={size}" for axis, size in mesh.items()) if isinstance(mesh, Mapping) else mesh
        return {**part, "mesh": text} if "mesh" in part else dict(part)

    stages = mapping.get("stages")
    if isinstance(stages, Mapping):
        given = {name: as_text(own) if isinstance(own, Mapping) else own for name, own in stages.items()}
        mapping = {**mapping, "stages": given}
    return from_mapping(Site, as_text(mapping), at="placement")


def length_label(sequence: int) -> str:
    """512 -> 512, 8192 -> 8k, 1048576 -> 1m."""
    for unit, label in ((1 << 20, "m"), (1 << 10, "k")):
        if sequence % unit == 0:
            return f"{sequence // unit}{label}"
    return str(sequence)
