"""Plans of whole examples: rows of each corpus apart, to be drawn in given proportions, written as a stage's result."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from infra.stage import Result, StageContext
from ringworld.data.files import absolute, join
from ringworld.data.order import Schedule
from ringworld.data.packing import Whole, cut_in_rows, length_histogram, pack
from ringworld.data.plan import PackingPlan, WeighBy, mix
from ringworld.data.token_store import TokenIndex


def write_plan(
    context: StageContext,
    index: TokenIndex,
    chosen: Mapping[str, Whole],
    shares: Mapping[str, float],
    *,
    sequence: int,
    weigh_by: WeighBy,
    window: int,
    vision_weight: float | None = None,
    counts: Callable[[PackingPlan], Mapping[str, int]],
) -> Result:
    """Pack what was chosen of each corpus and write `plan.parquet`.

    shares: of each corpus, above 0. counts: figures of a plan beyond rows and tokens, of each corpus and of all.
    """
    plans = {
        name: pack(index, cut_in_rows(index, whole.documents, sequence), sequence, weigh_by, vision_weight)
        for name, whole in chosen.items()
    }
    plan = mix(plans, shares).scheduled(Schedule(window=window))
    plan.save(join(absolute(context.attempt_dir), "plan.parquet"))

    def figures(one: PackingPlan) -> dict[str, int]:
        return {"rows": one.num_rows, "tokens": int(one.length.sum(dtype="int64")), **counts(one)}

    corpora = {
        name: figures(plans[name])
        | {
            "examples": len(chosen[name].documents),
            "dropped": dict(chosen[name].dropped),
            "share": round(share / sum(shares.values()), 6),
        }
        for name, share in shares.items()
    }
    values = figures(plan) | {
        "fill": round(plan.fill, 6),
        "slices": len(plan.row),
        "documents": sum(len(whole.documents) for whole in chosen.values()),
        "lengths": length_histogram(index.tokens[plan.document]),
        "corpora": corpora,
    }
    return Result(("plan.parquet",), values)
