"""Steps of several shapes over the same chips: the same losses, and no weight ever moves."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from ringworld.data.decompose import decomposed
from ringworld.data.order import Schedule
from ringworld.data.packing import pack
from ringworld.data.plan import mix
from ringworld.errors import UserError
from ringworld.exits import DONE
from ringworld.mesh import AXES, MeshSpec, make_mesh, parse_mesh
from ringworld.model.config import ModelConfig
from ringworld.train import trainer
from ringworld.train.progress import read_progress
from ringworld.train.recipe import OptimizerConfig, TrainInputs, TrainJob, TrainOptions, TrainRecipe
from ringworld.train.shapes import check_shapes, renamed, shaped_steps, split_mesh
from ringworld.train.step import TrainStep
from tests.ringworld.corpus import prose, write_corpus
from tests.thorough import thorough

MODEL = ModelConfig(
    vocabulary=264,
    num_layers=2,
    embed_dim=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=48,
    tied_embeddings=True,
)
RECIPE = TrainRecipe(
    model=MODEL, sequence=512, batch_tokens=512, steps=6, optimizer=OptimizerConfig(1e-2, warmup_steps=2)
)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """The meshes here are small: only as many devices as a mesh names."""
    make = trainer.make_mesh
    monkeypatch.setattr(trainer, "make_mesh", lambda spec: make(spec, jax.devices()[: _size(spec)]))


def _size(spec: MeshSpec) -> int:
    return int(np.prod(dataclasses.astuple(spec)))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Rows of 64 and of 512 tokens, each of one document."""
    folder = tmp_path_factory.mktemp("corpus")
    store = write_corpus(folder, [prose(seed, 12 + 5 * seed) for seed in range(12)])
    parts = decomposed(store.index, store.index.documents("train"), 64, 512)
    plans = {str(size): pack(store.index, parts[size], size, "token") for size in (64, 512)}
    plan = mix(plans, {"64": 1.0, "512": 1.0}).scheduled(Schedule(window=8, cycle=6, odds=2.0))
    plan.save(str(folder / "plan.parquet"))
    return TrainInputs(plan=str(folder / "plan.parquet"), tokens=str(folder / "tokens"), output="")


def run(inputs, folder, mesh, **options):
    output = folder / "out"
    output.mkdir(parents=True)
    job = TrainJob(RECIPE, dataclasses.replace(inputs, output=str(output)), TrainOptions(save_every=3, **options))
    assert trainer.train(job, str(folder / "state"), parse_mesh(mesh)) == DONE
    losses = [record.loss for record in read_progress(folder / "state" / "progress.jsonl")]
    return losses, json.loads((output / "steps.json").read_text())


def test_shapes_change_what_chips_do_and_not_what_is_learned(inputs, tmp_path, capfd):
    alone, plan = run(inputs, tmp_path / "alone", "fsdp=1")
    assert [shape["sequence"] for shape in plan["shapes"]] == [512, 64]
    assert len(plan["steps"]) == RECIPE.steps
    capfd.readouterr()
    # One row of 512 tokens cannot lie on two ranks, eight of 64 can.
    auto, plan = run(inputs, tmp_path / "auto", "fsdp=2,ring=1", shapes="auto")
    np.testing.assert_allclose(auto, alone, rtol=2e-5)
    assert {shape["sequence"]: shape["mesh"] for shape in plan["shapes"]} == {
        64: "data=1,fsdp=2,tensor=1,ulysses=1,ring=1",
        512: "data=1,fsdp=1,tensor=1,ulysses=1,ring=2",
    }
    compiled = [line for line in capfd.readouterr().err.splitlines() if "compiling" in line]
    assert len(compiled) == len(plan["shapes"])
    with pytest.raises(UserError, match="fsdp=2 does not divide 1 rows"):
        run(inputs, tmp_path / "fixed", "fsdp=2,ring=1")


@pytest.mark.parametrize(
    "mesh",
    ["fsdp=2,tensor=2,ring=2", *map(thorough, ("fsdp=2,ring=4", "fsdp=4,ulysses=2", "data=2,fsdp=2,ring=2"))],
)
def test_every_split_of_the_chips_has_each_weight_where_it_was(mesh):
    spec = parse_mesh(mesh)
    here = make_mesh(spec, jax.devices()[: _size(spec)])
    options = TrainOptions(shapes="auto")
    recipe = dataclasses.replace(RECIPE, batch_tokens=4096)
    step = TrainStep(recipe, options, here)
    state = step.init(jax.random.key(0))
    chips = here.shape["fsdp"] * here.shape["ring"]
    pointers = [
        shard.data.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards
    ]
    for ring in (1, 2, 4):
        if chips % ring:
            continue
        other = split_mesh(here, ring)
        assert (other.shape["ring"], other.shape["fsdp"]) == (ring, chips // ring)
        assert [other.shape[axis] for axis in AXES[:1] + AXES[2:4]] == [
            here.shape[axis] for axis in AXES[:1] + AXES[2:4]
        ]
        state = renamed(state, TrainStep(recipe, options, other).state_shardings())
        assert {leaf.sharding.mesh for leaf in jax.tree.leaves(state)} == {other}
        found = [s.data.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state) for s in leaf.addressable_shards]
        assert sorted(found) == sorted(pointers)


def test_a_state_that_would_have_to_move_is_refused():
    devices, recipe = jax.devices()[:4], dataclasses.replace(RECIPE, batch_tokens=2048)
    one, two = (make_mesh(parse_mesh(mesh), devices) for mesh in ("fsdp=4", "fsdp=2,tensor=2"))
    state = TrainStep(recipe, TrainOptions(), one).init(jax.random.key(0))
    with pytest.raises(ValueError, match="would move"):
        renamed(state, TrainStep(recipe, TrainOptions(), two).state_shardings())


def test_rows_that_no_split_divides_are_refused_with_what_there_is():
    sizes = parse_mesh("data=2,fsdp=3").sizes()
    with pytest.raises(UserError, match=r"shapes=auto: no split .* data=2,fsdp=3.* divides a step of 8 rows of 64"):
        check_shapes(RECIPE, TrainOptions(shapes="auto"), sizes, {64, 512})
    with pytest.raises(UserError, match="does not divide 8 rows"):
        check_shapes(RECIPE, TrainOptions(), sizes, {64})


def test_a_microbatch_has_the_same_tokens_whatever_its_rows(inputs):
    job = TrainJob(RECIPE, inputs)
    recipe, options = dataclasses.replace(RECIPE, batch_tokens=2048), TrainOptions(shapes="auto", microbatch_rows=1)
    mesh = make_mesh(parse_mesh("fsdp=2,ring=2"), jax.devices()[:4])
    shaped = shaped_steps(recipe, options, mesh, trainer.open_loader(dataclasses.replace(job, recipe=recipe)))
    for step, (sequence, _, split) in zip(shaped.steps, shaped.plan.shapes, strict=True):
        assert step.options.microbatch_rows * sequence == 512 == split.rows_at_once * sequence
        assert step.recipe.rows * sequence == recipe.batch_tokens
