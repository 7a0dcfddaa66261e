"""The compiler's answers: the trainer's own step, processes that may die, and a cache that knows what decides."""

import sys
from dataclasses import replace

import jax
import pytest

from ringworld.errors import UserError
from ringworld.mesh import make_mesh, parse_mesh
from ringworld.model.config import ModelConfig, RopeConfig
from ringworld.model.memory import Memory
from ringworld.planning import aot
from ringworld.planning.hardware import GIB, Topology
from ringworld.train.recipe import OptimizerConfig, TrainOptions, TrainRecipe
from ringworld.train.step import TrainStep

MODEL = ModelConfig(vocabulary=64, num_layers=1, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48)
RECIPE = TrainRecipe(MODEL, sequence=64, batch_tokens=64, steps=9, optimizer=OptimizerConfig(1e-2))
MESH = "data=1,fsdp=1,tensor=1,ulysses=1,ring=2"
JOB = aot.CompileJob(RECIPE, TrainOptions(memory=Memory("layer")), MESH, None)


def saying(code: str) -> tuple[str, ...]:
    """A compiler that is not one."""
    return sys.executable, "-c", code


def test_the_step_of_the_trainer_is_what_is_compiled_and_known_the_next_time(tmp_path):
    told = []
    [answer] = aot.compile_all([JOB], tmp_path, finished=lambda job, found: told.append(found.outcome))
    step = TrainStep(RECIPE, JOB.options, make_mesh(parse_mesh(MESH), jax.devices()[:2]))
    memory = step.compiled().lower(step.abstract_state(), step.abstract_batch()).compile().memory_analysis()
    assert (answer.outcome, told) == ("fits", ["fits"])
    assert answer.peak == memory.argument_size_in_bytes + memory.temp_size_in_bytes
    # Nothing is started for an answer that is kept.
    assert aot.compile_all([JOB, JOB], tmp_path, command=("no such program",)) == [answer, answer]


def test_what_moves_no_byte_shares_an_answer_and_what_does_has_its_own():
    same = replace(RECIPE, steps=7, model=replace(MODEL, rope=RopeConfig(theta=5e7)), optimizer=OptimizerConfig(1.0))
    assert aot.fingerprint(replace(JOB, recipe=same)) == aot.fingerprint(JOB)
    for other in (
        replace(JOB, recipe=replace(RECIPE, sequence=32)),
        replace(JOB, options=TrainOptions()),
        replace(JOB, options=replace(JOB.options, compiler={"a": "1"})),
        replace(JOB, mesh=MESH.replace("ring=2", "ring=1")),
        replace(JOB, topology=Topology("v4:2x2x1", "megacore", (2, 2, 1))),
    ):
        assert aot.fingerprint(other) != aot.fingerprint(JOB)


@pytest.mark.parametrize(
    ("code", "outcome", "said"),
    [
        ("import os, sys; sys.stderr.write('Check failed: elements < 2147483648'); sys.stderr.flush(); os.abort()",
         "crashed", "signal 6: Check failed"),
        ("print('no JSON')", "crashed", "exit code 0"),
        ("import sys; sys.exit(3)", "crashed", "exit code 3: no output"),
        ("import time; time.sleep(60)", "timeout", "no answer after 1 s"),
    ],
)  # fmt: skip
def test_a_compiler_that_dies_is_an_answer_that_says_so_and_is_not_kept(tmp_path, code, outcome, said):
    [answer] = aot.compile_all([JOB], tmp_path, command=saying(code), timeout=1.0)
    assert answer.outcome == outcome
    assert said in answer.message
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_answer_is_asked_for_again(tmp_path):
    (tmp_path / f"{aot.fingerprint(JOB)}.json").write_text('{"outcome": "fi')
    [answer] = aot.compile_all([JOB], tmp_path, command=saying("import sys; sys.exit(3)"))
    assert answer.outcome == "crashed"


def test_figures_of_a_refusal_are_read():
    said = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (117.18G) exceeds available HBM (95.73G). HLO module: jit__step.\nSee https://openxla.org"
    )
    needs = aot.needed_memory(said)
    assert needs is not None
    assert (needs.total, needs.limit) == (117.18 * GIB, 95.73 * GIB)
    assert aot.needed_memory("INVALID_ARGUMENT: Mosaic failed") is None


def test_a_missing_compiler_is_said_with_the_command_that_brings_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install '\.\[plan\]'"):
        aot.require_compiler()


def test_for_a_tpu_that_is_not_here(tmp_path):
    pytest.importorskip("libtpu", reason="the plan extra")
    recipe = replace(RECIPE, dtype="bfloat16", sequence=512, batch_tokens=512, model=replace(MODEL, head_dim=128))
    topology = Topology("v5p:2x2x1", "megacore", (2, 2, 1))
    mesh = MESH.replace("ring=2", "ring=4")
    fits = aot.CompileJob(recipe, JOB.options, mesh, topology)
    unknown = replace(fits, topology=Topology("v5p:7x7x7", "megacore", (2, 2, 1)))
    [answer] = aot.compile_all([fits], tmp_path)
    assert answer.outcome == "fits", answer.message
    with pytest.raises(UserError, match="7x7x7"):
        aot.compile_all([unknown], tmp_path)
