"""The peer's side of benchmarks/ring_attention.py: `ringattention` (arXiv:2310.01889's own), in its own environment.

It computes as its authors' model does: causal by index, the row's segment ids known to every shard. One document
needs no segment ids, so it gets none. The imports are of the environment's old JAX.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.ring_attention_work import Work
from benchmarks.worker import serve, timed


@functools.cache
def _step(work: Work, query_chunk: int, key_chunk: int) -> Callable[[], list[jax.Array]]:
    from jax.experimental.shard_map import shard_map
    from ringattention import ringattention  # pyright: ignore[reportMissingImports] (of the other environment)

    settings = {
        "causal_block_size": 1, "deterministic": True, "dropout_rng": None, "attn_pdrop": 0.0,
        "query_chunk_size": query_chunk, "key_chunk_size": key_chunk, "dtype": jnp.float32, "precision": None,
        "policy": jax.checkpoint_policies.nothing_saveable, "prevent_cse": True,
    }  # fmt: skip
    mesh = Mesh(np.array(jax.devices()), ("ring",))
    rows = PartitionSpec(None, "ring")
    segments = work.tokens()[1] if len(work.documents) > 1 else None

    def attend(q, k, v):
        def local(q, k, v, segments=None):
            return ringattention(q, k, v, None, segments, None, "ring", True, settings)

        inputs = (q, k, v) if segments is None else (q, k, v, jnp.asarray(segments))
        specs = (rows, rows, rows, PartitionSpec())[: len(inputs)]
        return shard_map(local, mesh=mesh, in_specs=specs, out_specs=rows, check_rep=False)(*inputs)

    def out_and_gradients(q, k, v, grad_out):
        out, gradient = jax.vjp(attend, q, k, v)
        return [out, *gradient(grad_out)]

    arrays = [jax.device_put(x, NamedSharding(mesh, rows)) for x in work.arrays()]
    compiled = jax.jit(out_and_gradients).lower(*arrays).compile()
    return lambda: jax.block_until_ready(compiled(*arrays))


def _of(request: dict[str, Any]) -> Callable[[], list[jax.Array]]:
    return _step(Work.of(request), request["query_chunk"], request["key_chunk"])


def step(request: dict[str, Any]) -> dict[str, Any]:
    """One forward and backward pass: seconds."""
    return timed(_of(request))


def save(request: dict[str, Any]) -> dict[str, Any]:
    """Writes out, grad_q, grad_k, grad_v to request["path"]."""
    np.savez(request["path"], *(np.asarray(x) for x in _of(request)()))
    return {}


if __name__ == "__main__":
    serve({"step": step, "save": save})
