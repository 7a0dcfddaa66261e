"""The block backend in plain JAX, for every platform: the interface is `ringworld.attention.backend`.

The score matrix exists one block at a time. Each block of queries (forward) or keys (backward) visits the blocks that
its schedule names: first those proven full, without a mask, then the others; those proven empty cost nothing. Grouped
queries are rows of one product with their key head, so keys are never repeated. Memory is linear in the shard.

Legend: b batch, h heads, n kv_heads, t query tokens, s key tokens, d head_dim.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ringworld.attention.backend import NOTHING, Blocks, Scoring
from ringworld.attention.cutting import cut_keys, group_rows, join_keys, ungroup_rows
from ringworld.attention.mask import Schedule, Tokens, bounds, schedule, split, visible

_LOG2_E = math.log2(math.e)


def default_blocks(*, queries: int, keys: int, heads: int, kv_heads: int, head_dim: int, itemsize: int) -> Blocks:
    """See BlockBackend.

    On a CPU one step's scores, 1024 rows x 512 keys, fill the second-level caches: the rows are those of a group's
    heads, or of two heads. Longer blocks would be no faster, and would waste more where documents begin and end; so
    would one block for a whole short shard, half of which the diagonal empties. Where there are as many devices as
    processors, each step runs on one of them, and the best block is one that stays in its cache and has at most 32,768
    scores: of larger ones the runtime makes parallel tasks, whose state it keeps until the whole program ends (a step
    of 65,536 tokens on 8 devices then takes three times the memory that the compiler counts). Elsewhere all heads go at
    once, to fill the machine.
    """
    if jax.default_backend() != "cpu":
        return Blocks(_even(queries, 512), _even(keys, 512), kv_heads)
    group = heads // kv_heads
    if jax.local_device_count() >= (os.cpu_count() or 1) > 1:
        return Blocks(_even(queries, max(16, 128 // group)), _even(keys, 256))
    step_heads = 2 if group == 1 and kv_heads % 2 == 0 else 1
    rows, columns = (min(512, max(128, length // 2)) for length in (queries, keys))
    return Blocks(_even(queries, min(rows, max(128, 1024 // group))), _even(keys, columns), step_heads)


def _even(length: int, block: int) -> int:
    """The size of equal blocks, at most `block`, that cut a length with the least padding."""
    return -(-length // -(-length // block))


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
    _, h, t, _ = q_bhtd.shape
    q = group_rows(q_bhtd, k_bnsd.shape[1], blocks.queries)
    k, v = cut_keys(k_bnsd, blocks.keys), cut_keys(v_bnsd, blocks.keys)
    rows = q.shape[-2]

    def of_row(row):
        q, k, v, query, key = row
        query_bounds, key_bounds = bounds(query), bounds(key)

        def of_head(head):
            q, k, v = head

            def of_query_block(block):
                q, query, query_bounds = block
                plan = schedule(query_bounds, key_bounds, scoring.rule)

                def visit(masked: bool):
                    def step(n, state):
                        acc, top, total = state
                        j = plan.order[n]
                        scores = _scores_log2(_product_nt(q, k[j]), scoring)
                        if masked:
                            these = Tokens(key.positions[j], key.segments[j])
                            seen = _repeat_rows(visible(query, these, scoring.rule), rows)
                            scores = jnp.where(seen, scores, NOTHING)
                        new_top = jnp.maximum(top, scores.max(-1))
                        p = _exp2(scores - new_top[:, None])
                        if masked:
                            p = jnp.where(seen, p, 0)
                        shrink = jnp.exp2(top - new_top)
                        acc = acc * shrink[:, None] + _product(p.astype(v.dtype), v[j])
                        return acc, new_top, total * shrink + p.sum(-1)

                    return step

                state = (
                    jnp.zeros(q.shape, jnp.float32),
                    jnp.full(rows, NOTHING, jnp.float32),
                    jnp.zeros(rows, jnp.float32),
                )
                acc, top, total = _visit_all(plan, visit, state)
                some = total > 0
                safe = jnp.where(some, total, 1)
                return acc / safe[:, None], jnp.where(some, (top + jnp.log2(safe)) / _LOG2_E, NOTHING)

            return lax.map(of_query_block, (q, query, query_bounds))

        return _map_heads(of_head, (q, k, v), blocks)

    out, lse = lax.map(of_row, (q, k, v, split(query, blocks.queries), split(key, blocks.keys)))
    return ungroup_rows(out, h, t), ungroup_rows(lse[..., None], h, t)[..., 0]


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
    _, h, t, d = q_bhtd.shape
    n, s = k_bnsd.shape[1:3]
    q, g = group_rows(q_bhtd, n, blocks.queries), group_rows(grad_out, n, blocks.queries)
    lse, delta = (group_rows(x[..., None], n, blocks.queries)[..., 0] for x in (log_sum_exp * _LOG2_E, delta))
    k, v = cut_keys(k_bnsd, blocks.keys), cut_keys(v_bnsd, blocks.keys)
    rows = q.shape[-2]

    def of_row(row):
        q, k, v, g, lse, delta, query, key = row
        query_bounds, key_bounds = bounds(query), bounds(key)

        def of_head(head):
            q, k, v, g, lse, delta = head

            def of_key_block(grad_q, block):
                k, k_turned, v, key, key_bounds = block
                plan = schedule(query_bounds, key_bounds, scoring.rule)

                # Scores stand transposed, [keys, rows]: the products for grad_k and grad_v then contract the block's
                # contiguous axis, which XLA's CPU products do four times as fast as the other one.
                def visit(masked: bool):
                    def step(m, state):
                        grad_q, grad_k, grad_v = state
                        i = plan.order[m]
                        scores = _scores_log2(_product_nt(k, q[i]), scoring)
                        p = _exp2(scores - lse[i])
                        if masked:
                            seen = visible(Tokens(query.positions[i], query.segments[i]), key, scoring.rule)
                            p = jnp.where(_repeat_rows(seen, rows).T, p, 0)
                        ds = p * (_product_nt(v, g[i]) - delta[i])
                        if scoring.soft_cap is not None:
                            ds = ds * (1 - jnp.square(scores / (scoring.soft_cap * _LOG2_E)))
                        ds = ds.astype(q.dtype)
                        grad_v = grad_v + _product(p.astype(g.dtype), g[i])
                        grad_k = grad_k + _product(ds, q[i])
                        grad_q = _add_at(grad_q, i, _product(k_turned, ds))
                        return grad_q, grad_k, grad_v

                    return step

                zeros = jnp.zeros(k.shape, jnp.float32)
                grad_q, grad_k, grad_v = _visit_all(plan, visit, (grad_q, zeros, zeros))
                return grad_q, (grad_k * scoring.scale, grad_v)

            grad_q, grad_kv = lax.scan(
                of_key_block, jnp.zeros((q.shape[0], d, rows), jnp.float32), (k, k.swapaxes(1, 2), v, key, key_bounds)
            )
            return grad_q.swapaxes(1, 2) * scoring.scale, *grad_kv

        return _map_heads(of_head, (q, k, v, g, lse, delta), blocks)

    cut_query, cut_key = split(query, blocks.queries), split(key, blocks.keys)
    grad_q, grad_k, grad_v = lax.map(of_row, (q, k, v, g, lse, delta, cut_query, cut_key))
    return ungroup_rows(grad_q, h, t), join_keys(grad_k, s), join_keys(grad_v, s)


def _scores_log2(products: jax.Array, scoring: Scoring) -> jax.Array:
    """Scores, as logarithms to base 2, of the products of queries and keys."""
    if scoring.soft_cap is None:
        return products * (scoring.scale * _LOG2_E)
    return jnp.tanh(products * (scoring.scale / scoring.soft_cap)) * (scoring.soft_cap * _LOG2_E)


def _map_heads(of_head: Callable, heads, blocks: Blocks):
    """Maps over key heads, blocks.heads of them at a time."""
    return lax.map(of_head, heads, batch_size=blocks.heads if blocks.heads > 1 else None)


def _visit_all(plan: Schedule, visit: Callable[[bool], Callable], state):
    """Runs the steps of a schedule: the full blocks without a mask, then the rest with one."""
    state = lax.fori_loop(0, plan.full, visit(False), state)
    return lax.fori_loop(plan.full, plan.needed, visit(True), state)


def _add_at(x: jax.Array, index: jax.Array, value: jax.Array) -> jax.Array:
    """x[index] += value, for an index known to lie inside."""
    return lax.dynamic_update_index_in_dim(x, lax.dynamic_index_in_dim(x, index, keepdims=False) + value, index, 0)


def _product_nt(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b.T in float32."""
    return lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b in float32."""
    return lax.dot_general(a, b, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _repeat_rows(seen: jax.Array, rows: int) -> jax.Array:
    """The mask [queries, keys] for every head of the group: [rows, keys]."""
    return jnp.tile(seen, (rows // seen.shape[0], 1))


def _exp2(x: jax.Array) -> jax.Array:
    """2 ** x for float32 x <= 0 or little above it, to 2e-7 relative; below -126, 2 ** -126."""
    return lax.platform_dependent(x, cpu=_exp2_polynomial, default=jnp.exp2)


# Chebyshev interpolation of 2 ** f over [-1/2, 1/2], degree 5, in powers of f.
_COEFFICIENTS = [
    float(c)
    for c in np.polynomial.chebyshev.Chebyshev.interpolate(np.exp2, 5, domain=[-0.5, 0.5])
    .convert(kind=np.polynomial.Polynomial)
    .coef
]


def _exp2_polynomial(x: jax.Array) -> jax.Array:
    """XLA's own exponential takes as long on a CPU as two of the five products; this is twice as fast."""
    x = jnp.maximum(x, -126.0)
    whole = lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)
    part = x - whole
    value = jnp.full_like(x, _COEFFICIENTS[-1])
    for c in _COEFFICIENTS[-2::-1]:
        value = value * part + c
    bits = lax.bitcast_convert_type(value, jnp.int32) + (whole.astype(jnp.int32) << 23)
    return lax.bitcast_convert_type(bits, jnp.float32)
