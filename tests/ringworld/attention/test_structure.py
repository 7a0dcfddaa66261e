"""What is never computed, never sent and never stored: asserted on the program, not on the clock."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Var, jaxprs_in_params

from tests.ringworld.attention.reference import Case, random_case
from tests.ringworld.attention.running import run, step

SHAPE = {"batch": 1, "heads": 2, "kv_heads": 1, "head_dim": 16}


def arguments(tokens: int):
    case = random_case(np.random.default_rng(0), **SHAPE, tokens=tokens, documents=[[tokens]])
    return case.q, case.k, case.v, case.grad_out, case.positions, case.segments


def executed(jaxpr, primitive: str) -> int:
    """How often a program runs a primitive: the times it stands there, times the lengths of the scans around it."""
    count = 0
    for equation in jaxpr.eqns:
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        inner = sum(executed(sub, primitive) for sub in jaxprs_in_params(equation.params))
        count += times * inner + (equation.primitive.name == primitive)
    return count


def longest_chain(jaxpr, primitive: str) -> int:
    """How many runs of a primitive wait for one another, at most: those of scans counted as one after another."""
    depth: dict = {}
    longest = 0
    for equation in jaxpr.eqns:
        before = max((depth.get(x, 0) for x in equation.invars if isinstance(x, Var)), default=0)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        inner = max((longest_chain(sub, primitive) for sub in jaxprs_in_params(equation.params)), default=0)
        after = before + times * inner + (equation.primitive.name == primitive)
        depth.update(dict.fromkeys(equation.outvars, after))
        longest = max(longest, after)
    return longest


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("ring", [2, 3, 4, 8])
def test_no_exchange_is_wasted(ring, bidirectional):
    """k, v, positions, segments move size - 1 times, forward and backward; so do dk and dv, home included."""
    program = step(ring, 1, (("bidirectional", bidirectional),)).trace(*arguments(8 * ring))
    assert executed(program.jaxpr.jaxpr, "ppermute") == 2 * 4 * (ring - 1) + 2 * (ring - 1)


@pytest.mark.parametrize(("bidirectional", "rounds"), [(False, 7), (True, 4)])
def test_a_bidirectional_ring_halves_the_exchanges_one_after_another(bidirectional, rounds):
    program = step(8, 1, (("bidirectional", bidirectional),)).trace(*arguments(64))
    gradients_after_the_keys = 2  # one to catch up, one home
    assert longest_chain(program.jaxpr.jaxpr, "ppermute") == 2 * rounds + gradients_after_the_keys


def test_the_sequence_is_never_gathered():
    program = step(4).lower(*arguments(64)).compile().as_text() or ""
    assert "collective-permute" in program
    for gathering in ("all-gather", "all-to-all", "all-reduce"):
        assert gathering not in program


def test_memory_is_linear_in_the_shard():
    def temporaries(tokens: int) -> int:
        program = step(1, 1, (("block_q", 64), ("block_kv", 64))).lower(*arguments(tokens)).compile()
        memory = program.memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    assert temporaries(8192) < 2.1 * temporaries(4096)


@pytest.mark.parametrize("ring", [1, 4])
def test_blocks_and_hops_proven_empty_are_never_computed(ring):
    """A product with NaN is NaN even where the mask is 0: only what is not computed leaves the first document clean."""
    case = random_case(np.random.default_rng(0), **SHAPE, tokens=256, documents=[[128, 128]])

    def poison(x: np.ndarray) -> np.ndarray:
        return np.where(np.arange(256)[:, None, None] < 128, x, np.nan)

    arrays = (poison(x) for x in (case.q, case.k, case.v, case.grad_out))
    poisoned = Case(*arrays, positions=case.positions, segments=case.segments)
    found = run(poisoned, ring=ring, block_q=32, block_kv=32)
    for clean, dirty in zip(run(case, ring=ring, block_q=32, block_kv=32), found, strict=True):
        assert np.array_equal(clean[:, :128], dirty[:, :128])
        assert jnp.isnan(dirty[:, 128:]).all()
