"""The block backend for TPUs, in Pallas: the interface is `ringworld.attention.backend`.

Three kernels: attention, the gradient of the queries, the gradient of keys and values. Each is the arithmetic of one
visit of a block to another; `pallas_walk` decides which visits there are. The rows of a block are the tokens of all
query heads that share its key head, so keys are never repeated and a step is one product for all of them.

What is known of a token or a row is stored along lanes, [.., 1, rows], which wastes no memory; a kernel turns its outer
block's into columns once, at its first visit. Compiled for a TPU wherever the program is lowered for one; interpreted,
slowly, elsewhere.

Legend: b batch, h heads, n kv_heads, t query tokens, s key tokens, d head_dim.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ringworld.attention.backend import NOTHING, Blocks, Scoring
from ringworld.attention.cutting import cut_keys, group_rows, ungroup_rows
from ringworld.attention.mask import Rule, Tokens, bounds, split
from ringworld.attention.pallas_walk import Side, Step, Work, walk_keys, walk_queries

_LOG2_E = math.log2(math.e)


def default_blocks(*, queries: int, keys: int, heads: int, kv_heads: int, head_dim: int, itemsize: int) -> Blocks:
    """See BlockBackend.

    The rows of a step are those of all heads that it computes. Of the 16 MiB of fast memory of a v4 core, the largest
    kernel then takes 10 (bfloat16, head_dim 128) to 14 (float32, head_dim 256); newer chips have more, and use less.
    """
    rows, columns = 512, 1024 if itemsize * head_dim <= 256 else 512
    sharing = heads // _walks(heads, kv_heads)
    return Blocks(_even(queries, max(16, rows // sharing // 16 * 16)), _even(keys, columns))


def _even(length: int, block: int) -> int:
    """The size of equal blocks, at most `block`, that cut a length with the least padding; whole tiles if several."""
    if length <= block:
        return length
    tile = math.gcd(block, 128)
    return -(-length // -(-length // block) // tile) * tile


def _walks(heads: int, kv_heads: int) -> int:
    """How many times a kernel goes over the score matrix: once for a key head, or twice, with half of its queries each,
    so that there is an even number for the two cores of a chip."""
    halves = 2 if kv_heads % 2 and heads // kv_heads % 2 == 0 else 1
    return kv_heads * halves


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
    """See BlockBackend."""
    _, h, t, d = q_bhtd.shape
    walks = _walks(h, k_bnsd.shape[1])
    q, k, v = (
        group_rows(_wide(q_bhtd), walks, blocks.queries),
        *(cut_keys(_wide(x), blocks.keys) for x in (k_bnsd, v_bnsd)),
    )
    query_tokens, query_bounds = _tokens(query, blocks.queries, h // walks)
    key_tokens, key_bounds = _tokens(key, blocks.keys, 1)
    rows = q.shape[3]
    work = Work(
        kernel=partial(_forward, scoring),
        rule=scoring.rule,
        heads=walks,
        scratch=(_column(rows, 1, jnp.float32), _column(rows, 1, jnp.float32), _column(rows, 2, jnp.int32)),
        vmem=_vmem(rows, blocks.keys, d, q.dtype.itemsize),
    )
    out = jnp.zeros(q.shape, jnp.float32)
    lse = jnp.full((*q.shape[:3], 1, rows), NOTHING, jnp.float32)
    out, lse = walk_queries(
        work, Side(query_bounds, (q, query_tokens)), Side(key_bounds, (k, v, key_tokens)), (out, lse)
    )
    return ungroup_rows(out, h, t), ungroup_rows(lse.swapaxes(3, 4), h, t)[..., 0]


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
    """See BlockBackend."""
    b, h, t, d = q_bhtd.shape
    n, s = k_bnsd.shape[1:3]
    walks = _walks(h, n)
    q, g = (group_rows(_wide(x), walks, blocks.queries) for x in (q_bhtd, grad_out))
    k, v = (cut_keys(_wide(x), blocks.keys) for x in (k_bnsd, v_bnsd))
    statistics = jnp.stack([log_sum_exp * _LOG2_E, delta], -1)
    statistics = group_rows(statistics, walks, blocks.queries).swapaxes(3, 4)
    query_tokens, query_bounds = _tokens(query, blocks.queries, h // walks)
    key_tokens, key_bounds = _tokens(key, blocks.keys, 1)
    rows = q.shape[3]
    queries = Side(query_bounds, (q, g, statistics, query_tokens))
    keys = Side(key_bounds, (k, v, key_tokens))
    vmem = _vmem(rows, blocks.keys, d, q.dtype.itemsize)

    scratch = (_column(rows, 2, jnp.float32), _column(rows, 2, jnp.int32))
    work = Work(partial(_grad_queries, scoring), scoring.rule, walks, scratch, vmem)
    (grad_q,) = walk_queries(work, queries, keys, (jnp.zeros(q.shape, jnp.float32),))

    work = Work(partial(_grad_keys, scoring), scoring.rule, walks, (_column(blocks.keys, 2, jnp.int32),), vmem)
    zeros = jnp.zeros((b, walks, *k.shape[2:]), jnp.float32)
    grad_kv = walk_keys(work, queries, keys, (zeros, zeros))
    grad_k, grad_v = (x.reshape(b, n, walks // n, -1, d).sum(2)[:, :, :s] for x in grad_kv)
    return ungroup_rows(grad_q, h, t), grad_k, grad_v


def _forward(scoring: Scoring, q, query, k, v, key, out, lse, top, total, query_column) -> Step:
    """`out` holds the sum so far, weighted relative to the highest score so far, `top`; `total` the sum of weights."""

    def first() -> None:
        out[...] = jnp.zeros_like(out)
        top[...] = jnp.full_like(top, NOTHING)
        total[...] = jnp.zeros_like(total)
        query_column[...] = query[...].T

    def visit(masked: bool) -> None:
        scores = _scores_log2(_product_nt(q[...], k[...]), scoring)
        if masked:
            seen = _sees(_in_columns(query_column), _in_rows(key), scoring.rule)
            scores = jnp.where(seen, scores, NOTHING)
        old_top = top[...]
        new_top = jnp.maximum(old_top, scores.max(1, keepdims=True))
        p = jnp.exp2(scores - new_top)
        if masked:
            p = jnp.where(seen, p, 0)
        shrink = jnp.exp2(old_top - new_top)
        top[...] = new_top
        total[...] = total[...] * shrink + p.sum(1, keepdims=True)
        out[...] = out[...] * shrink + _product(p.astype(v.dtype), v[...])

    def last() -> None:
        some = total[...] > 0
        safe = jnp.where(some, total[...], 1)
        out[...] = out[...] / safe
        lse[...] = jnp.where(some, (top[...] + jnp.log2(safe)) / _LOG2_E, NOTHING).T

    return Step(first, visit, last)


def _grad_queries(
    scoring: Scoring, q, g, statistics, query, k, v, key, grad_q, statistics_column, query_column
) -> Step:
    def first() -> None:
        grad_q[...] = jnp.zeros_like(grad_q)
        statistics_column[...] = statistics[...].T
        query_column[...] = query[...].T

    def visit(masked: bool) -> None:
        scores = _scores_log2(_product_nt(q[...], k[...]), scoring)
        p = jnp.exp2(scores - statistics_column[:, 0:1])
        if masked:
            p = jnp.where(_sees(_in_columns(query_column), _in_rows(key), scoring.rule), p, 0)
        ds = _grad_scores(p, scores, _product_nt(g[...], v[...]) - statistics_column[:, 1:2], scoring)
        grad_q[...] += _product(ds.astype(k.dtype), k[...])

    def last() -> None:
        grad_q[...] *= scoring.scale

    return Step(first, visit, last)


def _grad_keys(scoring: Scoring, k, v, key, q, g, statistics, query, grad_k, grad_v, key_column) -> Step:
    """Scores stand transposed, [keys, rows], so that both sums are plain products and statistics lie along lanes."""

    def first() -> None:
        grad_k[...] = jnp.zeros_like(grad_k)
        grad_v[...] = jnp.zeros_like(grad_v)
        key_column[...] = key[...].T

    def visit(masked: bool) -> None:
        scores = _scores_log2(_product_nt(k[...], q[...]), scoring)
        p = jnp.exp2(scores - statistics[0:1, :])
        if masked:
            p = jnp.where(_sees(_in_rows(query), _in_columns(key_column), scoring.rule), p, 0)
        ds = _grad_scores(p, scores, _product_nt(v[...], g[...]) - statistics[1:2, :], scoring)
        grad_v[...] += _product(p.astype(g.dtype), g[...])
        grad_k[...] += _product(ds.astype(q.dtype), q[...])

    def last() -> None:
        grad_k[...] *= scoring.scale

    return Step(first, visit, last)


def _scores_log2(products: jax.Array, scoring: Scoring) -> jax.Array:
    """Scores, as logarithms to base 2, of the products of queries and keys."""
    if scoring.soft_cap is None:
        return products * (scoring.scale * _LOG2_E)
    return jnp.tanh(products * (scoring.scale / scoring.soft_cap)) * (scoring.soft_cap * _LOG2_E)


def _grad_scores(p: jax.Array, scores_log2: jax.Array, grad_p: jax.Array, scoring: Scoring) -> jax.Array:
    """The gradient of the products, short of the scale; grad_p less delta is given."""
    ds = p * grad_p
    if scoring.soft_cap is None:
        return ds
    return ds * (1 - jnp.square(scores_log2 / (scoring.soft_cap * _LOG2_E)))


def _sees(query: Tokens, key: Tokens, rule: Rule) -> jax.Array:
    """mask.visible for tokens that broadcast, one side [x, 1] and the other [1, y], either way round: a kernel cannot
    turn a row of lanes into a column for nothing. A test holds the two rules together."""
    seen = (query.segments == key.segments) & (query.segments != 0) & (query.positions >= key.positions)
    if rule.window is None:
        return seen
    return seen & ((query.positions - key.positions < rule.window) | (key.positions < rule.sinks))


def _in_rows(tokens) -> Tokens:
    return Tokens(tokens[0:1, :], tokens[1:2, :])


def _in_columns(tokens) -> Tokens:
    return Tokens(tokens[:, 0:1], tokens[:, 1:2])


def _product_nt(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b.T in float32."""
    return _dot(a, b, 1)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b in float32."""
    return _dot(a, b, 0)


def _dot(a: jax.Array, b: jax.Array, contracted: int) -> jax.Array:
    # A TPU would round float32 to bfloat16 first.
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(
        a, b, (((1,), (contracted,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
    )


def _wide(x: jax.Array) -> jax.Array:
    """A TPU has no products of float16."""
    return x.astype(jnp.float32) if x.dtype == jnp.float16 else x


def _tokens(tokens: Tokens, block: int, sharing: int):
    """Blocks of tokens for a kernel, int32 [b, 1, blocks, 2 (position, segment), sharing * block], and their bounds."""
    cut = split(tokens, block)
    return jnp.tile(jnp.stack(cut, 2), sharing)[:, None], bounds(cut)


def _column(rows: int, columns: int, dtype) -> pl.MemoryRef:
    return pltpu.VMEM((rows, columns), dtype)


def _vmem(rows: int, keys: int, head_dim: int, itemsize: int) -> int:
    """Bytes of fast memory to ask for, at least what a kernel gets unasked: more than the compiler has been seen to
    use. Scores, weights, their gradients and rounded copies; inputs and outputs, two blocks of each; columns, padded to
    128 lanes."""
    lanes = -(-head_dim // 128) * 128
    scores = 4 * 4 * rows * keys
    moved = 2 * 2 * (rows + keys) * lanes * itemsize + 2 * 2 * max(rows, keys) * lanes * 4
    return max(16 * 2**20, scores + moved + 3 * max(rows, keys) * 128 * 4)
