"""The arms of the experiment as data: what is trained from what, how, and what is measured of it. Pure.

All arms start from one base, trained at the first length. `rising`, `fixed` and `naive` go through the same lengths and
read the same rows in the same order: `fixed` never changes theta, in `naive` the documents of a row see each other.
`direct` goes to the last length at once, with the tokens of all stages together. `linear`, `ntk` and `yarn` train
nothing: the base is read with stretched positions, at each length with the factor of that length.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from ringworld.errors import UserError
from ringworld.model.config import ModelConfig, RopeConfig
from ringworld.train.flops import training_flops

THROUGH_ALL_LENGTHS = ("rising", "fixed", "naive")
TRAINING_FREE = ("linear", "ntk", "yarn")
ARMS = (*THROUGH_ALL_LENGTHS, "direct", *TRAINING_FREE)


@dataclass(frozen=True)
class Settings:
    """Sizes of the experiment. Two runs with equal settings and documents are the same run.

    arms            what is done with the base, of the seven
    lengths         of rows in tokens, the first one the base's, each a multiple of the one before
    theta, growth   RoPE's base at the first length, and its factor for each doubling of the length
    warm            lengths of rows that the base begins with, before the first of `lengths`: where there is less to
                    look through, a model finds sooner that looking helps. The first of them have no room for a needle,
                    and hold passages to copy
    base_steps, base_tokens     steps of the base at each of its lengths, and slots of each
    stage_steps, stage_tokens   steps of every further stage, and slots of all their steps
    base_rates, stage_rate      learning rates; from the base's last length on they fall to a tenth by a cosine
    vocabulary      ids of a byte-level BPE trained on the text; 0: bytes
    whole           share of the tokens in documents as long as their row; the others share rows
    counted         share of the text's tokens that the loss counts, at random; of what is to be recalled it counts all
    windows         held-out rows of the longest length whose loss is measured
    rounds          needle prompts of each length and depth, at most; 4 or more above a quarter of the longest
    documents       sources as `ringworld.data.sources.expand` takes them
    megabytes       of text, at most
    held_out        share of the documents
    """

    arms: tuple[str, ...] = ARMS
    lengths: tuple[int, ...] = (512, 1024, 2048, 4096, 8192)
    warm: tuple[int, ...] = (64, 256)
    theta: float = 1e4
    growth: float = 4.0
    layers: int = 2
    embed: int = 128
    heads: int = 4
    mlp: int = 256
    vocabulary: int = 1024
    dtype: str = "float32"
    base_steps: tuple[int, ...] = (400, 300, 300)
    base_tokens: tuple[int, ...] = (1024, 4096, 4096)
    base_rates: tuple[float, ...] = (6e-3, 3e-3, 3e-3)
    stage_steps: tuple[int, ...] = (60, 60, 60, 180)
    stage_tokens: int = 8192
    stage_rate: float = 2e-3
    whole: float = 0.75
    counted: float = 0.125
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    rounds: int = 6
    windows: int = 4
    documents: tuple[str, ...] = ("installed",)
    megabytes: float = 12.0
    held_out: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.arms) - set(ARMS)):
            raise UserError(f"arms={unknown[0]}: give some of {', '.join(ARMS)}")
        through = (*self.warm, *self.lengths)
        for short, long in itertools.pairwise(through):
            if long <= short or long % short:
                raise UserError(
                    f"warm and lengths={list(through)}: each must be a multiple of the one before, and longer"
                )
        if len(self.lengths) < 2:
            raise UserError(f"lengths={list(self.lengths)}: give the base's length and one to extend to, or more")
        for name in ("base_steps", "base_tokens", "base_rates"):
            if len(getattr(self, name)) != len(self.warm) + 1:
                raise UserError(f"{name}={list(getattr(self, name))}: one for each of {[*self.warm, self.lengths[0]]}")
        rows = zip((*self.base_tokens, self.stage_tokens), (*self.warm, self.lengths[0], self.lengths[-1]), strict=True)
        for tokens, length in rows:
            if tokens % length:
                raise UserError(f"{tokens} slots a step are not whole rows of {length}")
        for name in ("whole", "counted"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)}: a share above 0 and at most 1")
        if min(*self.base_steps, *self.stage_steps, self.rounds, self.windows) < 1:
            raise UserError("steps, rounds and windows are 1 or more")

    def model(self, vocabulary: int, rope: RopeConfig) -> ModelConfig:
        """vocabulary: of the tokenizer."""
        return ModelConfig(
            vocabulary, self.layers, self.embed, self.heads, self.heads, self.embed // self.heads, self.mlp,
            tied_embeddings=True, rope=rope, qkv_biases=True, init="mimetic",
        )  # fmt: skip

    def rope_at(self, length: int) -> RopeConfig:
        """Theta as it rises with the length."""
        doublings = (length // self.lengths[0]).bit_length() - 1
        return RopeConfig(self.theta * self.growth**doublings)

    def rounds_at(self, length: int) -> int:
        """Prompts of each depth: a long one costs as much as several short ones."""
        return max(min(4, self.rounds), self.rounds * self.lengths[-1] // (4 * max(length, self.lengths[-1] // 4)))


@dataclass(frozen=True)
class Stage:
    """A training stage. after: the key of the stage whose weights it starts from; None: random ones."""

    arm: str
    length: int
    steps: int
    batch_tokens: int
    rate: float
    rope: RopeConfig
    after: str | None
    naive: bool = False

    @property
    def key(self) -> str:
        return f"{self.arm}-{self.length}"

    @property
    def slots(self) -> int:
        """Tokens of all its steps, padding included."""
        return self.steps * self.batch_tokens


@dataclass(frozen=True)
class Probe:
    """A measurement of the weights of a stage, read with `rope`, at some lengths."""

    key: str
    weights: str
    rope: RopeConfig
    lengths: tuple[int, ...]


def stages(settings: Settings) -> tuple[Stage, ...]:
    """All training stages, each after the one that it starts from."""
    first, *others = settings.lengths
    found: list[Stage] = []
    rows = (*settings.warm, first)
    of_the_base = zip(rows, settings.base_steps, settings.base_tokens, settings.base_rates, strict=True)
    for length, steps, tokens, rate in of_the_base:
        after = found[-1].key if found else None
        found.append(Stage("base", length, steps, tokens, rate, settings.rope_at(first), after))
    base = found[-1]
    for arm in (arm for arm in THROUGH_ALL_LENGTHS if arm in settings.arms):
        before = base
        for length, steps in zip(others, settings.stage_steps, strict=True):
            rope = settings.rope_at(first if arm == "fixed" else length)
            before = _stage(settings, arm, length, steps, rope, before.key)
            found.append(before)
    if "direct" in settings.arms:
        last, steps = others[-1], sum(settings.stage_steps)
        found.append(_stage(settings, "direct", last, steps, settings.rope_at(last), base.key))
    return tuple(found)


def _stage(settings: Settings, arm: str, length: int, steps: int, rope: RopeConfig, after: str) -> Stage:
    return Stage(arm, length, steps, settings.stage_tokens, settings.stage_rate, rope, after, naive=arm == "naive")


def probes(settings: Settings, trained: Sequence[Stage]) -> tuple[Probe, ...]:
    """What is measured: every stage's weights at every length, and the base with stretched positions."""
    first = settings.lengths[0]
    base = f"base-{first}"
    found = [
        Probe(stage.key, stage.key, stage.rope, settings.lengths[:1] if stage.length < first else settings.lengths)
        for stage in trained
    ]
    for kind in TRAINING_FREE:
        for length in settings.lengths[1:] if kind in settings.arms else ():
            rope = RopeConfig(settings.theta, kind, length / first, first if kind == "yarn" else 0)
            found.append(Probe(f"{kind}-{length}", base, rope, (length,)))
    return tuple(found)


def stage_flops(settings: Settings, stage: Stage, vocabulary: int, pairs: float | None = None) -> float:
    """Floating-point operations. pairs: that the mask lets through in a row; None: of a row that is one document."""
    if pairs is None:
        pairs = stage.length * (stage.length + 1) / 2
    rows = stage.slots // stage.length
    return training_flops(settings.model(vocabulary, stage.rope), stage.slots, round(rows * pairs))


def probe_flops(settings: Settings, probe: Probe, vocabulary: int) -> float:
    """Floating-point operations: those of a forward pass."""
    longest, slots, pairs = settings.lengths[-1], settings.windows * settings.lengths[-1], 0.0
    for length in probe.lengths:
        tokens = length * len(settings.depths) * settings.rounds_at(length)
        slots += -(-tokens // longest) * longest
        pairs += tokens * length / 2
    pairs += settings.windows * max(probe.lengths) ** 2 / 2
    return training_flops(settings.model(vocabulary, probe.rope), slots, round(pairs)) / 3


def cost(settings: Settings) -> float:
    """Floating-point operations of the whole experiment, at most, before its data are made."""
    trained, vocabulary = stages(settings), settings.vocabulary or 258
    training = sum(stage_flops(settings, stage, vocabulary) for stage in trained)
    return training + sum(probe_flops(settings, probe, vocabulary) for probe in probes(settings, trained))
