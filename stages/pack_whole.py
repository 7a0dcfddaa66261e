"""The packing plan of a chat or recall stage: whole examples, rows of each corpus apart, drawn in given proportions.

One process and numpy, like `stages.pack`. An example longer than a row is dropped and counted, never cut. Output:
`plan.parquet`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from infra.stage import Result, StageContext
from ringworld.data.mixture import check_shares
from ringworld.data.order import Schedule
from ringworld.data.packing import select_whole
from ringworld.data.plan import WeighBy
from ringworld.data.token_store import TokenStore
from ringworld.errors import UserError
from stages.whole import write_plan


@dataclass(frozen=True)
class PackWholeRecipe:
    """sequence: slots of a row. mixture: the share of the rows that a step draws from each corpus; 0 leaves one out.

    weigh_by: whether each example or each counted token of a batch counts the same; see
    `ringworld.data.plan.loss_weights`. window: steps whose rows are sorted by attention work; 1: none.
    """

    kind: ClassVar[str] = "pack-whole"
    sequence: int
    mixture: Mapping[str, float]
    weigh_by: WeighBy = "example"
    window: int = 256

    def __post_init__(self) -> None:
        if self.sequence < 1:
            raise UserError(f"sequence={self.sequence}: a row needs at least one slot")
        check_shares(self.mixture, "chat: 0.7, qa: 0.3")
        Schedule(window=self.window)


def run(context: StageContext, recipe: PackWholeRecipe) -> Result:
    """Input port `tokens`: a store that marks what counts. Raises UserError for a corpus of which nothing fits."""
    index = TokenStore.open(context.inputs["tokens"].path("tokens")).index
    where = f"stages.{context.stage.name.removeprefix('pack-')}.mixture"
    shares = {corpus: share for corpus, share in recipe.mixture.items() if share > 0}
    # A corpus that was made for one length has it in its name, as in qa-8k; a person writes mixture.qa.
    chosen = {
        name: select_whole(index, "train", name, recipe.sequence, f"{where}.{name.partition('-')[0]}")
        for name in shares
    }
    return write_plan(
        context,
        index,
        chosen,
        shares,
        sequence=recipe.sequence,
        weigh_by=recipe.weigh_by,
        window=recipe.window,
        counts=lambda plan: {"answer_tokens": int(plan.answers.sum(dtype="int64"))},
    )
