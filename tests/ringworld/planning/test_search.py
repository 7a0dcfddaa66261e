"""Proposals: all fit, the trainer accepts them, and none that was given by hand is faster."""

import pytest

from ringworld.errors import UserError
from ringworld.model.config import ModelConfig
from ringworld.model.memory import Memory
from ringworld.planning.estimate import check_runs, estimate, misfit
from ringworld.planning.hardware import gpu_machine, tpu_machine
from ringworld.planning.roofline import Efficiency
from ringworld.planning.search import choices
from ringworld.train.recipe import OptimizerConfig, TrainOptions, TrainRecipe

MODEL = ModelConfig(32000, 8, 2048, 16, 8, 128, 5632)
MACHINE = tpu_machine("v5e", "4x4", 4, 4)


def recipe(sequence: int, rows: int) -> TrainRecipe:
    return TrainRecipe(MODEL, sequence, sequence * rows, 10, OptimizerConfig(1e-4), dtype="bfloat16")


def proposals(trained: TrainRecipe, machine=MACHINE):
    return choices(trained, TrainOptions(), machine, trained.rows * trained.sequence**2 / 2, Efficiency())


def test_the_best_fits_runs_and_is_the_fastest_with_room():
    trained = recipe(1 << 15, 16)
    found = proposals(trained)
    best = found[0]
    check_runs(trained, best.options, best.mesh)
    assert misfit(best.found, MACHINE) is None
    roomy = [choice for choice in found if choice.found.memory.total <= 0.85 * MACHINE.chip.hbm_bytes]  # type: ignore[union-attr]
    assert best.found.time.seconds <= 1.011 * min(choice.found.time.seconds for choice in roomy)  # type: ignore[union-attr]
    pairs = trained.rows * trained.sequence**2 / 2
    by_hand = estimate(trained, TrainOptions(memory=Memory("layer")), "fsdp=4,ring=4", MACHINE, pairs, Efficiency())
    assert misfit(by_hand, MACHINE) is None
    assert best.found.time.seconds <= 1.011 * by_hand.time.seconds  # type: ignore[union-attr]


def test_rows_are_taken_in_microbatches_where_nothing_else_fits():
    best = proposals(recipe(1 << 15, 1024))[0]
    assert 0 < best.options.microbatch_rows < 1024


def test_what_nothing_holds_is_refused_with_the_nearest_and_why():
    with pytest.raises(UserError, match=r"no mesh of 16 v5e chips holds it.*needs .* GiB"):
        proposals(recipe(1 << 25, 1))


def test_unnamed_chips_cannot_be_searched_for():
    with pytest.raises(UserError, match=r"placement\.accelerator"):
        proposals(recipe(1 << 15, 16), gpu_machine("", 1, 16))
