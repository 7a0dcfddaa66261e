"""A walk over the needed blocks of the score matrix: a Pallas TPU grid with one step for each visit, and no other.

One side of the matrix, queries or keys, is the outer one: its blocks stay in fast memory, with what is summed up for
them, while the needed blocks of the inner side come by. Which ones are needed follows from the bounds of both sides.
The visits are listed in plain JAX and given to the grid as prefetched scalars; the length of the grid is their number,
known when the program runs. A block that the bounds prove empty has no step, is never fetched and never computed.

The list lies in scalar memory, which is small, so a long shard is walked in parts of a bounded number of visits. Memory
is linear in the shard: outputs are written in place, and start as what a block without any visit shall be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ringworld.attention.mask import Bounds, Rule, is_full, is_needed

# Most visits in one list: two int32 each, of the 1 MiB of scalar memory of a TPU core.
LONGEST = 32768

# What a step does, beside the number of its inner block in the bits above.
_FIRST, _LAST, _MASKED, _FULL, _BITS = 1, 2, 4, 8, 4


class Step(NamedTuple):
    """What a kernel does at its steps: before an outer block's first visit, at each, and after the last."""

    first: Callable[[], None]
    visit: Callable[[bool], None]  # with or without a mask
    last: Callable[[], None]


@dataclass(frozen=True)
class Side:
    """One side of the score matrix: the bounds [batch, blocks], and arrays [batch, heads, blocks, x, y] that come to
    the kernel as blocks [x, y]. `heads` divides those of the walk; neighbours share."""

    bounds: Bounds
    arrays: tuple[jax.Array, ...]

    @property
    def blocks(self) -> int:
        return self.bounds.first_segment.shape[1]


@dataclass(frozen=True)
class Work:
    """What a walk computes.

    kernel: takes references to the outer blocks, the inner blocks, the output blocks and the scratch, in this order.
    heads: how many times to go over the matrix.
    vmem: bytes of fast memory to ask for.
    """

    kernel: Callable[..., Step]
    rule: Rule
    heads: int
    scratch: tuple[pl.MemoryRef, ...]
    vmem: int


def walk_queries(work: Work, query: Side, key: Side, outputs: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Takes the needed blocks of keys past every block of queries. Returns `outputs`, [batch, heads, blocks of
    queries, x, y], with the blocks replaced that had visits."""
    return _walk(work, query, key, outputs, lambda test, outer, inner: test(outer, inner, work.rule))


def walk_keys(work: Work, query: Side, key: Side, outputs: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Takes the needed blocks of queries past every block of keys; the outputs are those of blocks of keys."""
    return _walk(work, key, query, outputs, lambda test, outer, inner: test(inner, outer, work.rule))


def _walk(work: Work, outer: Side, inner: Side, outputs: tuple[jax.Array, ...], prove: Callable):
    batch = outer.bounds.first_segment.shape[0]
    outer_blocks = batch * outer.blocks
    part = min(outer_blocks, max(1, LONGEST // inner.blocks))
    of_outer = jax.tree.map(lambda x: x.reshape(-1), outer.bounds)

    def step(n: jax.Array, outputs: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        index = n * part + jnp.arange(part, dtype=jnp.int32)
        exists = index < outer_blocks
        mine = Bounds(*(x[index][:, None] for x in of_outer))
        theirs = Bounds(*(x[index // outer.blocks] for x in inner.bounds))
        needed = prove(is_needed, mine, theirs) & exists[:, None]
        visits = _visits(index, needed, prove(is_full, mine, theirs))
        # Only the branch of the platform that the program is compiled for exists in it.
        return lax.platform_dependent(
            visits,
            outputs,
            tpu=lambda visits, outputs: _call(work, visits, outer, inner, outputs, interpret=False),
            default=lambda visits, outputs: _call(work, visits, outer, inner, outputs, interpret=True),
        )

    return lax.fori_loop(0, -(-outer_blocks // part), step, outputs)


class _Visits(NamedTuple):
    """The steps of a grid, by outer block: its number over all rows, and inner block << _BITS | what to do. Those from
    `count` on are not made."""

    outer: jax.Array
    code: jax.Array
    count: jax.Array


def _visits(index: jax.Array, needed: jax.Array, full: jax.Array) -> _Visits:
    """Lists the needed blocks of a matrix [outer, inner] whose rows are numbered by `index`."""
    so_far = jnp.cumsum(needed, 1)
    code = (
        (jnp.arange(needed.shape[1], dtype=jnp.int32) << _BITS)
        | jnp.where(needed & (so_far == 1), _FIRST, 0)
        | jnp.where(needed & (so_far == so_far[:, -1:]), _LAST, 0)
        | jnp.where(needed, jnp.where(full, _FULL, _MASKED), 0)
    )
    every = jnp.broadcast_to(index[:, None], needed.shape)
    _, outer, code = lax.sort((~needed.ravel(), every.ravel(), code.ravel()), num_keys=1, is_stable=True)
    count = needed.sum(dtype=jnp.int32)
    # A grid of no steps may still write its first output block back: where nothing is needed, that block is made.
    code = code.at[0].set(jnp.where(count == 0, code[0] | _FIRST | _LAST, code[0]))
    return _Visits(outer, code, jnp.maximum(count, 1))


def _call(
    work: Work, visits: _Visits, outer: Side, inner: Side, outputs: tuple[jax.Array, ...], *, interpret: bool
) -> tuple[jax.Array, ...]:
    def block(array: jax.Array, is_outer: bool) -> pl.BlockSpec:
        sharing = work.heads // array.shape[1]

        def position(head, n, outer_list, code_list):
            row, own = lax.div(outer_list[n], outer.blocks), lax.rem(outer_list[n], outer.blocks)
            return row, lax.div(head, sharing), own if is_outer else code_list[n] >> _BITS, 0, 0

        return pl.BlockSpec((None, None, None, *array.shape[3:]), position)

    arrays = (*outer.arrays, *inner.arrays)

    def body(_, code_list, *references: jax.Ref) -> None:
        code = code_list[pl.program_id(1)]
        # The outputs' old values, in the middle, stay where they are.
        step = work.kernel(*references[: len(arrays)], *references[len(arrays) + len(outputs) :])
        pl.when(code & _FIRST != 0)(step.first)
        pl.when(code & _FULL != 0)(lambda: step.visit(False))
        pl.when(code & _MASKED != 0)(lambda: step.visit(True))
        pl.when(code & _LAST != 0)(step.last)

    in_specs = [block(x, True) for x in outer.arrays] + [block(x, False) for x in inner.arrays]
    return tuple(
        pl.pallas_call(
            body,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=2,
                # The cores of a chip may share out the heads; the visits of one follow each other.
                grid=(work.heads, visits.count),
                in_specs=in_specs + [pl.BlockSpec(memory_space=pl.ANY)] * len(outputs),
                out_specs=[block(x, True) for x in outputs],
                scratch_shapes=work.scratch,
            ),
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
            input_output_aliases={2 + len(arrays) + n: n for n in range(len(outputs))},
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=work.vmem
            ),
            interpret=interpret,
        )(visits.outer, visits.code, *arrays, *outputs)
    )
