"""The TPU compiler's verdict on ring attention, without a TPU: fast memory, temporaries and seconds for each shard.

    python benchmarks/attention_compile.py [--topologies v4 v5p v6e] [--shards 4096 ...] [--heads 8:8 8:1] [--json FILE]

Compiles forward and backward of `ring_attention(backend="pallas_tpu")` ahead of time for four chips in a ring: batch 1,
heads of 128, bfloat16, no padding removed. Each compilation runs in a process of its own; one that crashes or takes too
long is a row that says so. Needs the `plan` extra (libtpu).

VMEM is what the largest of the kernels takes of what it may take, as the compiler reports it. Temporaries are those of
the whole step on one chip, in main memory; a short shard's partly lie elsewhere (CMEM on v4, VMEM on v6e) and do not
count. Arguments are q, k, v, the gradient of the output, positions and segments.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec

RING, HEAD_DIM, MIB = 4, 128, 2**20
# The smallest slice of each with four chips. v4 and v5p: the two cores of a chip are one device.
TOPOLOGIES = {
    "v4": {"topology_name": "v4:2x2x1", "chip_config_name": "megacore"},
    "v5p": {"topology_name": "v5p:2x2x1", "chip_config_name": "megacore"},
    "v6e": {"topology_name": "v6e:2x2"},
}
# libtpu asks a cloud machine's metadata server about its TPU, and lets one process at a time use it: here is none.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v4-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def compile_one(topology: str, shard: int, heads: int, kv_heads: int) -> dict[str, float | str]:
    """Compiles one shard's share of the ring in this process."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from ringworld.attention import ring_attention

    chips = topologies.get_topology_desc(platform="tpu", **TOPOLOGIES[topology]).devices
    mesh = Mesh(np.array(chips[:RING]), ("ring",))
    rows = PartitionSpec(None, "ring")

    def attend(q, k, v, positions, segments):
        where = {"positions": positions, "segments": segments, "axis_name": "ring"}
        return ring_attention(q, k, v, **where, backend="pallas_tpu")

    sharded = jax.shard_map(attend, mesh=mesh, in_specs=(rows,) * 5, out_specs=rows, check_vma=False)

    def forward_and_backward(q, k, v, grad_out, positions, segments):
        out, gradient = jax.vjp(lambda q, k, v: sharded(q, k, v, positions, segments), q, k, v)
        return out, *gradient(grad_out)

    def of_sequence(dtype, *sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, RING * shard, *sizes), dtype, sharding=NamedSharding(mesh, rows))

    arrays = [of_sequence(jnp.bfloat16, count, HEAD_DIM) for count in (heads, kv_heads, kv_heads, heads)]
    start = time.perf_counter()
    compiled = jax.jit(forward_and_backward).lower(*arrays, *[of_sequence(jnp.int32)] * 2).compile()
    seconds = time.perf_counter() - start
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None
    assert text is not None
    used, limit = _fast_memory(text)
    return {
        "vmem_bytes": used,
        "vmem_limit_bytes": limit,
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "seconds": seconds,
    }


def _fast_memory(program: str) -> tuple[int, int]:
    """Bytes of VMEM that the hungriest kernel of a compiled program uses, and those that it may use."""
    sizes = r'"{}":\[{{"memory_space":"1","offset":"0","size":"(\d+)"}}\]'
    kernels = [line for line in program.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
    found = [
        tuple(
            int(re.findall(sizes.format(name), line)[-1])
            for name in ("used_scoped_memory_configs", "scoped_memory_configs")
        )
        for line in kernels
    ]
    used, limit = max(found)
    return used, limit


def row(topology: str, shard: int, heads: int, kv_heads: int, timeout: float) -> dict[str, float | str]:
    """Compiles in a process of its own; `error` says what went wrong, if anything did."""
    case = {"topology": topology, "shard": shard, "heads": heads, "kv_heads": kv_heads}
    command = [sys.executable, __file__, "--compile", json.dumps(case)]
    try:
        done = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return case | {"error": f"not compiled after {timeout:.0f} s"}
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if re.match(r"[\w.]*Error|RESOURCE|.*Check failed", line)]
        return case | {"error": (lines[-1:] or [f"the compiler ended with {done.returncode}"])[0]}
    return case | json.loads(done.stdout.splitlines()[-1])


def show(row: dict) -> str:
    """A line of the table."""
    start = f"{row['topology']:>8} {row['heads']:>3}/{row['kv_heads']:<3} {row['shard']:>7}"
    if "error" in row:
        return f"{start}  {row['error'][:200]}"
    return (
        f"{start} {row['vmem_bytes'] / MIB:>8.1f} /{row['vmem_limit_bytes'] / MIB:>3.0f} "
        f"{row['temporary_bytes'] / MIB:>12.1f} {row['temporary_bytes'] / row['shard']:>8.0f} "
        f"{row['argument_bytes'] / MIB:>10.1f} {row['seconds']:>8.1f}"
    )


def main() -> None:
    """Compile every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topologies", nargs="+", choices=TOPOLOGIES, default=list(TOPOLOGIES))
    parser.add_argument("--shards", type=int, nargs="+", default=[4096, 16384, 65536, 262144], help="tokens on a chip")
    parser.add_argument("--heads", nargs="+", default=["8:8", "8:1"], help="query heads : key heads on a chip")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one compilation")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--compile", metavar="CASE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if find_spec("libtpu") is None:
        raise SystemExit("the TPU compiler is missing; `pip install libtpu`, or this project's extra `plan`")
    if options.compile:
        print(json.dumps(compile_one(**json.loads(options.compile))))
        return
    print(
        f"{'topology':>8} {'heads':>7} {'shard':>7} {'VMEM MiB':>13} {'temporary MiB':>13} {'B/token':>8} "
        f"{'arguments':>10} {'seconds':>8}",
        flush=True,
    )
    rows = []
    for topology in options.topologies:
        for heads in options.heads:
            query_heads, key_heads = map(int, heads.split(":"))
            for shard in options.shards:
                rows.append(row(topology, shard, query_heads, key_heads, options.timeout))
                print(show(rows[-1]), flush=True)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)
    if any("error" in row for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
