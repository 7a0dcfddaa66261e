"""The block backend for NVIDIA GPUs, in Pallas' Triton kernels: the interface is `ringworld.attention.backend`.

Three kernels of FlashAttention-2's shape (arXiv:2307.08691): forward and grad_q keep a block of queries and stream keys
past it, grad_k with grad_v keep a block of keys and stream the queries of all its group's heads. How long a kernel
streams is data: it reads its schedule from memory, visits the blocks proven full without a mask, then the others with
one, and never touches those proven empty. Keys are never repeated, the score matrix exists one tile at a time, sums and
statistics are float32. On other platforms than CUDA the same kernels run interpreted, slowly. (jax 0.11 warns, as it
lowers them, that a later version will only know Mosaic GPU's kernels.)

Triton takes tiles of powers of two from 16 on: a block of another size counts as the next smaller one, shards are
filled up with padding, and a head_dim that is no power of two is filled up with zeros.

Legend: b batch, h heads, n kv_heads, g heads in a group, t query tokens, s key tokens, d head_dim. Of the two sides of
a kernel, `standing` is the one whose block a program keeps, `passing` the one that streams.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ringworld.attention.backend import NOTHING, Blocks, Scoring
from ringworld.attention.mask import Bounds, Tokens, bounds, schedule, split, visible

_LOG2_E = math.log2(math.e)
_SMALLEST_TILE = 16  # on every side of Triton's products
_LARGEST_HEAD_DIM = 256
# What the schedule of one launch may take. That of a whole shard grows with its square, so a long shard is swept in
# several launches, over as many groups of standing blocks; one launch of default blocks does for 256K tokens.
_SCHEDULE_BYTES = 2**24


@dataclass(frozen=True)
class Tiling:
    """How one kernel cuts its work, in tokens; sizes are powers of two.

    standing: the block that a program keeps. passing: the block of the other side that is visited or not as a whole.
    step: how much of a passing block one step of the loop takes. warps, stages: Triton's, of a program and of its loop.
    """

    standing: int
    passing: int
    step: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Walk:
    """A program's way past the blocks of its schedule, as the body of a kernel sees it.

    here: the slice of its own block. visit(step, state, heads=1) runs state = step(there, head, seen, state) for each
    slice `there` of the other side, for each of so many heads; seen is None where the block is full, else the mask,
    standing side first. exp2: 2 ** x.
    """

    here: Any
    visit: Callable[..., Any]
    exp2: Callable[[jax.Array], jax.Array]


# kernel(walk, scoring, inputs, outputs), the latter two being references to arrays of one head, or one head's group.
Kernel = Callable[[Walk, Scoring, Sequence[Any], Sequence[Any]], None]


def default_blocks(*, queries: int, keys: int, heads: int, kv_heads: int, head_dim: int, itemsize: int) -> Blocks:
    """See BlockBackend.

    128 rows are the work of two warpgroups of Hopper's matrix instruction. Shorter blocks would have more streamed past
    them than the second-level cache gives; longer ones do not fit the registers, and waste more where documents begin.
    """
    return Blocks(_tile(min(queries, 128)), _tile(min(keys, 128)))


def forward(
    q_bhtd: jax.Array,
    k_bnsd: jax.Array,
    v_bnsd: jax.Array,
    query: Tokens,
    key: Tokens,
    *,
    scoring: Scoring,
    blocks: Blocks,
) -> tuple[jax.Array, jax.Array]:
    """See BlockBackend. Raises ValueError for a head_dim that the kernels cannot hold."""
    _, h, t, d = q_bhtd.shape
    queries, keys = _tile(blocks.queries), _tile(blocks.keys)
    q, k, v = _fill(q_bhtd, queries), _fill(k_bnsd, keys), _fill(v_bnsd, keys)
    shared = h // k.shape[1]
    out, lse = _sweep(
        _forward_kernel,
        _tiling(_forward_kernel, queries, keys, q),
        scoring,
        heads=h,
        standing=query,
        passing=key,
        inputs=[(q, _of_head(q)), (k, _of_head(k, shared)), (v, _of_head(v, shared))],
        outputs=[jax.ShapeDtypeStruct(q.shape, jnp.float32), jax.ShapeDtypeStruct(q.shape[:3], jnp.float32)],
    )
    return out[:, :, :t, :d], lse[:, :, :t]


def backward(
    q_bhtd: jax.Array,
    k_bnsd: jax.Array,
    v_bnsd: jax.Array,
    query: Tokens,
    key: Tokens,
    log_sum_exp: jax.Array,
    delta: jax.Array,
    grad_out: jax.Array,
    *,
    scoring: Scoring,
    blocks: Blocks,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See BlockBackend. Raises ValueError for a head_dim that the kernels cannot hold."""
    _, h, t, d = q_bhtd.shape
    n, s = k_bnsd.shape[1:3]
    queries, keys = _tile(blocks.queries), _tile(blocks.keys)
    q, g, k, v = _fill(q_bhtd, queries), _fill(grad_out, queries), _fill(k_bnsd, keys), _fill(v_bnsd, keys)
    lse, delta = (jnp.pad(x, ((0, 0), (0, 0), (0, -t % queries))) for x in (log_sum_exp * _LOG2_E, delta))
    of_query = (q, g, lse, delta)

    (grad_q,) = _sweep(
        _query_gradient_kernel,
        _tiling(_query_gradient_kernel, queries, keys, q),
        scoring,
        heads=h,
        standing=query,
        passing=key,
        inputs=[*((x, _of_head(x)) for x in of_query), *((x, _of_head(x, h // n)) for x in (k, v))],
        outputs=[jax.ShapeDtypeStruct(q.shape, jnp.float32)],
    )
    grouped = [x.reshape(x.shape[0], n, h // n, *x.shape[2:]) for x in of_query]
    grad_k, grad_v = _sweep(
        _key_gradient_kernel,
        _tiling(_key_gradient_kernel, keys, queries, q),
        scoring,
        heads=n,
        standing=key,
        passing=query,
        keys_stand=True,
        inputs=[*((x, _of_head(x)) for x in grouped), (k, _of_head(k)), (v, _of_head(v))],
        outputs=[jax.ShapeDtypeStruct(k.shape, jnp.float32)] * 2,
    )
    return grad_q[:, :, :t, :d], grad_k[:, :, :s, :d], grad_v[:, :, :s, :d]


def _forward_kernel(walk: Walk, scoring: Scoring, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    q_ref, k_ref, v_ref = inputs
    out_ref, lse_ref = outputs
    q = q_ref[walk.here, :]
    unit = _unit(scoring)

    def step(there: Any, head: jax.Array, seen: jax.Array | None, state):
        acc, top, total = state
        scores = _scores(_product_nt(q, k_ref[there, :]), scoring)
        if seen is not None:
            scores = jnp.where(seen, scores, NOTHING)
        new_top = jnp.maximum(top, scores.max(-1))
        p = walk.exp2(scores * unit - (new_top * unit)[:, None])
        shrink = walk.exp2((top - new_top) * unit)
        v = v_ref[there, :]
        acc = acc * shrink[:, None] + _product(p.astype(v.dtype), v)
        return acc, new_top, total * shrink + p.sum(-1)

    # Where no key has been seen the top stays half of NOTHING, so that a hidden score, NOTHING, weighs 2 ** -inf.
    rows = q.shape[0]
    state = jnp.zeros(q.shape, jnp.float32), jnp.full(rows, NOTHING / 2, jnp.float32), jnp.zeros(rows, jnp.float32)
    acc, top, total = walk.visit(step, state)
    some = total > 0
    safe = jnp.where(some, total, 1.0)
    out_ref[walk.here, :] = acc / safe[:, None]
    lse_ref[walk.here] = jnp.where(some, top * (unit / _LOG2_E) + jnp.log(safe), NOTHING)


def _query_gradient_kernel(walk: Walk, scoring: Scoring, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    q_ref, g_ref, lse_ref, delta_ref, k_ref, v_ref = inputs
    (grad_q_ref,) = outputs
    q, g = q_ref[walk.here, :], g_ref[walk.here, :]
    lse, delta = lse_ref[walk.here], delta_ref[walk.here]

    def step(there: Any, head: jax.Array, seen: jax.Array | None, grad_q: jax.Array):
        k, v = k_ref[there, :], v_ref[there, :]
        scores = _scores(_product_nt(q, k), scoring)
        p = _weights(scores, lse[:, None], seen, scoring, walk)
        ds = _score_gradient(p, scores, _product_nt(g, v) - delta[:, None], scoring)
        return grad_q + _product(ds.astype(k.dtype), k)

    grad_q_ref[walk.here, :] = walk.visit(step, jnp.zeros(q.shape, jnp.float32)) * scoring.scale


def _key_gradient_kernel(walk: Walk, scoring: Scoring, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    q_ref, g_ref, lse_ref, delta_ref, k_ref, v_ref = inputs
    grad_k_ref, grad_v_ref = outputs
    k, v = k_ref[walk.here, :], v_ref[walk.here, :]

    # Scores stand transposed, [keys, queries]: both sums then take them as they lie in the registers.
    def step(there: Any, head: jax.Array, seen: jax.Array | None, state):
        grad_k, grad_v = state
        q, g = q_ref[head, there, :], g_ref[head, there, :]
        scores = _scores(_product_nt(k, q), scoring)
        p = _weights(scores, lse_ref[head, there][None, :], seen, scoring, walk)
        grad_v = grad_v + _product(p.astype(g.dtype), g)
        ds = _score_gradient(p, scores, _product_nt(v, g) - delta_ref[head, there][None, :], scoring)
        return grad_k + _product(ds.astype(q.dtype), q), grad_v

    zeros = jnp.zeros(k.shape, jnp.float32)
    grad_k, grad_v = walk.visit(step, (zeros, zeros), heads=q_ref.shape[0])
    grad_k_ref[walk.here, :] = grad_k * scoring.scale
    grad_v_ref[walk.here, :] = grad_v


def _scores(products: jax.Array, scoring: Scoring) -> jax.Array:
    """Scores of products of queries and keys, in units of `_unit`."""
    return products if scoring.soft_cap is None else jnp.tanh(products * (scoring.scale / scoring.soft_cap))


def _unit(scoring: Scoring) -> float:
    """What makes logarithms to base 2 of `_scores`; it is left to the exponential's subtraction, and costs nothing."""
    return (scoring.scale if scoring.soft_cap is None else scoring.soft_cap) * _LOG2_E


def _weights(scores: jax.Array, log2_sum: jax.Array, seen: jax.Array | None, scoring: Scoring, walk: Walk) -> jax.Array:
    p = walk.exp2(scores * _unit(scoring) - log2_sum)
    return p if seen is None else jnp.where(seen, p, 0.0)


def _score_gradient(p: jax.Array, scores: jax.Array, grad_p: jax.Array, scoring: Scoring) -> jax.Array:
    """The gradient of what the scale multiplies, but for the scale; grad_p is that of the weights, less delta."""
    ds = p * grad_p
    return ds if scoring.soft_cap is None else ds * (1.0 - scores * scores)


def _product_nt(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b.T in float32."""
    return _dot(a, b, (((1,), (1,)), ((), ())))


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b in float32."""
    return _dot(a, b, (((1,), (0,)), ((), ())))


def _dot(a: jax.Array, b: jax.Array, dimensions: Any) -> jax.Array:
    # The highest precision keeps float32 inputs off the tensor cores' tf32; 16-bit inputs are exact in any.
    return lax.dot_general(a, b, dimensions, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def _sweep(
    kernel: Kernel,
    tiling: Tiling,
    scoring: Scoring,
    *,
    heads: int,
    standing: Tokens,
    passing: Tokens,
    inputs: Sequence[tuple[jax.Array, pl.BlockSpec]],
    outputs: Sequence[jax.ShapeDtypeStruct],
    keys_stand: bool = False,
) -> list[jax.Array]:
    """Runs a kernel for every standing block of every head and row; outputs are [b, heads, standing tokens, ...]."""
    rule = scoring.rule
    cut, passing_cut = split(standing, tiling.standing), split(passing, tiling.passing)
    own_bounds, passing_bounds = bounds(cut), bounds(passing_cut)
    batch, count = own_bounds.padded.shape
    launches = -(-count * passing_bounds.padded.size * 4 // _SCHEDULE_BYTES)
    blocks = -(-count // launches)
    tokens = [x.reshape(batch, -1) for x in (*cut, *passing_cut)]

    def place(index):
        # Documents in order give the last queries and the first keys the most to do: those start first.
        return index if keys_stand else blocks - 1 - index

    def program(*refs, exp2: Callable[[jax.Array], jax.Array]) -> None:
        first_ref, order_ref, counts_ref, own_positions, own_segments, positions, segments = refs[:7]
        here = pl.ds((first_ref[0] + place(pl.program_id(0))) * tiling.standing, tiling.standing)
        own = Tokens(own_positions[here], own_segments[here])
        pieces = tiling.passing // tiling.step

        def visit(step, state, heads: int = 1):
            def run(masked: bool):
                def turn(n, state):
                    head, n = lax.rem(n, heads), lax.div(n, heads)
                    start = order_ref[lax.div(n, pieces)] * tiling.passing + lax.rem(n, pieces) * tiling.step
                    there = pl.ds(start, tiling.step)
                    if not masked:
                        return step(there, head, None, state)
                    other = Tokens(positions[there], segments[there])
                    seen = visible(other, own, rule).T if keys_stand else visible(own, other, rule)
                    return step(there, head, seen, state)

                return turn

            full, needed = counts_ref[0] * (pieces * heads), counts_ref[1] * (pieces * heads)
            state = lax.fori_loop(0, full, run(False), state)
            return lax.fori_loop(full, needed, run(True), state)

        kernel(Walk(here, visit, exp2), scoring, refs[7 : 7 + len(inputs)], refs[-len(outputs) :])

    def launch(first: jax.Array | int, done: Sequence[jax.Array]) -> list[jax.Array]:
        """Computes the standing blocks from `first` on; in place, if there is an array of what is done so far."""
        own = Bounds(*(lax.dynamic_slice_in_dim(x, first, blocks, 1)[:, :, None] for x in own_bounds))
        others = Bounds(*(x[:, None] for x in passing_bounds))
        plan = schedule(others, own, rule) if keys_stand else schedule(own, others, rule)
        operands = [
            (jnp.asarray(first, jnp.int32)[None], pl.BlockSpec((1,), lambda i, h, b: (0,))),
            *(
                (x, pl.BlockSpec((None, None, x.shape[2]), lambda i, h, b: (b, place(i), 0)))
                for x in (plan.order, jnp.stack([plan.full, plan.needed], -1))
            ),
            *((x, pl.BlockSpec((None, x.shape[1]), lambda i, h, b: (b, 0))) for x in tokens),
            *inputs,
            *((x, _of_head(x)) for x in done),
        ]
        arrays, specs = zip(*operands, strict=True)

        def call(interpret: bool):
            return pl.pallas_call(
                partial(program, exp2=jnp.exp2 if interpret else _exp2),
                grid=(blocks, heads, batch),
                in_specs=list(specs),
                out_specs=[_of_head(x) for x in outputs],
                out_shape=list(outputs),
                input_output_aliases={len(arrays) - len(done) + i: i for i in range(len(done))},
                compiler_params=triton.CompilerParams(num_warps=tiling.warps, num_stages=tiling.stages),
                interpret=interpret,
                name=kernel.__name__.strip("_"),
            )

        return list(lax.platform_dependent(*arrays, cuda=call(False), default=call(True)))

    if launches == 1:
        return launch(0, ())
    blank = [jnp.zeros(x.shape, x.dtype) for x in outputs]
    # The last launch begins early enough to be as large as the others, and computes some blocks once more.
    return lax.fori_loop(0, launches, lambda n, done: launch(jnp.minimum(n * blocks, count - blocks), done), blank)


def _of_head(x: jax.Array | jax.ShapeDtypeStruct, sharing: int = 1) -> pl.BlockSpec:
    """All of a head of [b, heads, ...], which `sharing` heads of the grid have in common."""
    rest = (0,) * (len(x.shape) - 2)
    return pl.BlockSpec((None, None, *x.shape[2:]), lambda i, h, b: (b, lax.div(h, sharing), *rest))


def _exp2(x: jax.Array) -> jax.Array:
    """2 ** x of float32, to 2 units in the last place; 0 below -126. The library's one takes three instructions more
    for the numbers below."""
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    (y,) = triton.elementwise_inline_asm(
        "ex2.approx.ftz.f32 $0, $1;", args=[x], constraints="=f,f", pack=1, result_shape_dtypes=[like]
    )
    return y


# The largest tiles, standing and streamed, that fit a thread's 255 registers without spilling and a multiprocessor's
# 227 KiB, by ptxas' account for sm_90: for a head_dim of at most 128, and of 256.
_TILES: dict[Kernel, tuple[tuple[int, int], tuple[int, int]]] = {
    _forward_kernel: ((128, 128), (128, 64)),
    _query_gradient_kernel: ((128, 64), (128, 32)),
    _key_gradient_kernel: ((128, 64), (64, 32)),
}


def _tiling(kernel: Kernel, standing: int, passing: int, q: jax.Array) -> Tiling:
    d = q.shape[-1]
    if q.dtype.itemsize == 4:
        # Exact products of float32 take no tensor cores, and hold whole rows of both factors in registers.
        most, step, warps = 32, (32 if d <= 64 else 16), 8
    else:
        most, step = _TILES[kernel][d > 128]
        warps = 8 if d > 128 or standing > 64 else 4  # 64 rows are what a warpgroup, 4 warps, multiplies at once
    # The loop's loads hang on those of the schedule: three stages are one for these and two for a double buffer.
    return Tiling(min(standing, most), passing, min(passing, step), warps, stages=3)


def _tile(block: int) -> int:
    """The largest tile in a block: a power of two, but not below Triton's smallest."""
    return max(_SMALLEST_TILE, 2 ** (block.bit_length() - 1))


def _fill(x: jax.Array, block: int) -> jax.Array:
    """[b, heads, tokens, d] filled up with zeros to whole blocks of tokens, and to a d that is a power of two."""
    tokens, d = x.shape[2:]
    if d > _LARGEST_HEAD_DIM:
        raise ValueError(f"q has head_dim {d}; the GPU kernels hold at most {_LARGEST_HEAD_DIM}; use backend='xla'")
    wide = max(_SMALLEST_TILE, pl.next_power_of_2(d))
    return jnp.pad(x, ((0, 0), (0, 0), (0, -tokens % block), (0, wide - d)))
