"""A training stage as a row of a curriculum's table, and what a row of each kind of data may say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Literal

from ringworld.data.decompose import Decompose
from ringworld.data.mixture import Mixture, check_shares
from ringworld.data.untie import Untie
from ringworld.errors import UserError
from ringworld.model.config import RopeConfig
from stages.pack import PackRecipe
from stages.recall import RECALL_CORPORA

Data = Literal["text", "recall", "chat", "vision", "vision-chat"]

# Of conversations: the names in `Sources` and in a mixture.
CHAT, QA = CONVERSATION_CORPORA = ("chat", "qa")
SEES = ("vision", "vision-chat")
CONVERSES = ("chat", "vision-chat")
CORPORA: Mapping[str, tuple[str, ...]] = {
    "recall": RECALL_CORPORA,
    "chat": CONVERSATION_CORPORA,
    "vision": ("text", "image", "video"),
    "vision-chat": ("image-question", "image-generation", "video-question", "video-generation"),
}
_OF_TEXT = ("upsample", "replay", "max_epochs", "over_long", "cut", "untie", "decompose", "documents")


@dataclass(frozen=True)
class Training:
    """A training stage as a row of a table.

    after        the stage whose weights it starts from; empty: the curriculum's `base`
    theta        RoPE base; rope: any further scaling (see RopeConfig), instead of theta
    lengths      documents of so many tokens only, [least, most]; most may be null
    weigh_by     token (each token the same) or example (each document window or conversation the same)
    documents    text only: natural, or assembled: related documents joined to long examples (see `assemble`)
    data         text; recall: text with things to look up (`stages.recall`); chat: whole conversations, of which
                 the loss counts the answers; vision: clips with captions beside text; vision-chat: conversations about
                 clips
    counted      recall only: share of the text's own tokens that the loss counts, beside all that is looked up
    mixture      text: the weight of each domain; others: the share of the rows from each corpus of `CORPORA`
    upsample, replay, max_epochs   text only: see `ringworld.data.mixture.Mixture`
    over_long, cut   text only: documents longer than a row: cut at a boundary or at the end of the row, or drop
    untie, decompose   text only: see `ringworld.data.untie` and `ringworld.data.decompose`
    window       steps whose rows are sorted by attention work, so that the rows of a step are equal; 1: none
    frames, rate    vision only: of a video at most, 0 for as many as fit; of pairs, frames a second
    vision_weight   vision only: of the loss of vision ids, text has the rest of 1; null: every token the same
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
    data: Data = "text"
    mixture: Mapping[str, float] = field(default_factory=dict)
    upsample: Mapping[str, float] = field(default_factory=dict)
    replay: float | str = 0.0
    max_epochs: float | None = None
    over_long: Literal["cut", "drop"] = "cut"
    cut: Literal["boundary", "row"] = "boundary"
    untie: Untie = field(default_factory=Untie)
    decompose: Decompose = field(default_factory=Decompose)
    window: int = 256
    frames: int = 30
    rate: float = 4.0
    vision_weight: float | None = 0.5
    counted: float = 0.25

    def __post_init__(self) -> None:
        if self.data not in SEES:
            self._check_not_given(("frames", "rate", "vision_weight"), "is for stages that see")
        if self.data != "recall":
            self._check_not_given(("counted",), "is for data: recall, where the loss counts a share of the text")
        if self.data == "text":
            self.packing(0)
            return
        self._check_not_given(_OF_TEXT, f"is for text; a {self.data} stage takes whole examples")
        if self.data != "vision":
            self._check_not_given(("lengths",), f"filters text; a {self.data} stage takes all that fits a row")
        corpora = CORPORA[self.data]
        if unknown := sorted(set(self.mixture) - set(corpora)):
            raise UserError(
                f"mixture.{unknown[0]}: no such corpus of a stage of data={self.data}; allowed: {', '.join(corpora)}"
            )
        check_shares(self.mixture, ", ".join(f"{name}: {1 / len(corpora):.2g}" for name in corpora))

    def _check_not_given(self, names: tuple[str, ...], why: str) -> None:
        for each in fields(self):
            default = each.default if each.default_factory is MISSING else each.default_factory()
            given = getattr(self, each.name)
            if each.name in names and given != default:
                shown = list(given) if isinstance(given, tuple) else given
                raise UserError(f"{each.name}={shown} {why}")

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


def length_label(sequence: int) -> str:
    """512 -> 512, 8192 -> 8k, 1048576 -> 1m."""
    for unit, label in ((1 << 20, "m"), (1 << 10, "k")):
        if sequence % unit == 0:
            return f"{sequence // unit}{label}"
    return str(sequence)
