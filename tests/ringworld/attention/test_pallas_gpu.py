"""The GPU kernels, interpreted: exact like the reference, blind to empty blocks. And lowered: Triton takes them.

What needs the GPU itself, its speed and its own arithmetic, is benchmarks/attention_gpu.py's to show.
"""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from ringworld.attention import pallas_gpu
from ringworld.attention.backend import Scoring
from ringworld.attention.mask import Rule, Tokens, visible
from tests.ringworld.attention.reference import Case, attention, random_case, relative_errors
from tests.ringworld.attention.running import run, step

FLOAT32, BFLOAT16 = 1e-5, 1e-2
SHAPE = {"batch": 2, "tokens": 96, "heads": 4, "kv_heads": 2, "head_dim": 16}
# Rows of 96: one document, and padding alone; many sizes, padding inside and at the end; documents of single tokens.
PACKINGS = [
    [[96], []],
    [[1, 1, 15, -9, 32, 2, 20], [-3, 1, 50, -1, 25, 1]],
    [[24] * 4, [1] * 96],
]

SMALL_BLOCKS: dict[str, Any] = {"backend": "pallas_gpu", "block_q": 16, "block_kv": 32}


def check(case: Case, tolerance: float = FLOAT32, **how: Any) -> None:
    found = run(case, backend="pallas_gpu", **how)
    assert max(relative_errors(found, attention(case))) < tolerance
    for x in found:
        assert not np.asarray(x, np.float32)[case.segments == 0].any()


def rounded(case: Case, dtype) -> Case:
    """The case with values that the dtype can say."""
    arrays = (np.asarray(jnp.asarray(x, dtype), np.float32) for x in (case.q, case.k, case.v, case.grad_out))
    return Case(*arrays, positions=case.positions, segments=case.segments)


@pytest.mark.parametrize("ring", [1, 2])
def test_every_packing_and_layout_is_exact(ring):
    rng = np.random.default_rng(ring)
    for documents in PACKINGS:
        case = random_case(rng, **SHAPE, documents=documents)
        check(case, ring=ring, block_q=16, block_kv=32)
        blocks = rng.permutation(np.arange(96).reshape(-1, 8)).ravel()
        check(case.permuted(blocks), ring=ring, block_q=16, block_kv=32)
    check(case.permuted(rng.permutation(96)), ring=ring, block_q=16, block_kv=32)


@pytest.mark.parametrize(
    ("tokens", "kv_heads", "head_dim", "block_q", "block_kv"),
    [(77, 3, 24, None, None), (150, 1, 64, None, None), (3, 1, 16, None, 1), (100, 1, 128, 24, 40)],
    ids=str,
)
def test_lengths_blocks_and_head_dims_that_triton_would_not_take_are_exact(
    tokens, kv_heads, head_dim, block_q, block_kv
):
    shape = {"batch": 1, "tokens": tokens, "heads": 3, "kv_heads": kv_heads, "head_dim": head_dim}
    documents = [[tokens // 2, -(tokens // 8), tokens // 4]]
    check(random_case(np.random.default_rng(0), **shape, documents=documents), block_q=block_q, block_kv=block_kv)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_half_precision_is_exact_to_its_own_precision(dtype):
    rng = np.random.default_rng(0)
    for documents in PACKINGS[:2]:
        case = rounded(random_case(rng, **SHAPE | {"head_dim": 64}, documents=documents), dtype)
        check(case, BFLOAT16, dtype=dtype, block_q=32, block_kv=32)


def test_window_sinks_and_soft_cap_are_those_of_the_plain_backend():
    case = random_case(np.random.default_rng(0), **SHAPE, documents=PACKINGS[1])
    scoring = {"window": 9, "sinks": 3, "soft_cap": 2.0, "scale": 0.5}
    expected = [np.asarray(x, np.float64) for x in run(case, backend="xla", **scoring)]
    assert min(relative_errors(attention(case, 0.5), expected)) > 100 * FLOAT32
    assert max(relative_errors(run(case, **SMALL_BLOCKS, **scoring), expected)) < FLOAT32


def test_scores_far_apart_neither_overflow_nor_vanish():
    case = random_case(np.random.default_rng(0), **SHAPE, documents=PACKINGS[1])
    found = run(case, **SMALL_BLOCKS, scale=5.0)
    assert max(relative_errors(found, attention(case, 5.0))) < 3 * FLOAT32


def test_blocks_proven_empty_are_never_computed():
    """A product with NaN is NaN even where the mask is 0: only what is not computed leaves the first document clean."""
    case = random_case(np.random.default_rng(0), **SHAPE, documents=[[32, 64]] * 2)

    def poison(x: np.ndarray) -> np.ndarray:
        return np.where(np.arange(96)[:, None, None] < 32, x, np.nan)

    arrays = (poison(x) for x in (case.q, case.k, case.v, case.grad_out))
    poisoned = Case(*arrays, positions=case.positions, segments=case.segments)
    for clean, dirty in zip(run(case, **SMALL_BLOCKS), run(poisoned, **SMALL_BLOCKS), strict=True):
        assert np.array_equal(clean[:, :32], dirty[:, :32])
        assert jnp.isnan(dirty[:, 32:]).all()


def test_blocks_proven_full_never_look_at_the_mask(monkeypatch):
    """With a mask that hides everything, full blocks are all that is left: those below the diagonal of 32 x 32."""
    case = random_case(np.random.default_rng(0), **SHAPE, documents=[[96], [96]])
    monkeypatch.setattr(pallas_gpu, "visible", lambda query, key, rule: visible(query, key, rule) & False)
    arrays = case.q, case.k, case.v, case.grad_out, case.positions, case.segments
    out, grad_q, grad_k, grad_v = step.__wrapped__(1, 1, tuple(SMALL_BLOCKS.items()))(*arrays)
    for of_queries, of_keys in ((out, grad_k), (grad_q, grad_v)):
        assert not of_queries[:, :32].any()
        assert of_queries[:, 32:].all()
        assert of_keys[:, :64].all()
        assert not of_keys[:, 64:].any()


def test_a_shard_swept_in_several_launches_gives_the_same_bits(monkeypatch):
    case = random_case(np.random.default_rng(0), **SHAPE, documents=[[80, 16], [16] * 6])
    arrays = case.q, case.k, case.v, case.grad_out, case.positions, case.segments
    # Six blocks of queries, three of keys, two rows: two blocks of queries a launch, and a last launch that overlaps.
    monkeypatch.setattr(pallas_gpu, "_SCHEDULE_BYTES", 40)
    several = step.__wrapped__(1, 1, tuple(SMALL_BLOCKS.items())).trace(*arrays)
    assert "i32[2,2,3]" in str(several.jaxpr)
    assert "i32[2,6,3]" not in str(several.jaxpr)
    for a, b in zip(run(case, **SMALL_BLOCKS), several.lower().compile()(*arrays), strict=True):
        assert np.array_equal(a, b)


def lowered(dtype, *, head_dim: int, tokens: int = 1024, scoring: Scoring | None = None) -> list[str]:
    """Programs of forward and backward for an H100, as far as a machine without one brings them: Triton's IR is in."""
    q, k = (jax.ShapeDtypeStruct((1, heads, tokens, head_dim), dtype) for heads in (4, 2))
    of_tokens = jax.ShapeDtypeStruct((1, tokens), jnp.int32)
    statistics = jax.ShapeDtypeStruct((1, 4, tokens), jnp.float32)
    both: Any = Tokens(of_tokens, of_tokens)  # pyright: ignore[reportArgumentType] (shapes stand for arrays)
    scoring = scoring or Scoring(0.1)
    blocks = pallas_gpu.default_blocks(
        queries=tokens, keys=tokens, heads=4, kv_heads=2, head_dim=head_dim, itemsize=q.dtype.itemsize
    )

    def forward(q, k, v, query, key):
        return pallas_gpu.forward(q, k, v, query, key, scoring=scoring, blocks=blocks)

    def backward(q, k, v, query, key, lse, delta, g):
        return pallas_gpu.backward(q, k, v, query, key, lse, delta, g, scoring=scoring, blocks=blocks)

    device = AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        traced = (
            jax.jit(forward).trace(q, k, k, both, both),
            jax.jit(backward).trace(q, k, k, both, both, statistics, statistics, q),
        )
        return [program.lower(lowering_platforms=("cuda",)).as_text() for program in traced]


@pytest.mark.parametrize(
    ("dtype", "head_dim", "scoring"),
    [
        (jnp.bfloat16, 128, Scoring(0.1)),
        (jnp.bfloat16, 64, Scoring(0.1, 30.0, Rule(100, sinks=4))),
        (jnp.float32, 128, Scoring(0.1, 30.0)),
        (jnp.float32, 64, Scoring(0.1, None, Rule(100))),
        (jnp.float16, 96, Scoring(0.1)),
        (jnp.bfloat16, 256, Scoring(0.1)),
    ],
    ids=str,
)
def test_the_program_for_a_gpu_holds_the_kernels_as_triton_takes_them(dtype, head_dim, scoring):
    names = [re.findall(r'name = "(\w+)"', program) for program in lowered(dtype, head_dim=head_dim, scoring=scoring)]
    assert names == [["forward_kernel"], ["query_gradient_kernel", "key_gradient_kernel"]]


def test_memory_stays_linear_in_the_shard_also_at_four_million_tokens():
    tokens = 2**22
    for program in lowered(jnp.bfloat16, head_dim=16, tokens=tokens):
        shapes = re.findall(r"tensor<((?:\d+x)+)[a-z]", program)
        largest = max(math.prod(map(int, shape.rstrip("x").split("x"))) for shape in shapes)
        assert largest <= 4 * tokens * 16  # q itself; the schedule of the whole shard would be four times as large


def test_default_blocks_are_no_larger_than_the_shard_but_for_tritons_smallest_tile():
    for tokens in (1, 15, 16, 17, 100, 128, 5000):
        blocks = pallas_gpu.default_blocks(
            queries=tokens, keys=2 * tokens, heads=4, kv_heads=2, head_dim=64, itemsize=2
        )
        assert blocks.queries <= max(tokens, 16)
        assert blocks.keys <= max(2 * tokens, 16)


def test_a_head_too_wide_for_the_kernels_is_refused():
    case = random_case(np.random.default_rng(0), **SHAPE | {"head_dim": 300}, documents=[[], []])
    with pytest.raises(ValueError, match=r"q has head_dim 300; .* at most 256; use backend='xla'"):
        run(case, backend="pallas_gpu")
