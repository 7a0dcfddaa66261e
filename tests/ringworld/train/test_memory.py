"""Every rung of the memory ladder trains alike: the same losses, the same gradients, less kept."""

import math
from dataclasses import replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.errors import UserError
from ringworld.mesh import make_mesh, parse_mesh
from ringworld.model.config import ModelConfig
from ringworld.model.memory import Memory
from ringworld.train.recipe import OptimizerConfig, TrainOptions, TrainRecipe
from ringworld.train.step import Arrays, TrainStep
from tests.thorough import only, thorough

MODEL = ModelConfig(vocabulary=64, num_layers=4, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48)
RECIPE = TrainRecipe(MODEL, sequence=64, batch_tokens=128, steps=9, optimizer=OptimizerConfig(1e-2, warmup_steps=0))
# These programs run for milliseconds and compile for seconds.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
RUNGS = {
    "attention kept": Memory("attention"),
    "layer inputs": Memory("layer"),
    "every second layer": Memory("layer", every=2),
    "every fourth layer, attention kept within": Memory("attention", every=4),
    "inputs on the host": Memory("layer", offload=1.0),
    "half of the inputs on the host": Memory("attention", offload=0.5),
    "every second layer, on the host": Memory("layer", every=2, offload=0.25),
    "chunks": Memory("layer", chunk=16),
    "chunks, all kept": Memory(chunk=5),
    "heads in groups": Memory("layer", head_groups=2),
    "everything": Memory("layer", every=2, offload=0.5, chunk=8, head_groups=2),
}
QUICK = ("attention kept", "every second layer, on the host", "chunks, all kept", "everything")


def batch() -> Arrays:
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, 64, (2, 2, 64)).astype(np.int32)
    segments = np.repeat([[1, 2, 0], [1, 2, 3]], [20, 40, 4], axis=1).astype(np.int32)
    positions = np.concatenate([np.arange(20), np.arange(40), np.arange(4)]).astype(np.int32)
    weight = (segments > 0) / 128
    columns = tokens, targets, segments, np.tile(positions, (2, 1)), weight.astype(np.float32)
    return Arrays(*map(jnp.asarray, columns))


def two_steps(mesh: str, memory: Memory, **options) -> tuple[list[float], dict]:
    """The losses of two steps and the weights after them."""
    spec = parse_mesh(mesh)
    devices = math.prod(spec.sizes().values())
    step = TrainStep(RECIPE, TrainOptions(memory=memory, **options), make_mesh(spec, jax.devices()[:devices]))
    state, arrays, losses = step.init(jax.random.key(0)), batch(), []
    run = step.compiled().lower(state, arrays).compile(QUICKLY)
    for _ in range(2):
        state, metrics = run(state, arrays)
        losses += [float(metrics.loss), float(metrics.gradient_norm)]
    return losses, jax.device_get(state["params"])


@pytest.fixture(scope="module")
def plain():
    return two_steps("fsdp=1", Memory())


@pytest.mark.parametrize("memory", only(RUNGS, *QUICK))
def test_a_rung_changes_no_loss_and_no_weight(plain, memory):
    compare(plain, two_steps("fsdp=1", memory))


def test_moments_that_wait_on_the_host_change_nothing(plain):
    compare(plain, two_steps("fsdp=1,tensor=2", Memory(), optimizer_on="host"))


@pytest.mark.parametrize(
    "mesh", ["fsdp=2,tensor=2,ring=2", thorough("data=2,fsdp=1,tensor=2,ulysses=2"), thorough("fsdp=1,ring=4,tensor=2")]
)
def test_no_mesh_changes_a_loss_or_a_weight(plain, mesh):
    compare(plain, two_steps(mesh, Memory("layer", chunk=8)))


def compare(plain, found) -> None:
    np.testing.assert_allclose(found[0], plain[0], rtol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), found[1], plain[1])


def temporaries(memory: Memory, sequence: int = 4096) -> int:
    recipe = replace(RECIPE, sequence=sequence, batch_tokens=sequence, model=replace(MODEL, num_layers=16))
    step = TrainStep(recipe, TrainOptions(memory=memory), make_mesh(parse_mesh("fsdp=1"), jax.devices()[:1]))
    arrays = jax.tree.map(lambda x: jnp.zeros((1, sequence), x.dtype), batch())
    memory_used = step.compiled().lower(step.abstract_state(), arrays).compile(QUICKLY).memory_analysis()
    assert memory_used is not None
    return memory_used.temp_size_in_bytes


def test_each_rung_down_holds_less():
    rungs = [
        Memory(),
        Memory("attention"),
        Memory("layer"),
        Memory("layer", chunk=256),
        Memory("layer", every=4, chunk=256),
    ]
    held = [temporaries(memory) for memory in rungs]
    assert all(after < 0.95 * before for before, after in pairwise(held)), held


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"every": 0}, "every=0"),
        ({"remat": "layer", "offload": 1.5}, "offload=1.5 is a share"),
        ({"every": 2}, "every=2, offload=0.0 with remat=none keep everything"),
        ({"chunk": -1}, "chunk=-1 must be 0 or more"),
    ],
)
def test_a_rung_that_cannot_be_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        Memory(**given)


@pytest.mark.parametrize(
    ("mesh", "memory", "message"),
    [
        ("fsdp=1", Memory("layer", every=3), r"every=3 does not divide the 4 layers; use one of \[1, 2, 4\]"),
        (
            "fsdp=1,tensor=2",
            Memory(head_groups=2),
            r"head_groups=2 does not divide the 1 key heads that tensor=2 leaves",
        ),
        (
            "fsdp=1,ulysses=4",
            Memory(head_groups=2),
            r"head_groups=2 leaves 2 heads at a time, which ulysses=4 does not",
        ),
    ],
)
def test_a_rung_that_does_not_divide_the_model_is_refused_with_those_that_do(mesh, memory, message):
    with pytest.raises(UserError, match=message):
        two_steps(mesh, memory)
