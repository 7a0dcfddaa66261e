"""The packing plan of a chat stage: whole conversations, rows of each corpus apart, to be drawn in given proportions.

One process and numpy, like `stages.pack`. A conversation longer than a row is dropped and counted, never cut. Output:
`plan.parquet`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from infra.stage import Result, StageContext
from ringworld.data.files import absolute, join
from ringworld.data.packing import PackingPlan, WeighBy, Whole, length_histogram, mix, pack, select_whole
from ringworld.data.token_store import TokenStore
from ringworld.errors import UserError


@dataclass(frozen=True)
class PackConversationsRecipe:
    """sequence: slots of a row. mixture: the share of the rows that a step draws from each corpus; 0 leaves one out.

    weigh_by: whether each conversation or each counted token of a batch counts the same; see
    `ringworld.data.packing.loss_weights`.
    """

    kind: ClassVar[str] = "pack-conversations"
    sequence: int
    mixture: Mapping[str, float]
    weigh_by: WeighBy = "example"

    def __post_init__(self) -> None:
        if self.sequence < 1:
            raise UserError(f"sequence={self.sequence}: a row needs at least one slot")
        check_mixture(self.mixture)


def check_mixture(mixture: Mapping[str, float]) -> None:
    """UserError for shares that are no proportions: a negative one, or none above 0."""
    shares = dict(mixture)
    if any(not math.isfinite(share) or share < 0 for share in shares.values()) or not sum(shares.values()) > 0:
        raise UserError(
            f"mixture={shares}: give each corpus its share of the rows, at least 0 and one of them above it, "
            "as in mixture={chat: 0.7, qa: 0.3}"
        )


def run(context: StageContext, recipe: PackConversationsRecipe) -> Result:
    """Input port `tokens`: a store of a conversations stage. Raises UserError for a corpus of which nothing fits."""
    index = TokenStore.open(context.inputs["tokens"].path("tokens")).index
    where = f"stages.{context.stage.name.removeprefix('pack-')}.mixture"
    shares = {corpus: share for corpus, share in recipe.mixture.items() if share > 0}
    chosen = {name: select_whole(index, "train", name, recipe.sequence, f"{where}.{name}") for name in shares}
    plans = {name: pack(index, whole.documents, recipe.sequence, recipe.weigh_by) for name, whole in chosen.items()}
    plan = mix(plans, shares)
    plan.save(join(absolute(context.attempt_dir), "plan.parquet"))
    corpora = {
        name: _figures(plans[name], chosen[name]) | {"share": round(share / sum(shares.values()), 6)}
        for name, share in shares.items()
    }
    values = {
        "rows": plan.num_rows,
        "fill": round(plan.fill, 6),
        "slices": len(plan.row),
        "documents": len(plan.row),
        "tokens": int(plan.length.sum(dtype="int64")),
        "answer_tokens": int(plan.answers.sum(dtype="int64")),
        "lengths": length_histogram(index.tokens[plan.document]),
        "corpora": corpora,
    }
    return Result(("plan.parquet",), values)


def _figures(plan: PackingPlan, whole: Whole) -> dict[str, Any]:
    return {
        "rows": plan.num_rows,
        "conversations": len(whole.documents),
        "tokens": int(plan.length.sum(dtype="int64")),
        "answer_tokens": int(plan.answers.sum(dtype="int64")),
        "dropped": dict(whole.dropped),
    }
