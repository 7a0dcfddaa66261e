"""What plan.json says of each stage: its place in the graph, and of one that trains how much there is to do."""

from __future__ import annotations

from flows.plan_rows import machine_of, options_of
from infra.outline import Outlined
from infra.stage import Stage
from ringworld.errors import UserError
from ringworld.planning.estimate import estimate
from ringworld.planning.roofline import Efficiency
from ringworld.train.flops import training_flops
from ringworld.train.recipe import TrainRecipe


def outlined(stage: Stage) -> Outlined:
    """Without states. Attention counts as if each row were one document, which the packing plan may make less."""
    inputs = tuple(dict.fromkeys(source.name for source in stage.inputs.values()))
    found = Outlined(stage.name, stage.recipe.kind, stage.fingerprint, inputs)
    if not isinstance(stage.recipe, TrainRecipe):
        return found
    recipe = stage.recipe
    pairs = recipe.rows * recipe.sequence * (recipe.sequence + 1) // 2
    return Outlined(
        *(found.name, found.kind, found.fingerprint, found.inputs),
        steps=recipe.steps,
        step_tokens=recipe.batch_tokens,
        step_flops=training_flops(recipe.model, recipe.batch_tokens, pairs),
        step_seconds=_planned_seconds(stage, recipe, pairs),
    )


def _planned_seconds(stage: Stage, recipe: TrainRecipe, pairs: int) -> float | None:
    """As flows/plan.py estimates them; None for processors, which would have to be measured first."""
    if stage.placement.kind == "cpu":
        return None
    try:
        machine = machine_of(stage.placement, recipe.dtype)
        found = estimate(recipe, options_of(stage.placement), stage.placement.mesh, machine, pairs, Efficiency())
    except UserError:
        return None  # a placement that cannot run says so when it does
    return found.time.seconds if found.time else None
