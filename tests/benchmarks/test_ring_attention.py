"""The benchmark measures the work that it says: sums checked by hand, our side against the float64 reference."""

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.environment import Unavailable, python_with
from benchmarks.ring_attention import OURS, Benchmark, Entry, Plan, Progress, in_turn, summary, table
from benchmarks.ring_attention_ours import counted_bytes
from benchmarks.ring_attention_work import HEAD_DIM, HEADS, Work, largest_difference, one_long
from benchmarks.worker import Worker
from tests.ringworld.attention.reference import Case, attention

# Compiled without LLVM's costly passes: these programs run for milliseconds and compile for seconds.
QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


class Recorder:
    """Stands for a worker: writes down who was asked, and takes as many seconds as were asked before."""

    def __init__(self, name: str, asked: list[str]) -> None:
        self._name, self._asked = name, asked

    def ask(self, request):
        self._asked.append(self._name)
        return {"seconds": len(self._asked), "cpu_seconds": 1.0}


def test_sides_take_turns_and_the_warm_up_does_not_count():
    asked: list[str] = []
    entries = [Entry(name, Recorder(name, asked), {}) for name in "ab"]  # pyright: ignore[reportArgumentType]
    answers = in_turn(entries, 3, Progress(4), "")
    assert "".join(asked) == "abababab"
    assert [answer["seconds"] for answer in answers["a"]] == [3, 5, 7]
    assert summary(answers["b"], Work((8,)))["seconds"] == 6


def test_operations_are_those_of_the_visible_pairs():
    """7 products of 2 operations per pair, head and number; half of n * n pairs, the diagonal's half neglected."""
    work = Work((4096, 1024))
    positions, segments = work.tokens()
    pairs = int(sum((positions[segments == n] + 1).sum() for n in (1, 2)))
    assert work.operations == pytest.approx(7 * 2 * pairs * HEADS * HEAD_DIM, rel=1e-3)


def test_one_long_document_has_half_the_row_and_short_ones_share_the_rest():
    long, *short = one_long(8192, 15)
    assert (long, len(short), sum(short)) == (4096, 15, 4096)
    assert max(short) - min(short) <= 1


@pytest.mark.parametrize("layout", ["contiguous", "balanced"])
def test_our_side_computes_the_work(tmp_path, layout):
    """In a process of its own, as the benchmark runs it; results come back in the row's order in every layout."""
    work = Work((64,)) if layout == "balanced" else Work((40, 24))
    path = tmp_path / "results.npz"
    request = {"documents": work.documents, "layout": layout}
    with Worker(Path(sys.executable), OURS, 2, QUICKLY) as worker:
        assert worker.ask({"do": "step", **request})["seconds"] > 0
        worker.ask({"do": "save", **request, "path": str(path)})
    (q, k, v, grad_out), (positions, segments) = work.arrays(), work.tokens()
    expected = attention(Case(q, k, v, grad_out, positions, segments))
    with np.load(path) as file:
        assert largest_difference(list(file.values()), expected) < 1e-5


def test_a_worker_that_dies_says_why():
    with (
        Worker(Path(sys.executable), OURS, 1) as worker,
        pytest.raises(RuntimeError, match="layout='sideways'; it must be one of contiguous, balanced"),
    ):
        worker.ask({"do": "step", "documents": [64], "layout": "sideways"})


def test_counted_bytes_are_24_arrays_of_a_shard_and_blocks_that_do_not_grow():
    """A token of an array: 4 heads x 64 x 4 bytes; 56 bytes of integers and statistics."""
    assert counted_bytes(65536) - counted_bytes(32768) == 32768 * (24 * 1024 + 56)
    assert 0 < counted_bytes(65536) - 65536 * (24 * 1024 + 56) <= 2 * 2 * 512 * 512 * 4


def test_a_plan_without_a_peer_is_carried_out_and_told():
    plan = Plan(
        tokens=256, runs=1, devices=(1, 2), flags=(QUICKLY,), chunks=(), document=64, lengths=(64, 128), memory_ring=2,
        shards=(64,),
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        results = Benchmark(plan, None, stack).run()
    assert [row["devices"] for row in results["rings"]] == [1, 2]
    assert results["rings"][1]["difference"]["balanced, contiguous"] < 1e-5
    assert all(row["contiguous"]["seconds"] > 0 for row in results["packed"].values())
    assert results["memory"][0]["bytes"] > 8 * 64 * HEADS * HEAD_DIM * 4  # more than arguments and results
    text = table(json.loads(json.dumps(results)))
    assert "goal 70%" in text
    assert "ring 2: balanced is" in text


def test_an_environment_that_cannot_be_made_is_said_and_not_kept(tmp_path):
    with pytest.raises(Unavailable, match="no-such-package"):
        python_with("peer", [str(tmp_path / "no-such-package")], tmp_path)
    assert not (tmp_path / "peer" / "packages.txt").exists()
