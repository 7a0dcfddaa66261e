"""The public function, and every check of what it is given.

All checks happen while JAX traces, once, here; a value that cannot work is a ValueError that names the argument, its
value and what is allowed. What is inside the arrays is never checked: the mask rule has a meaning for every int32.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import cast

import jax
import jax.numpy as jnp
from jax import lax

from ringworld.attention import ring, ulysses
from ringworld.attention.backend import BlockBackend, Blocks, Scoring
from ringworld.attention.mask import Rule, Tokens
from ringworld.attention.ring import Ring

# Modules of this package that are block backends, and which one suits a platform best.
BACKENDS = ("xla", "pallas_tpu", "pallas_gpu")
_BEST = {"tpu": "pallas_tpu", "gpu": "pallas_gpu"}
_DTYPES = ("float32", "bfloat16", "float16")


def ring_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    positions: jax.Array,
    segments: jax.Array,
    axis_name: str | None,
    ulysses_axis: str | None = None,
    kv_positions: jax.Array | None = None,
    kv_segments: jax.Array | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    window: int | None = None,
    sinks: int = 0,
    bidirectional: bool = False,
    block_q: int | None = None,
    block_kv: int | None = None,
    backend: str = "auto",
) -> jax.Array:
    """Exact attention over a sequence sharded along a mesh axis; call it inside `jax.shard_map(..., check_vma=False)`.

    A query attends to a key iff their segments are equal and non-zero and position_query >= position_key. Where a
    token lies, on which shard and at which index, does not matter: any permutation of the sequence gives the same
    answers, permuted.

    Args (shapes are those of one shard):
        q: float32, bfloat16 or float16 [batch, tokens, heads, head_dim].
        k, v: of q's dtype [batch, kv_tokens, kv_heads, head_dim]; heads is a multiple of kv_heads.
        positions, segments: int32 [batch, tokens], of the queries; segment 0 is padding.
        axis_name: the mesh axis of the ring; None: no ring.
        ulysses_axis: a second mesh axis over which the sequence is sharded, which trades tokens for heads instead.
        With neither axis this shard is the whole sequence; with both, ranks of `ulysses_axis` are nearest neighbours.
        kv_positions, kv_segments: int32 [batch, kv_tokens], of the keys; those of the queries when None.
        scale: what scores are multiplied by, positive; 1 / sqrt(head_dim) when None.
        soft_cap: squeezes scores to soft_cap * tanh(score / soft_cap), positive; None: as they are.
        window: a query sees only keys less than `window` positions back, itself included; None: its whole past.
        sinks: with a window, the first positions of each segment that stay in sight from everywhere.
        bidirectional: keys go round both ways at once, in half as many exchanges.
        block_q, block_kv: tokens in a block of the score matrix, at most the shard's (with ulysses: the gathered
        shard's); chosen by the backend when None.
        backend: "xla", "pallas_tpu", "pallas_gpu", or "auto" for the best one on the default platform. A Pallas backend
        runs interpreted, slowly, where the program is compiled for another platform than its own.

    Returns:
        Of q's shape and dtype. A query that sees no key, such as padding, gives zero and has zero gradient.
        Softmax statistics and sums are float32. Gradients flow to q, k and v.

    Raises:
        ValueError: while tracing, naming the argument, its value and what is allowed.
    """
    _check_arrays(q, k, v)
    query = _tokens(q, "q", positions, segments, "positions", "segments")
    key = _tokens(
        k,
        "k",
        positions if kv_positions is None else kv_positions,
        segments if kv_segments is None else kv_segments,
        "positions (kv_positions is None)" if kv_positions is None else "kv_positions",
        "segments (kv_segments is None)" if kv_segments is None else "kv_segments",
    )
    _check_axis("axis_name", axis_name)
    _check_axis("ulysses_axis", ulysses_axis)
    chosen = _backend(backend)
    scoring = Scoring(
        _positive("scale", q.shape[3] ** -0.5 if scale is None else scale),
        None if soft_cap is None else _positive("soft_cap", soft_cap),
        _rule(window, sinks),
    )

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, query: Tokens, key: Tokens) -> jax.Array:
        blocks = _blocks(chosen, q, k, block_q, block_kv)
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # heads-major
        out: jax.Array = ring.attend(Ring(axis_name, bidirectional, scoring, blocks, chosen), q, k, v, query, key)
        return out.swapaxes(1, 2)

    if ulysses_axis is None or lax.axis_size(ulysses_axis) == 1:
        return attend(q, k, v, query, key)
    kv_heads = ulysses.dealt_key_heads(q.shape[2], k.shape[2], ulysses_axis)
    k, v = (ulysses.replicate_heads(x, kv_heads) for x in (k, v))
    q, k, v = (ulysses.tokens_to_heads(x, ulysses_axis) for x in (q, k, v))
    out = attend(q, k, v, ulysses.gather(query, ulysses_axis), ulysses.gather(key, ulysses_axis))
    return ulysses.heads_to_tokens(out, ulysses_axis)


def _check_arrays(q: jax.Array, k: jax.Array, v: jax.Array) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4 or 0 in x.shape:
            raise ValueError(f"{name} has shape {x.shape}; it must be [batch, tokens, heads, head_dim], none of them 0")
        if x.dtype.name not in _DTYPES:
            raise ValueError(f"{name} has dtype {x.dtype.name}; it must be one of {', '.join(_DTYPES)}")
        if x.dtype != q.dtype:
            raise ValueError(f"{name} has dtype {x.dtype.name}; it must be that of q, {q.dtype.name}")
    if k.shape != v.shape:
        raise ValueError(f"v has shape {v.shape}; it must be that of k, {k.shape}")
    if k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise ValueError(
            f"k has shape {k.shape}; its batch and head_dim must be those of q, {q.shape[0]} and {q.shape[3]}"
        )
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"k has {k.shape[2]} heads; the {q.shape[2]} heads of q must be a multiple of that")


def _tokens(
    x: jax.Array, of: str, positions: jax.Array, segments: jax.Array, positions_name: str, segments_name: str
) -> Tokens:
    for name, values in ((positions_name, positions), (segments_name, segments)):
        if values.dtype != jnp.int32:
            raise ValueError(f"{name} has dtype {values.dtype.name}; it must be int32")
        if values.shape != x.shape[:2]:
            raise ValueError(f"{name} has shape {values.shape}; it must be the batch and tokens of {of}, {x.shape[:2]}")
    return Tokens(positions, segments)


def _check_axis(argument: str, axis_name: str | None) -> None:
    if axis_name is None:
        return
    try:
        lax.axis_size(axis_name)
    except NameError as error:
        allowed = "None or a mesh axis of the jax.shard_map around this call"
        raise ValueError(f"{argument}={axis_name!r} is not a mesh axis here; it must be {allowed}") from error


def _positive(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value!r}; it must be a positive, finite Python number, or None")
    return float(value)


def _rule(window: int | None, sinks: int) -> Rule:
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise ValueError(f"window={window!r}; it must be 1 position or more, or None for the whole past")
    if isinstance(sinks, bool) or not isinstance(sinks, int) or sinks < 0:
        raise ValueError(f"sinks={sinks!r}; it must be 0 positions or more")
    if sinks and window is None:
        raise ValueError(
            f"sinks={sinks} without a window: every query sees its whole past; it must be 0, or give window"
        )
    return Rule(window, sinks)


def _blocks(backend: BlockBackend, q: jax.Array, k: jax.Array, block_q: int | None, block_kv: int | None) -> Blocks:
    chosen = backend.default_blocks(
        queries=q.shape[1],
        keys=k.shape[1],
        heads=q.shape[2],
        kv_heads=k.shape[2],
        head_dim=q.shape[3],
        itemsize=q.dtype.itemsize,
    )

    def given(name: str, block: int | None, shard: int, default: int) -> int:
        if block is None:
            return default
        if isinstance(block, bool) or not isinstance(block, int) or not 1 <= block <= shard:
            raise ValueError(f"{name}={block!r}; it must be from 1 to the shard's {shard} tokens, or None")
        return block

    return Blocks(
        given("block_q", block_q, q.shape[1], chosen.queries),
        given("block_kv", block_kv, k.shape[1], chosen.keys),
        chosen.heads,
    )


def _backend(name: str) -> BlockBackend:
    if name == "auto":
        name = best_backend(jax.default_backend())
    if name not in BACKENDS:
        raise ValueError(f"backend={name!r} is unknown; it must be one of auto, {', '.join(BACKENDS)}")
    # Imported when asked for: Pallas takes a second to import, and a laptop never needs it.
    return cast(BlockBackend, import_module(f"ringworld.attention.{name}"))


def best_backend(platform: str) -> str:
    """The backend that "auto" means on a JAX platform (cpu, tpu, gpu)."""
    return _BEST.get(platform, "xla")
