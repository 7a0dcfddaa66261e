"""Our side of benchmarks/ring_attention.py: forward and backward over a ring of CPU devices, and what they hold.

Tokens lie where the layout puts them; results are put back in the row's own order, so layouts can be compared.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.ring_attention_work import GEMM, HEAD_DIM, HEADS, Work
from benchmarks.worker import serve, timed
from ringworld.attention import ring_attention, xla
from ringworld.data.balance import Documents, Layout, balance

ROWS = PartitionSpec(None, "ring")
PIECE = 512  # tokens: as in the loader, pieces of a balanced layout are no shorter, unless a shard has not two of them


@functools.cache
def out_and_gradients(mesh: Mesh) -> Callable:
    """A jitted (q, k, v, grad_out, positions, segments) -> [out, grad_q, grad_k, grad_v] over the mesh's ring."""
    ring = mesh.shape["ring"]

    def local(q, k, v, positions, segments):
        return ring_attention(
            q, k, v, positions=positions, segments=segments, axis_name=None if ring == 1 else "ring", backend="xla"
        )

    attend = jax.shard_map(local, mesh=mesh, in_specs=(ROWS,) * 5, out_specs=ROWS, check_vma=False)

    def run(q, k, v, grad_out, positions, segments):
        out, gradient = jax.vjp(lambda q, k, v: attend(q, k, v, positions, segments), q, k, v)
        return [out, *gradient(grad_out)]

    return jax.jit(run)


def _ring() -> Mesh:
    return Mesh(np.array(jax.devices()), ("ring",))


def _layout(work: Work, name: str, ring: int) -> Layout:
    lengths = np.array(work.documents)
    row = Documents(np.cumsum(lengths) - lengths, lengths, work.length)
    rings = {"contiguous": 1, "balanced": ring}  # a ring of one has nothing to balance
    if name not in rings:
        raise ValueError(f"layout={name!r}; it must be one of {', '.join(rings)}")
    return balance(row, rings[name], min(PIECE, max(1, work.length // (2 * ring))))


@functools.cache
def _step(work: Work, layout: str) -> Callable[[], list[jax.Array]]:
    mesh = _ring()
    laid_out = _layout(work, layout, mesh.size)
    arrays = [
        jax.device_put(laid_out.apply(x, axis=1), NamedSharding(mesh, ROWS)) for x in (*work.arrays(), *work.tokens())
    ]
    run = out_and_gradients(mesh)
    jax.block_until_ready(run(*arrays))  # compiled once for all layouts
    return lambda: jax.block_until_ready(run(*arrays))


def _of(request: dict[str, Any]) -> Callable[[], list[jax.Array]]:
    return _step(Work.of(request), request["layout"])


def step(request: dict[str, Any]) -> dict[str, Any]:
    """One forward and backward pass: seconds."""
    return timed(_of(request))


def save(request: dict[str, Any]) -> dict[str, Any]:
    """Writes out, grad_q, grad_k, grad_v to request["path"], in the row's order."""
    layout = _layout(Work.of(request), request["layout"], len(jax.devices()))
    np.savez(request["path"], *(layout.undo(np.asarray(x), axis=1) for x in _of(request)()))
    return {}


def gemm(request: dict[str, Any]) -> dict[str, Any]:
    """One float32 product of two GEMM x GEMM matrices: seconds."""
    return timed(_gemm())


@functools.cache
def _gemm() -> Callable[[], jax.Array]:
    matrix = jnp.ones((GEMM, GEMM), jnp.float32)
    product = jax.jit(jnp.dot).lower(matrix, matrix).compile()
    return lambda: product(matrix, matrix).block_until_ready()


def memory(request: dict[str, Any]) -> dict[str, Any]:
    """Bytes of the compiled step per device, as XLA allots them and as counted; request["shard"]: tokens a device."""
    mesh = _ring()
    length = request["shard"] * mesh.size
    rows = NamedSharding(mesh, ROWS)
    number = jax.ShapeDtypeStruct((1, length, HEADS, HEAD_DIM), jnp.float32, sharding=rows)
    token = jax.ShapeDtypeStruct((1, length), jnp.int32, sharding=rows)
    sizes = out_and_gradients(mesh).lower(*[number] * 4, *[token] * 2).compile().memory_analysis()
    assert sizes is not None
    parts = {
        "arguments": sizes.argument_size_in_bytes,
        "results": sizes.output_size_in_bytes,
        "temporaries": sizes.temp_size_in_bytes,
    }
    return {**parts, "bytes": sum(parts.values()), "counted": counted_bytes(request["shard"])}


def counted_bytes(shard: int) -> int:
    """What the algorithm must hold at once in the middle of the backward ring, float32, of three ranks or more."""
    array, row, token = 4 * HEADS * HEAD_DIM * shard, 4 * HEADS * shard, 4 * shard
    blocks = xla.default_blocks(queries=shard, keys=shard, heads=HEADS, kv_heads=HEADS, head_dim=HEAD_DIM, itemsize=4)
    return (
        4 * array  # q, k, v, grad_out: arguments
        + 2 * token  # positions, segments: arguments
        + 4 * array  # out, grad_q, grad_k, grad_v: results
        + 2 * row  # log-sum-exp and delta
        + 2 * array  # q and grad_out heads-major, for every hop
        + 2 * (2 * array + 2 * token)  # keys in flight: k, v, positions, segments at hand, and those coming
        + 2 * 2 * array  # their gradients in flight: dk, dv that have arrived, and those grown to be sent
        + 2 * array  # dk, dv of the shard's own keys, until the others' come home
        + array  # the sum of dq
        + 3 * array  # a hop's dq, dk, dv, before they are added
        + 2 * 4 * blocks.heads * blocks.queries * blocks.keys  # a block's p and ds
    )


if __name__ == "__main__":
    serve({"step": step, "save": save, "gemm": gemm, "memory": memory})
