"""Who becomes which rank, and what its trainer inherits: pure functions."""

from __future__ import annotations

from actors.environment import trainer_environment
from actors.ranks import SLICE_NAME, WORKER_ID, HostInfo, coordination, rank_order


def host(node: str, **labels: str) -> HostInfo:
    names = {"worker": WORKER_ID, "slice": SLICE_NAME}
    return HostInfo("10.0.0.1", node, 1, {names[key]: value for key, value in labels.items()})


def test_ranks_follow_worker_ids_as_numbers() -> None:
    assert rank_order([host("a", worker="10"), host("b", worker="2"), host("c", worker="0")]) == [2, 1, 0]


def test_ranks_of_several_slices_stay_together() -> None:
    hosts = [
        host("a", slice="s1", worker="1"),
        host("b", slice="s0", worker="1"),
        host("c", slice="s1", worker="0"),
        host("d", slice="s0", worker="0"),
    ]
    assert rank_order(hosts) == [3, 1, 2, 0]


def test_without_worker_ids_ranks_of_one_node_stay_together_in_order() -> None:
    assert rank_order([host("b"), host("a"), host("b"), host("a", worker="0")]) == [1, 3, 0, 2]


def test_one_rank_needs_no_coordination() -> None:
    assert coordination(0, 1, "") == []
    assert coordination(1, 2, "h:1") == ["--coordinator", "h:1", "--num-processes", "2", "--process-id", "1"]


def test_only_listed_variables_reach_a_trainer() -> None:
    inherited = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "RAY_AUTH_TOKEN": "canary",
        "HF_TOKEN": "canary",
        "OMP_NUM_THREADS": "1",
        "MEGASCALE_NUM_SLICES": "2",
        "TPU_WORKER_ID": "3",
        "CUDA_VISIBLE_DEVICES": "0",
        "JAX_PLATFORMS": "rocm",
        "XLA_FLAGS": "--stale",
    }
    cpu = trainer_environment(inherited, "cpu", {"JAX_COMPILATION_CACHE_DIR": "/cache"})
    assert set(cpu) == {
        "PATH", "LC_ALL", "PYTHONUNBUFFERED", "PYTHONFAULTHANDLER", "JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR",
    }  # fmt: skip
    assert cpu["JAX_PLATFORMS"] == "cpu"
    tpu = trainer_environment(inherited, "tpu", {"MEGASCALE_NUM_SLICES": "4"})
    assert (tpu["TPU_WORKER_ID"], tpu["MEGASCALE_NUM_SLICES"]) == ("3", "4")
    assert "CUDA_VISIBLE_DEVICES" not in tpu
    assert trainer_environment(inherited, "gpu", {"JAX_PLATFORMS": "cuda"})["JAX_PLATFORMS"] == "cuda"
