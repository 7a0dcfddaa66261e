"""Checkpoints: whatever was done to the newest, what is restored is what was saved, of some step."""

import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ringworld.errors import UserError
from ringworld.mesh import MeshSpec, make_mesh
from ringworld.train.checkpoint import Checkpoints, load_params, save_params
from ringworld.train.checksums import checksums
from tests.infra.gcs import Cloud, run_beside

# Orbax leaves the reads of other shards behind when one fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

MESHES = {name: make_mesh(spec, jax.devices()[:4]) for name, spec in {
    "ring": MeshSpec(fsdp=1, ring=4), "split": MeshSpec(fsdp=2, tensor=2)}.items()}  # fmt: skip


def placed(tree, mesh="ring"):
    """Arrays of two dimensions split over the ring, or over both axes of the other mesh."""
    spec = {"ring": PartitionSpec(None, "ring"), "split": PartitionSpec("fsdp", "tensor")}[mesh]

    def place(leaf):
        return jax.device_put(leaf, NamedSharding(MESHES[mesh], spec if leaf.ndim == 2 else PartitionSpec()))

    return jax.tree.map(place, tree)


def state(seed, mesh="ring"):
    key = jax.random.key(seed)
    weights = {"gate": jax.random.normal(key, (64, 96)), "norm": jnp.arange(200.0) + seed}
    return placed({"params": weights, "step": jnp.int32(seed)}, mesh)


def abstract(mesh="ring"):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state(0, mesh)
    )


def same(found, expected):
    jax.tree.map(lambda one, other: np.testing.assert_array_equal(np.asarray(one), np.asarray(other)), found, expected)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with checkpoints of steps 10 and 20."""
    folder = tmp_path_factory.mktemp("two")
    with Checkpoints(str(folder), keep=2) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, state(step))
            checkpoints.wait()
    return folder


@pytest.fixture
def folder(two, tmp_path):
    return shutil.copytree(two, tmp_path / "state")


def files(checkpoint):
    return sorted(os.path.join(at, name) for at, _, names in os.walk(checkpoint) for name in names)


def restore(folder, mesh="ring"):
    with Checkpoints(str(folder), keep=2) as checkpoints:
        found = checkpoints.restore_newest(abstract(mesh))
    assert found is not None
    return found


@pytest.mark.parametrize("mesh", ["ring", "split"])
def test_a_state_is_verified_and_restored_on_any_mesh(folder, mesh):
    found = restore(folder, mesh)
    assert (found.step, found.damaged) == (20, ())
    same(found.state, state(20))
    assert found.state["params"]["gate"].sharding == state(0, mesh)["params"]["gate"].sharding


HARMS = {
    "missing": lambda data: None,
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "flipped": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 16]) + data[len(data) // 2 + 1 :],
    "garbage": lambda data: np.random.default_rng(0).bytes(len(data)),
}


@pytest.mark.parametrize("harm", HARMS)
def test_whatever_file_is_harmed_what_is_restored_is_what_was_saved(folder, tmp_path, harm, capfd):
    """Every file in turn: Orbax keeps some that it does not need."""
    passed_over = {}
    for number, file in enumerate(files(folder / "checkpoints" / "20")):
        harmed = shutil.copytree(folder, tmp_path / str(number))
        place = harmed / os.path.relpath(file, folder)
        data = HARMS[harm](place.read_bytes())
        place.unlink()
        if data is not None:
            place.write_bytes(data)
        found = restore(harmed)
        same(found.state, state(found.step))
        if found.step == 20:
            assert not found.damaged
            continue
        said = capfd.readouterr().err
        assert f"warning: checkpoint {harmed}/checkpoints/20 is damaged: " in said
        passed_over[os.path.getsize(file)] = said
        assert (found.step, found.damaged) == (10, (20,))
        assert sorted(os.listdir(harmed / "checkpoints")) == ["10"]
        assert (harmed / "damaged" / "20" / "default").is_dir()
    largest = max(map(os.path.getsize, files(folder / "checkpoints" / "20")))
    assert largest in passed_over, "the file of the arrays"
    assert len(passed_over) >= 3
    if harm == "flipped":
        assert "not as it was saved: params." in passed_over[largest]


def test_the_step_of_a_damaged_checkpoint_is_saved_again_and_nothing_is_deleted(folder):
    for _ in range(2):
        with open(folder / "checkpoints" / "20" / "default" / "_METADATA", "w") as file:
            file.write("{")
        with Checkpoints(str(folder), keep=2) as checkpoints:
            found = checkpoints.restore_newest(abstract())
            assert found is not None
            assert found.step == 10
            checkpoints.save(20, state(20))
    assert restore(folder).step == 20
    assert sorted(os.listdir(folder / "damaged")) == ["20", "20-2"]


def test_when_all_are_damaged_a_person_is_told_and_all_stay(folder):
    for step in ("10", "20"):
        (folder / "checkpoints" / step / "_CHECKPOINT_METADATA").unlink()
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"every checkpoint in .*/checkpoints is damaged \(20: missing: .*10: missing"
        ):
            restore(folder)
    assert sorted(os.listdir(folder / "checkpoints")) == ["10", "20"]


def test_storage_that_refuses_is_no_damage(folder, monkeypatch):
    def refused(*_, **__):
        raise ValueError("UNAVAILABLE: Error reading http://storage: 503")

    monkeypatch.setattr("orbax.checkpoint.StandardCheckpointHandler.restore", refused)
    with pytest.raises(ValueError, match="UNAVAILABLE"):
        restore(folder)
    assert sorted(os.listdir(folder / "checkpoints")) == ["10", "20"]


def test_the_newest_stay_and_so_does_every_nth(tmp_path):
    with Checkpoints(str(tmp_path), keep=2, keep_every=20) as checkpoints:
        for step in (10, 20, 30, 40, 50, 60, 70):
            checkpoints.save(step, {"step": placed(jnp.int32(step))})
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["20", "40", "60", "70"]


def test_what_a_death_while_saving_left_is_cleared_away(folder):
    left = folder / "checkpoints" / "30.orbax-checkpoint-tmp"
    shutil.copytree(folder / "checkpoints" / "20", left)
    with Checkpoints(str(folder), keep=2) as checkpoints:
        assert checkpoints.restore_newest(abstract()) is not None
        checkpoints.save(30, state(30))
    assert not left.exists()
    assert restore(folder).step == 30


def test_weights_that_are_not_those_of_their_stage_are_refused(tmp_path):
    weights = state(1)["params"]
    save_params(str(tmp_path / "params"), weights)
    same(load_params(str(tmp_path / "params"), abstract("split")["params"]), weights)
    largest = max(files(tmp_path / "params"), key=os.path.getsize)
    Path(largest).write_bytes(HARMS["flipped"](Path(largest).read_bytes()))
    with pytest.raises(UserError, match=r"params .*/params are damaged: gate; make their stage again"):
        load_params(str(tmp_path / "params"), abstract("split")["params"])


def in_a_bucket(harmed: str):
    """Run in a process of its own: clients of Google's storage keep the first address that they are given."""
    for step in (10, 20):
        with Checkpoints("gs://bucket/run/state", keep=2) as checkpoints:
            checkpoints.save(step, state(step))
    # Arrays are the largest objects, in however many files they were written.
    of_20 = [file for file in Path(harmed).glob("*.object") if b"/20/default/" in file.read_bytes().split(b"\n", 1)[0]]
    largest = max(of_20, key=os.path.getsize)
    line, data = largest.read_bytes().split(b"\n", 1)
    largest.write_bytes(line + b"\n" + HARMS["flipped"](data))
    with Checkpoints("gs://bucket/run/state", keep=2) as checkpoints:
        found = checkpoints.restore_newest(abstract())
        assert found is not None
        same(found.state, state(10))
        assert (found.step, found.damaged) == (10, (20,))
        checkpoints.save(20, state(20))
    with Checkpoints("gs://bucket/run/state", keep=2) as checkpoints:
        found = checkpoints.restore_newest(abstract("split"))
    assert found is not None
    assert (found.step, found.damaged) == (20, ())


def test_all_of_it_holds_in_a_bucket(tmp_path):
    cloud = Cloud(tmp_path)
    ran = run_beside(cloud, __name__, "in_a_bucket", str(tmp_path / "objects"))
    assert (
        "warning: checkpoint gs://bucket/run/state/checkpoints/20 is damaged: not as it was saved: params.gate"
        in ran.stderr
    )
    aside = {name for name in cloud.objects if name.startswith("bucket/run/state/damaged/20/")}
    assert len(aside) >= 8


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "uint32", "bool"])
def test_one_changed_element_or_two_swapped_change_the_checksum(dtype):
    array = np.array(jax.random.randint(jax.random.key(1), (5, 7), 0, 2).astype(dtype))
    array[2, 3], array[4, 6] = 0, 1
    sums = {checksums({"a": jax.device_put(array)})["a"]}
    one, swapped = array.copy(), array.copy()
    one[2, 3] = 1
    swapped[2, 3], swapped[4, 6] = 1, 0
    sums |= {checksums({"a": jax.device_put(changed)})["a"] for changed in (one, swapped)}
    assert len(sums) == 3


def test_a_checksum_is_that_of_the_formula_on_every_mesh_and_from_host_memory():
    """Against NumPy, written from the description: weights by place, a sum modulo 2^32."""
    value = np.array(jax.random.normal(jax.random.key(3), (8, 6, 4)))
    place = np.arange(value.size, dtype=np.uint64)
    mixed = place * 0x9E3779B1 % 2**32
    mixed = (mixed ^ mixed >> 15) * 0x85EBCA77 % 2**32
    weight = (mixed ^ mixed >> 13) | 1
    expected = int((value.view(np.uint32).ravel() * weight % 2**32).sum() % 2**32)
    split = NamedSharding(MESHES["split"], PartitionSpec("tensor", None, "fsdp"))
    for sharding in (
        NamedSharding(MESHES["ring"], PartitionSpec()),
        split,
        split.with_memory_kind("pinned_host"),
    ):
        assert checksums({"a": jax.device_put(value, sharding)}) == {"a": expected}
