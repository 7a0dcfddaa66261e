"""The estimate against the TPU compiler's own answers, and the roofline against what no machine can beat."""

from dataclasses import replace

import pytest

from ringworld.errors import UserError
from ringworld.mesh import parse_mesh
from ringworld.model.config import ModelConfig
from ringworld.model.memory import Memory
from ringworld.planning.estimate import estimate, misfit
from ringworld.planning.hardware import GIB, gpu_machine, tpu_machine
from ringworld.planning.roofline import Efficiency
from ringworld.planning.shapes import shapes_of
from ringworld.train.recipe import OptimizerConfig, TrainOptions, TrainRecipe

LWM = ModelConfig(32000, 32, 4096, 32, 32, 128, 11008)
LLAMA3 = ModelConfig(128256, 32, 4096, 32, 8, 128, 14336)
V4_512 = tpu_machine("v4", "4x8x8", 64, 4)
V5P_8 = tpu_machine("v5p", "2x2x2", 2, 4)
V5P_1 = tpu_machine("v5p", "1x1x1", 1, 1, host_bytes=2.2e11)


def recipe(model: ModelConfig, sequence: int, rows: int = 1) -> TrainRecipe:
    return TrainRecipe(model, sequence, sequence * rows, 100, OptimizerConfig(4e-5), dtype="bfloat16")


def found(trained: TrainRecipe, machine, mesh: str, memory: Memory, **options):
    pairs = trained.rows * trained.sequence**2 / 2
    return estimate(trained, TrainOptions(memory=memory, **options), mesh, machine, pairs, Efficiency())


# GiB of a chip by the compiler of libtpu 0.0.51 for the trainer's step: `flows/plan.py ... aot=true`.
COMPILED = [
    (recipe(LWM, 1 << 15, 128), V4_512, "fsdp=64,tensor=4", Memory("layer", chunk=2048), {}, 6.92),
    (recipe(LWM, 1 << 18, 16), V4_512, "fsdp=16,tensor=16", Memory("layer", chunk=2048), {}, 6.67),
    (recipe(LWM, 1 << 20, 4), V4_512, "fsdp=4,tensor=16,ring=4", Memory("layer", chunk=2048), {}, 7.03),
    (recipe(LWM, 1 << 20), V5P_8, "fsdp=1,ring=8", Memory("layer", 4, 0.0, 2048, 8), {}, 34.93),
    (recipe(LWM, 1 << 20), V5P_8, "fsdp=1,ring=8", Memory("layer", 1, 1.0, 2048, 8), {}, 24.20),
    (recipe(LLAMA3, 3932160), V5P_8, "fsdp=1,ring=8", Memory("layer", 8, 0.0, 2048, 8), {}, 90.46),
    (recipe(LLAMA3, 507904), V5P_1, "fsdp=1", Memory("layer", 1, 1.0, 2048, 8), {"optimizer_on": "host"}, 87.89),
]


@pytest.mark.parametrize(("trained", "machine", "mesh", "memory", "options", "gib"), COMPILED)
def test_the_estimate_is_near_the_compilers_answer(trained, machine, mesh, memory, options, gib):
    assert found(trained, machine, mesh, memory, **options).memory.total / GIB == pytest.approx(gib, rel=0.11)


def test_biases_and_norms_of_heads_are_counted_where_they_lie():
    model = ModelConfig(152064, 28, 3584, 28, 4, 128, 18944)
    sizes = parse_mesh("fsdp=2,tensor=2").sizes()

    def kept(model: ModelConfig) -> int:
        return shapes_of(recipe(model, 1 << 15, 2), TrainOptions(), sizes).state_weights

    assert kept(replace(model, qkv_biases=True)) - kept(model) == 28 * (28 + 4 + 4) * 128 // 2  # tensor's alone
    assert kept(replace(model, head_norms=True)) - kept(model) == 28 * 2 * 128


def test_saved_inputs_on_the_host_are_counted_there():
    kept = found(recipe(LWM, 1 << 20), V5P_8, "fsdp=1,ring=8", Memory("layer", chunk=2048))
    moved = found(recipe(LWM, 1 << 20), V5P_8, "fsdp=1,ring=8", Memory("layer", offload=1.0, chunk=2048))
    inputs = 32 * 2 * 4096 * (1 << 20) // 2  # bytes of one host, which has half of the chips
    assert moved.host_bytes - kept.host_bytes == inputs
    assert kept.memory.saved - moved.memory.saved == pytest.approx(inputs / 4, rel=0.05)


def test_host_memory_can_be_what_does_not_fit():
    # 3.7M tokens x 4096 x 32 layers of bfloat16 are 970 GB: more than two hosts of four v5p chips have.
    trained = recipe(LLAMA3, 3_670_016)
    rungs = Memory("layer", offload=1.0, chunk=2048, head_groups=8)
    said = misfit(found(trained, V5P_8, "fsdp=1,ring=8", rungs), V5P_8)
    assert said is not None
    assert said.startswith("a host needs")


def test_an_array_past_what_the_compiler_addresses_is_said():
    plan = found(recipe(LWM, 1 << 19), tpu_machine("v5p", "1x1x1", 1, 1), "fsdp=1", Memory("layer"))
    assert any("2^31" in note for note in plan.notes)


@pytest.mark.parametrize("mesh", ["fsdp=4,tensor=16,ring=4", "fsdp=16,tensor=16", "data=2,fsdp=8,tensor=4,ulysses=4"])
def test_no_step_is_faster_than_its_counted_work(mesh):
    trained = recipe(LWM, 1 << 18, 16)
    plan = found(trained, V4_512, mesh, Memory("attention", chunk=2048))
    assert plan.mfu is not None
    assert plan.time is not None
    assert 0 < plan.mfu < 1
    assert plan.time.seconds > plan.flops / (256 * 275e12)


def test_what_the_ladder_does_again_takes_time_but_no_mfu_credit():
    trained = recipe(LWM, 1 << 18, 16)
    fast, slow = (
        found(trained, V4_512, "fsdp=16,tensor=16", memory) for memory in (Memory("attention"), Memory("layer"))
    )
    assert fast.flops == slow.flops
    assert fast.time.attention < slow.time.attention  # type: ignore[union-attr]
    assert fast.mfu > slow.mfu  # type: ignore[operator]


def test_a_contiguous_layout_waits_for_the_busiest_rank():
    trained = recipe(LWM, 1 << 20)
    times = [
        found(trained, V5P_8, "fsdp=1,ring=8", Memory("layer"), layout=layout).time.attention  # type: ignore[union-attr]
        for layout in ("balanced", "contiguous")
    ]
    assert times[1] / times[0] == pytest.approx(2 - 1 / 8, rel=0.02)


def test_a_machine_that_nobody_named_has_no_time_and_no_verdict():
    machine = gpu_machine("", 1, 8)
    plan = found(recipe(LWM, 1 << 20), machine, "fsdp=1,ring=8", Memory("layer"))
    assert (plan.time, plan.mfu, misfit(plan, machine)) == (None, None, None)
    assert plan.memory.total > 0


def test_what_the_trainer_refuses_the_plan_refuses():
    with pytest.raises(UserError, match="microbatch_rows=3 does not divide"):
        found(recipe(LWM, 1 << 18, 16), V4_512, "fsdp=16,tensor=16", Memory(), microbatch_rows=3)
    with pytest.raises(UserError, match="num_heads=32"):
        found(recipe(replace(LWM), 1 << 18, 16), V4_512, "fsdp=4,tensor=64", Memory())
