"""The packing plan of a vision stage: whole examples with pictures, rows of each corpus apart, and rows of plain text.

One process and numpy, like `stages.pack`. An example longer than a row is dropped and counted, never cut; texts are cut
into rows as they come. A step draws rows of the corpora in the proportions of the mixture. Output: `plan.parquet`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from infra.stage import Result, StageContext
from ringworld.data.mixture import check_shares
from ringworld.data.order import Schedule
from ringworld.data.packing import Whole, select, select_whole
from ringworld.data.plan import WeighBy
from ringworld.data.stores import JoinedStore, Store, open_stores
from ringworld.errors import UserError
from stages.whole import write_plan

TEXT = "text"


@dataclass(frozen=True)
class PackVisionRecipe:
    """sequence: slots of a row. mixture: the share of the rows that a step draws from each corpus of the examples, and
    from `text`, the documents of the port `tokens`; 0 leaves one out.

    weigh_by, vision_weight: see `ringworld.data.plan.loss_weights`. lengths: least and greatest length in tokens of the
    texts. window: steps whose rows are sorted by attention work; 1: none.
    """

    kind: ClassVar[str] = "pack-vision"
    sequence: int
    mixture: Mapping[str, float]
    weigh_by: WeighBy = "token"
    vision_weight: float | None = 0.5
    lengths: tuple[int, int | None] = (2, None)
    window: int = 256

    def __post_init__(self) -> None:
        if self.sequence < 1:
            raise UserError(f"sequence={self.sequence}: a row needs at least one slot")
        if self.vision_weight is not None and not 0 < self.vision_weight < 1:
            raise UserError(
                f"vision_weight={self.vision_weight}: lies between 0 and 1, or is null for every token alike"
            )
        check_shares(self.mixture, "text: 0.16, image: 0.84")
        Schedule(window=self.window)


def run(context: StageContext, recipe: PackVisionRecipe) -> Result:
    """Input ports `vision`, a store of examples; `tokens`, one of text, where the mixture has `text`.

    Raises UserError for a corpus of which nothing fits.
    """
    shares = {corpus: share for corpus, share in recipe.mixture.items() if share > 0}
    ports = ["tokens", "vision"] if TEXT in shares else ["vision"]
    store = open_stores([context.inputs[port].path("tokens") for port in ports])
    index, where = store.index, f"stages.{context.stage.name.removeprefix('pack-')}"
    chosen = {corpus: _chosen(store, corpus, recipe, where) for corpus in shares}
    return write_plan(
        context,
        index,
        chosen,
        shares,
        sequence=recipe.sequence,
        weigh_by=recipe.weigh_by,
        window=recipe.window,
        vision_weight=recipe.vision_weight,
        counts=lambda plan: {"vision_tokens": int(plan.seen.sum(dtype="int64"))},
    )


def _chosen(store: Store, corpus: str, recipe: PackVisionRecipe, where: str) -> Whole:
    if corpus != TEXT:
        return select_whole(store.index, "train", corpus, recipe.sequence, f"{where}.mixture.{corpus}")
    assert isinstance(store, JoinedStore)
    # The documents of the first store are those of the joined one, with their numbers.
    return Whole(select(store.stores[0].index, "train", *recipe.lengths, f"{where}.lengths"), {})
