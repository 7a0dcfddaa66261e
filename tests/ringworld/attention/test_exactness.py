"""Output and gradients equal a dense float64 reference, whatever the mesh, the packing, the layout and the shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringworld.attention import ring_attention
from tests.ringworld.attention.reference import Case, attention, random_case, relative_errors
from tests.ringworld.attention.running import run
from tests.thorough import only, thorough

FLOAT32, BFLOAT16 = 1e-5, 1e-2
SHAPE = {"batch": 2, "tokens": 192, "heads": 4, "kv_heads": 2, "head_dim": 16}
# Rows of 192: one document; many of every size, down to single tokens; padding inside and at the end; padding alone.
PACKINGS = {
    "one document, and padding alone": [[192], []],
    "many sizes, padding inside and at the end": [[1, 1, 30, -17, 64, 2, 40], [-5, 1, 100, -1, 50, 1]],
    "documents of a block, documents of one token": [[24] * 8, [1] * 192],
}


def check(case, tolerance=FLOAT32, **how):
    found = run(case, **how)
    asked = {name: how[name] for name in ("scale", "soft_cap", "window", "sinks") if name in how}
    assert max(relative_errors(found, attention(case, **asked))) < tolerance
    padding = case.segments == 0
    out, grad_q = (np.asarray(x, np.float32) for x in found[:2])
    assert not out[padding].any()
    assert not grad_q[padding].any()
    for grad in found[2:]:
        assert not np.asarray(grad, np.float32)[padding].any()


@pytest.mark.parametrize("ring", [1, 2, 3, thorough(4), 8])
def test_a_ring_of_any_size_is_exact_for_every_packing_and_layout(ring):
    rng = np.random.default_rng(ring)
    for documents in PACKINGS.values():
        case = random_case(rng, **SHAPE, documents=documents)
        check(case, ring=ring, block_q=16, block_kv=24)
        blocks = np.arange(192).reshape(-1, 8)
        check(case.permuted(rng.permutation(blocks).ravel()), ring=ring, block_q=16, block_kv=24)
    check(case.permuted(rng.permutation(192)), ring=ring, block_q=16, block_kv=24)


@pytest.mark.parametrize("ring", [2, 3, thorough(4), thorough(8)])
def test_keys_that_go_round_both_ways_meet_every_query_once(ring):
    rng = np.random.default_rng(ring)
    for documents in PACKINGS.values():
        case = random_case(rng, **SHAPE, documents=documents)
        check(case.permuted(rng.permutation(192)), ring=ring, bidirectional=True, block_q=16, block_kv=24)


@pytest.mark.parametrize(("ring", "ulysses", "heads", "kv_heads"), [(2, 4, 4, 2), (1, 4, 4, 1), (2, 2, 6, 3)], ids=str)
def test_heads_parallel_around_the_ring_is_exact_also_with_fewer_key_heads_than_ranks(ring, ulysses, heads, kv_heads):
    rng = np.random.default_rng(0)
    shape = SHAPE | {"heads": heads, "kv_heads": kv_heads}
    for documents in PACKINGS.values():
        check(random_case(rng, **shape, documents=documents), ring=ring, ulysses=ulysses)


NARROWED = {
    "a window": {"window": 20},
    "a window and sinks": {"window": 9, "sinks": 3},
    "itself alone": {"window": 1},
    "a window longer than all": {"window": 1000, "sinks": 1},
    "a soft cap": {"soft_cap": 0.7},
    "all of them": {"window": 33, "sinks": 2, "soft_cap": 2.0, "scale": 0.6},
}


@pytest.mark.parametrize("options", only(NARROWED, "a window", "a soft cap", "all of them"))
def test_windows_sinks_and_soft_caps_are_exact_for_every_packing_and_layout(options):
    rng = np.random.default_rng(0)
    for documents in PACKINGS.values():
        case = random_case(rng, **SHAPE, documents=documents)
        check(case, block_q=16, block_kv=24, **options)
        blocks = np.arange(192).reshape(-1, 8)
        check(case.permuted(rng.permutation(blocks).ravel()), ring=2, block_q=16, block_kv=24, **options)


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_grouped_query_heads_of_every_kind_are_exact(kv_heads):
    rng = np.random.default_rng(0)
    for documents in PACKINGS.values():
        check(random_case(rng, **SHAPE | {"kv_heads": kv_heads}, documents=documents), block_q=64, block_kv=32)


def test_bfloat16_is_exact_to_its_own_precision():
    rng = np.random.default_rng(0)
    for documents in PACKINGS.values():
        case = random_case(rng, **SHAPE | {"head_dim": 64}, documents=documents)
        arrays = (np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32) for x in (case.q, case.k, case.v, case.grad_out))
        rounded = Case(*arrays, positions=case.positions, segments=case.segments)
        check(rounded, BFLOAT16, ring=2, dtype=jnp.bfloat16, block_q=32, block_kv=32)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    tokens=st.integers(1, 80),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    head_dim=st.sampled_from([16, 24, 64, 128, 256]),
    window=st.none() | st.integers(1, 90),
    soft_cap=st.none() | st.sampled_from([0.5, 5.0]),
    block_q=st.none() | st.integers(1, 80),
    block_kv=st.none() | st.integers(1, 80),
    cuts=st.lists(st.integers(-20, 40).filter(bool), max_size=8),
)
def test_any_shape_and_block_is_exact(tokens, kv_heads, group, head_dim, window, soft_cap, block_q, block_kv, cuts):
    lengths, left = [], tokens
    for cut in cuts:
        lengths.append(int(np.sign(cut)) * min(abs(cut), left))
        left -= abs(lengths[-1])
    rng = np.random.default_rng(tokens)
    shape = {"batch": 1, "tokens": tokens, "heads": kv_heads * group, "kv_heads": kv_heads, "head_dim": head_dim}
    blocks = {"block_q": block_q and min(block_q, tokens), "block_kv": block_kv and min(block_kv, tokens)}
    check(random_case(rng, **shape, documents=[lengths]), window=window, soft_cap=soft_cap, **blocks)


def test_a_shard_longer_than_the_default_blocks_is_exact():
    rng = np.random.default_rng(0)
    shape = {"batch": 1, "tokens": 1537, "heads": 2, "kv_heads": 1, "head_dim": 32}
    check(random_case(rng, **shape, documents=[[1030, -7, 500]]))


def test_scores_far_apart_neither_overflow_nor_vanish():
    rng = np.random.default_rng(0)
    case = random_case(rng, **SHAPE, documents=[[192], [100, 92]])
    check(case, 3e-5, scale=5.0)


def test_keys_of_another_length_than_the_queries():
    rng = np.random.default_rng(0)
    case = random_case(rng, **SHAPE, documents=PACKINGS["many sizes, padding inside and at the end"])
    last = slice(150, None)

    @jax.jit
    def attend(q, k, v, positions, segments, kv_positions, kv_segments):
        where = {"positions": positions, "segments": segments, "axis_name": None}
        return ring_attention(q, k, v, **where, kv_positions=kv_positions, kv_segments=kv_segments)

    query = case.positions[:, last], case.segments[:, last]
    out = attend(case.q[:, last], case.k, case.v, *query, case.positions, case.segments)
    assert max(relative_errors([out], [attention(case)[0][:, last]])) < FLOAT32
