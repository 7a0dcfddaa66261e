"""Runs the package's attention on a sequence as a user would: shard_map over a mesh, output and three gradients."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from ringworld.attention import ring_attention
from tests.ringworld.attention.reference import Case


@cache
def step(ring: int, ulysses: int = 1, options: tuple = ()):
    """A jitted (q, k, v, grad_out, positions, segments) -> (out, grad_q, grad_k, grad_v) over ring x ulysses devices.

    Compiled without LLVM's costly passes: these programs run for milliseconds and compile for seconds.
    """
    if ring == ulysses == 1:
        attend = _call(None, None, options)
    else:
        mesh = Mesh(np.array(jax.devices()[: ring * ulysses]).reshape(ring, ulysses), ("ring", "ulysses"))
        rows = PartitionSpec(None, ("ring", "ulysses"))
        attend = jax.shard_map(
            _call("ring", "ulysses" if ulysses > 1 else None, options),
            mesh=mesh,
            in_specs=(rows,) * 5,
            out_specs=rows,
            check_vma=False,
        )

    def out_and_gradients(q, k, v, grad_out, positions, segments):
        out, gradient = jax.vjp(lambda q, k, v: attend(q, k, v, positions, segments), q, k, v)
        return out, *gradient(grad_out)

    quickly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(out_and_gradients, compiler_options=quickly)


def run(case: Case, ring: int = 1, ulysses: int = 1, dtype=jnp.float32, **options):
    """(out, grad_q, grad_k, grad_v) of a case on ring x ulysses devices."""
    arrays = [jnp.asarray(x, dtype) for x in (case.q, case.k, case.v, case.grad_out)]
    return step(ring, ulysses, tuple(options.items()))(*arrays, case.positions, case.segments)


def _call(axis_name: str | None, ulysses_axis: str | None, options: tuple):
    def attend(q, k, v, positions, segments):
        where = {"positions": positions, "segments": segments, "axis_name": axis_name, "ulysses_axis": ulysses_axis}
        return ring_attention(q, k, v, **where, **dict(options))

    return attend
