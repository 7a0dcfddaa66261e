"""The TPU kernels, interpreted: exact like every backend, and without a step for a block proven empty."""

import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.attention import pallas_tpu, pallas_walk, ring_attention, xla
from ringworld.attention.backend import Blocks, Scoring
from ringworld.attention.mask import Bounds, Rule, Tokens, bounds, is_needed, split, visible
from tests.ringworld.attention.reference import Case, attention, random_case, relative_errors
from tests.ringworld.attention.running import run

ROOT = Path(__file__).parents[3]
FLOAT32, BFLOAT16 = 1e-5, 1e-2
# As in running.py: these programs run for milliseconds and compile for seconds.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
SHAPE = {"batch": 2, "tokens": 192, "heads": 4, "kv_heads": 2, "head_dim": 16}
PACKINGS = {
    "one document, and padding alone": [[192], []],
    "many sizes, padding inside and at the end": [[1, 1, 30, -17, 64, 2, 40], [-5, 1, 100, -1, 50, 1]],
    "documents of a block, documents of one token": [[24] * 8, [1] * 192],
}


def check(case: Case, tolerance: float = FLOAT32, **how):
    found = run(case, backend="pallas_tpu", **how)
    assert max(relative_errors(found, attention(case, how.get("scale")))) < tolerance
    for array in found:
        assert not np.asarray(array, np.float32)[case.segments == 0].any()


@pytest.mark.parametrize("ring", [1, 2])
def test_every_packing_and_layout_is_exact(ring):
    rng = np.random.default_rng(0)
    for documents in PACKINGS.values():
        case = random_case(rng, **SHAPE, documents=documents)
        check(case, ring=ring, block_q=16, block_kv=24)
        blocks = np.arange(192).reshape(-1, 8)
        check(case.permuted(rng.permutation(blocks).ravel()), ring=ring, block_q=16, block_kv=24)
    check(case.permuted(rng.permutation(192)), ring=ring, block_q=16, block_kv=24)


@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "head_dim", "blocks"),
    [(77, 3, 3, 128, (33, 17)), (130, 6, 3, 24, (128, 50)), (200, 4, 1, 64, ())],
    ids=str,
)
def test_any_length_block_and_heads_are_exact(tokens, heads, kv_heads, head_dim, blocks):
    shape = {"batch": 2, "tokens": tokens, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    case = random_case(np.random.default_rng(0), **shape, documents=[[tokens], [tokens // 3, tokens // 2]])
    check(case, **dict(zip(("block_q", "block_kv"), blocks, strict=False)))


def test_bfloat16_is_exact_to_its_own_precision():
    rng = np.random.default_rng(0)
    for documents in PACKINGS.values():
        case = random_case(rng, **SHAPE | {"head_dim": 64}, documents=documents)
        arrays = (np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32) for x in (case.q, case.k, case.v, case.grad_out))
        rounded = Case(*arrays, positions=case.positions, segments=case.segments)
        check(rounded, BFLOAT16, dtype=jnp.bfloat16, block_q=32, block_kv=64)


@pytest.mark.parametrize(
    "options", [{"window": 20}, {"window": 9, "sinks": 3, "soft_cap": 2.0}, {"scale": 5.0}], ids=str
)
def test_windows_sinks_caps_and_scores_far_apart_are_exact(options):
    rng = np.random.default_rng(0)
    case = random_case(rng, **SHAPE, documents=PACKINGS["many sizes, padding inside and at the end"])
    case = case.permuted(rng.permutation(np.arange(192).reshape(-1, 8)).ravel())
    found = run(case, backend="pallas_tpu", block_q=32, block_kv=16, **options)
    assert max(relative_errors(found, attention(case, **options))) < FLOAT32


@pytest.mark.parametrize("rule", [Rule(), Rule(window=3), Rule(window=2, sinks=2)], ids=str)
def test_the_kernels_know_no_other_rule_than_the_mask(rule):
    rng = np.random.default_rng(0)
    query, key = (Tokens(*(jnp.asarray(rng.integers(-1, 7, (2, n)), jnp.int32))) for n in (40, 50))
    expected = visible(query, key, rule)
    assert expected.any()
    columns, rows = (Tokens(*(x[:, None] for x in query)), Tokens(*(x[None] for x in key)))
    assert np.array_equal(pallas_tpu._sees(columns, rows, rule), expected)
    columns, rows = (Tokens(*(x[:, None] for x in key)), Tokens(*(x[None] for x in query)))
    assert np.array_equal(pallas_tpu._sees(rows, columns, rule), expected.T)


def test_blocks_proven_empty_are_never_computed():
    """A product with NaN is NaN even where the mask is 0: only what is not computed leaves the first document clean."""
    shape = SHAPE | {"batch": 1, "tokens": 256}
    case = random_case(np.random.default_rng(0), **shape, documents=[[128, 100]])

    def poison(x: np.ndarray) -> np.ndarray:
        return np.where(np.arange(256)[:, None, None] < 128, x, np.nan)

    arrays = (poison(x) for x in (case.q, case.k, case.v, case.grad_out))
    poisoned = Case(*arrays, positions=case.positions, segments=case.segments)
    found = run(poisoned, backend="pallas_tpu", block_q=32, block_kv=32)
    for clean, dirty in zip(run(case, backend="pallas_tpu", block_q=32, block_kv=32), found, strict=True):
        assert np.array_equal(clean[:, :128], dirty[:, :128])
        assert jnp.isnan(dirty[:, 128:228]).all()


def results(backend):
    """A function of cases to (out, log-sum-exp, three gradients) of a backend, without a ring; traced anew."""

    @partial(jax.jit, compiler_options=QUICKLY)
    def compute(q, k, v, grad, tokens):
        how = {"scoring": Scoring(0.25), "blocks": Blocks(32, 32)}
        out, lse = backend.forward(q, k, v, tokens, tokens, **how)
        grads = backend.backward(q, k, v, tokens, tokens, lse, (out * grad).sum(-1), grad, **how)
        return out, jnp.maximum(lse, -10), *grads  # NOTHING would be the measure of every error

    def of_case(case: Case):
        arrays = (jnp.asarray(x).swapaxes(1, 2) for x in (case.q, case.k, case.v, case.grad_out))
        return compute(*arrays, Tokens(jnp.asarray(case.positions), jnp.asarray(case.segments)))

    return of_case


def test_a_walk_in_parts_is_the_same_walk(monkeypatch):
    case = random_case(np.random.default_rng(0), **SHAPE, documents=[[1, 70, -30, 90], [100, 92]])
    expected = [np.asarray(x, np.float64) for x in results(xla)(case)]
    for longest in (1, 30):  # one block of queries or keys in a part; five, of rows that differ, and not the last time
        monkeypatch.setattr(pallas_walk, "LONGEST", longest)
        assert max(relative_errors(results(pallas_tpu)(case), expected)) < FLOAT32


def test_a_grid_has_one_step_for_each_needed_block(monkeypatch):
    """Sees the steps that the program takes, and what they do, in every kernel."""
    grids, call = [], pallas_walk._call

    def watched(work, visits, *arguments, interpret):
        if interpret:
            jax.debug.callback(grids.append, visits)
        return call(work, visits, *arguments, interpret=interpret)

    monkeypatch.setattr(pallas_walk, "_call", watched)
    compute = results(pallas_tpu)
    for documents in ([[192], [192]], [[32] * 6, [64, 128]], [[-192], [10]], [[], []]):
        case = random_case(np.random.default_rng(0), **SHAPE, documents=documents)
        grids.clear()
        jax.block_until_ready(compute(case))
        jax.effects_barrier()

        of_blocks = bounds(split(Tokens(jnp.asarray(case.positions), jnp.asarray(case.segments)), 32))
        query, key = Bounds(*(x[:, :, None] for x in of_blocks)), Bounds(*(x[:, None] for x in of_blocks))
        needed = [tuple(map(int, index)) for index in np.argwhere(is_needed(query, key))]
        by_query = {(6 * row + i, j) for row, i, j in needed}
        by_key = {(6 * row + j, i) for row, i, j in needed}
        assert len(grids) == 3
        for visits in grids:
            outer, code = (np.asarray(x)[: int(visits.count)] for x in (visits.outer, visits.code))
            computes = code & (pallas_walk._MASKED | pallas_walk._FULL) != 0
            made = list(zip(outer[computes].tolist(), (code[computes] >> pallas_walk._BITS).tolist(), strict=True))
            assert len(outer) == max(1, len(needed))
            assert len(made) == len(needed)
            assert set(made) in (by_query, by_key)
            # The visits of an outer block follow each other; the first opens it, the last closes it.
            changes = np.flatnonzero(np.diff(outer)).tolist()
            assert len(changes) + 1 == len(set(outer.tolist()))
            assert np.flatnonzero(code & pallas_walk._FIRST).tolist() == [0, *(n + 1 for n in changes)]
            assert np.flatnonzero(code & pallas_walk._LAST).tolist() == [*changes, len(outer) - 1]


def test_float16_and_keys_of_another_length_than_the_queries():
    case = random_case(np.random.default_rng(0), **SHAPE, documents=PACKINGS["one document, and padding alone"])
    q, k, v = (np.asarray(x, np.float16) for x in (case.q, case.k, case.v))
    last = slice(150, None)

    @partial(jax.jit, compiler_options=QUICKLY)
    def attend(q, k, v, positions, segments, kv_positions, kv_segments):
        where = {"positions": positions, "segments": segments, "axis_name": None, "backend": "pallas_tpu"}
        return ring_attention(q, k, v, **where, kv_positions=kv_positions, kv_segments=kv_segments)

    query = case.positions[:, last], case.segments[:, last]
    out = attend(q[:, last], k, v, *query, case.positions, case.segments)
    assert out.dtype == jnp.float16
    arrays = (np.asarray(x, np.float32) for x in (q, k, v, case.grad_out))
    rounded = Case(*arrays, positions=case.positions, segments=case.segments)
    assert max(relative_errors([out], [attention(rounded)[0][:, last]])) < 1e-3


def test_default_blocks_fit_the_shard_and_whole_tiles():
    for queries, keys in ((1, 1), (100, 3000), (513, 1025), (5000, 262144)):
        for heads, kv_heads in ((8, 8), (8, 1), (32, 8), (64, 1), (3, 1)):
            for head_dim, itemsize in ((128, 2), (128, 4), (256, 4)):
                shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "itemsize": itemsize}
                blocks = pallas_tpu.default_blocks(queries=queries, keys=keys, **shape)
                assert 1 <= blocks.queries <= queries
                assert 1 <= blocks.keys <= keys
                assert blocks.queries == queries or blocks.queries % 16 == 0
                assert blocks.keys == keys or blocks.keys % 128 == 0


COMPILE = """
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, PartitionSpec, NamedSharding
from ringworld.attention import ring_attention

topology = topologies.get_topology_desc(platform="tpu", topology_name="v4:2x2x1", chip_config_name="megacore")
mesh = Mesh(np.array(topology.devices), ("ring",))
rows = PartitionSpec(None, "ring")

def attend(q, k, v, positions, segments):
    where = dict(positions=positions, segments=segments, axis_name="ring", backend="pallas_tpu")
    return ring_attention(q, k, v, **where, window=700, soft_cap=30.0)

sharded = jax.shard_map(attend, mesh=mesh, in_specs=(rows,) * 5, out_specs=rows, check_vma=False)

def both(q, k, v, grad, *tokens):
    out, gradient = jax.vjp(lambda q, k, v: sharded(q, k, v, *tokens), q, k, v)
    return out, *gradient(grad)

def shape(dtype, *sizes):
    return jax.ShapeDtypeStruct((1, 4 * 1100, *sizes), dtype, sharding=NamedSharding(mesh, rows))

arrays = [shape(jnp.bfloat16, heads, 64) for heads in (4, 2, 2, 4)]
lowered = jax.jit(both).lower(*arrays, shape(jnp.int32), shape(jnp.int32))
print(lowered.as_text().count("tpu_custom_call") > 0, lowered.as_text().count("dot_general"))
lowered.compile()
print("compiled")
"""


@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu, the TPU compiler")
def test_a_ring_compiles_for_a_tpu_without_one():
    """With every product inside the kernels: what the program does elsewhere, interpreted, is not in it."""
    tpu = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v4-8", "TPU_WORKER_HOSTNAMES": "localhost"}
    tpu |= {"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=os.environ | tpu, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["True", "0", "compiled"]
