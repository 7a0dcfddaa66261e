"""The packing plan of one training stage: which documents, by their length, and where in which row.

One process and numpy: a plan reads the index of the token store, never a token. Output: `plan.parquet`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from infra.stage import Result, StageContext
from ringworld.data.files import absolute, join
from ringworld.data.packing import WeighBy, length_histogram, pack, select
from ringworld.data.token_store import TokenStore
from ringworld.errors import UserError


@dataclass(frozen=True)
class PackRecipe:
    """sequence: slots of a row. lengths: least and greatest length in tokens of the documents to take; null: no bound.

    weigh_by: whether each example or each token of a batch counts the same; see `ringworld.data.packing.loss_weights`.
    """

    kind: ClassVar[str] = "pack"
    sequence: int
    lengths: tuple[int, int | None] = (2, None)
    weigh_by: WeighBy = "example"

    def __post_init__(self) -> None:
        least, most = self.lengths
        if self.sequence < 1:
            raise UserError(f"sequence={self.sequence}: a row needs at least one slot")
        if most is not None and most < least:
            raise UserError(
                f"lengths=[{least},{most}]: the greatest length is below the least; swap them, or give null"
            )


def run(context: StageContext, recipe: PackRecipe) -> Result:
    """Input port `tokens`. Raises UserError, naming the override, when no document passes the length filter."""
    index = TokenStore.open(context.inputs["tokens"].path("tokens")).index
    least, most = recipe.lengths
    documents = select(index, "train", least, most, f"stages.{context.stage.name.removeprefix('pack-')}.lengths")
    plan = pack(index, documents, recipe.sequence, recipe.weigh_by)
    plan.save(join(absolute(context.attempt_dir), "plan.parquet"))
    values = {
        "rows": plan.num_rows,
        "fill": round(plan.fill, 6),
        "slices": len(plan.row),
        "documents": len(documents),
        "documents_available": len(index.documents("train")),
        "tokens": int(plan.length.sum(dtype="int64")),
        "lengths": length_histogram(index.tokens[documents]),
    }
    return Result(("plan.parquet",), values)
