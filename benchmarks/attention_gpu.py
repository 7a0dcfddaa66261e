"""Attention on one GPU against cuDNN's and against the plain matrix product, in one run: TFLOP/s and their ratios.

    python benchmarks/attention_gpu.py [--lengths 8192 32768 131072 524288 1048576] [--runs 5] [--json FILE]
    python benchmarks/attention_gpu.py --smoke     # on any machine: everything once, at toy size, interpreted

First outputs and gradients of both sides are compared with a dense float64 computation. Then each length is timed,
bfloat16, head_dim 128, 8 heads (2 from 512K tokens on), causal: one document, and 16 equal documents packed in a row.

- ringworld: the public function, from and to [batch, tokens, heads, head_dim]; kernels: its GPU kernels alone.
- cudnn: jax.nn.dot_product_attention. It knows no documents, so in a packed row it does the whole causal work (and what
  it computes is not the packed attention). `cudnn rows` has the 16 documents as 16 rows, which only equal ones can be.
- gemm: the product of two 8192 x 8192 bfloat16 matrices.

The sides take turns, A B C A B C; medians count. Work is counted alike for all sides, for every query and key that it
sees: 4 x head_dim operations forward, 10 x backward; what a side computes beyond that costs it time and earns nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from ringworld.attention import pallas_gpu, ring_attention
from ringworld.attention.backend import Scoring
from ringworld.attention.mask import Tokens

DOCUMENTS = 16
LONG = 2**19  # from here on two heads keep the machine busy, and a run short


@dataclass(frozen=True)
class Size:
    """One row of tokens, cut into equal documents."""

    tokens: int
    heads: int
    head_dim: int
    documents: int

    @property
    def pairs(self) -> int:
        """Queries and keys that they see, over all heads."""
        length = self.tokens // self.documents
        return self.heads * self.documents * length * (length + 1) // 2

    def operations(self, backward: bool) -> float:
        return (14.0 if backward else 4.0) * self.head_dim * self.pairs

    def positions_and_segments(self) -> tuple[jax.Array, jax.Array]:
        index = jnp.arange(self.tokens, dtype=jnp.int32)[None]
        length = self.tokens // self.documents
        return index % length, index // length + 1


Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
Implementation = Literal["cudnn", "xla"]


def ours(size: Size) -> Attend:
    positions, segments = size.positions_and_segments()

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return ring_attention(q, k, v, positions=positions, segments=segments, axis_name=None, backend="pallas_gpu")

    return attend


def peer(implementation: Implementation, rows: int = 1) -> Attend:
    """jax.nn.dot_product_attention, over a row cut into so many."""

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        cut_q, cut_k, cut_v = (x.reshape(rows, -1, *x.shape[2:]) for x in (q, k, v))
        out = jax.nn.dot_product_attention(cut_q, cut_k, cut_v, is_causal=True, implementation=implementation)
        return out.reshape(q.shape)

    return attend


def program(attend: Attend, backward: bool) -> Callable[..., object]:
    """(q, k, v, grad_out) -> out, with the three gradients or without."""

    def run(q, k, v, grad_out):
        if not backward:
            return attend(q, k, v)
        out, gradient = jax.vjp(attend, q, k, v)
        return out, *gradient(grad_out)

    return jax.jit(run)


def kernels(size: Size, backward: bool) -> Callable[..., object]:
    """The same without what stands around the kernels but for delta. Random numbers are heads-major by declaration."""
    tokens = Tokens(*size.positions_and_segments())
    blocks = pallas_gpu.default_blocks(
        queries=size.tokens,
        keys=size.tokens,
        heads=size.heads,
        kv_heads=size.heads,
        head_dim=size.head_dim,
        itemsize=2,
    )
    how = {"scoring": Scoring(size.head_dim**-0.5), "blocks": blocks}

    def run(q, k, v, grad_out):
        q, k, v, grad_out = (x.reshape(x.shape[0], x.shape[2], x.shape[1], -1) for x in (q, k, v, grad_out))
        out, lse = pallas_gpu.forward(q, k, v, tokens, tokens, **how)
        if not backward:
            return out, lse
        delta = (out * grad_out).sum(-1)
        return out, *pallas_gpu.backward(q, k, v, tokens, tokens, lse, delta, grad_out, **how)

    return jax.jit(run)


def random_arrays(size: Size, dtype=jnp.bfloat16) -> list[jax.Array]:
    shape = (1, size.tokens, size.heads, size.head_dim)
    return [jax.random.normal(key, shape, dtype) for key in jax.random.split(jax.random.key(0), 4)]


def reference(size: Size, q, k, v, grad_out) -> list[np.ndarray]:
    """out and the gradients of q, k and v, dense, in float64."""
    q, k, v, g = (np.asarray(x, np.float64)[0].swapaxes(0, 1) for x in (q, k, v, grad_out))
    positions, segments = (np.asarray(x)[0] for x in size.positions_and_segments())
    seen = np.equal.outer(segments, segments) & np.greater_equal.outer(positions, positions)
    scale = size.head_dim**-0.5
    weights = np.where(seen, np.exp(scale * q @ k.swapaxes(1, 2)), 0)
    weights /= weights.sum(-1, keepdims=True)
    grad_weights = g @ v.swapaxes(1, 2)
    grad_scores = scale * weights * (grad_weights - (weights * grad_weights).sum(-1, keepdims=True))
    found = weights @ v, grad_scores @ k, grad_scores.swapaxes(1, 2) @ q, weights.swapaxes(1, 2) @ g
    return [x.swapaxes(0, 1)[None] for x in found]


def check(size: Size, sides: dict[str, Attend], dtype) -> dict[str, list[float]]:
    """The largest error of each side's output and gradients, relative to the largest value."""
    arrays = random_arrays(size, dtype)
    expected = reference(size, *arrays)
    errors = {}
    for name, attend in sides.items():
        found = program(attend, backward=True)(*arrays)
        assert isinstance(found, tuple)
        errors[name] = [
            float(np.abs(np.asarray(a, np.float64) - b).max() / np.abs(b).max())
            for a, b in zip(found, expected, strict=True)
        ]
    return errors


def seconds(run: Callable[[], object], at_least: float) -> float:
    """Seconds of one call, the mean of so many that they take `at_least` seconds: enough to hide the way to the GPU."""
    calls = 1
    while True:
        start = time.perf_counter()
        for _ in range(calls):
            result = run()
        jax.block_until_ready(result)
        taken = time.perf_counter() - start
        if taken >= at_least or calls >= 1024:
            return taken / calls
        calls = min(1024, max(2 * calls, int(1.2 * calls * at_least / taken)))


def measure(sides: dict[str, Callable[[], object]], runs: int, at_least: float) -> tuple[dict, dict]:
    """(median seconds of each side that runs, why each other one does not), the sides in turn."""
    ready, refused = {}, {}
    for name, run in sides.items():
        try:
            jax.block_until_ready(run())
            ready[name] = run
        except (RuntimeError, ValueError, NotImplementedError) as error:  # memory, or a shape that cuDNN does not take
            refused[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
    taken: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(runs):
        for name, run in ready.items():
            taken[name].append(seconds(run, at_least))
    return {name: statistics.median(values) for name, values in taken.items()}, refused


def compare(size: Size, backward: bool, runs: int, gemm: int, implementation: Implementation, at_least: float) -> dict:
    """Rates of all sides at one size."""
    arrays = random_arrays(size)
    # Random too: a GPU multiplies ones faster, as they take less power.
    square = jax.random.normal(jax.random.key(1), (gemm, gemm), jnp.bfloat16)
    product = jax.jit(lambda x: x @ x)
    programs = {
        "ringworld": program(ours(size), backward),
        "kernels": kernels(size, backward),
        implementation: program(peer(implementation), backward),
    }
    if size.documents > 1:
        programs[f"{implementation} rows"] = program(peer(implementation, size.documents), backward)
    sides: dict[str, Callable[[], object]] = {
        name: (lambda call=call: call(*arrays)) for name, call in programs.items()
    }
    taken, refused = measure(sides | {"gemm": lambda: product(square)}, runs, at_least)
    work = {name: size.operations(backward) for name in sides} | {"gemm": 2.0 * gemm**3}
    return {
        "tokens": size.tokens,
        "heads": size.heads,
        "head_dim": size.head_dim,
        "documents": size.documents,
        "pass": "forward+backward" if backward else "forward",
        "seconds": taken,
        "tflops": {name: work[name] / value / 1e12 for name, value in taken.items()},
        "refused": refused,
    }


def line(row: dict, implementation: Implementation) -> str:
    rate = row["tflops"]

    def number(name: str) -> str:
        return f"{rate[name]:>10.4g}" if name in rate else f"{'-':>10}"

    def ratio(name: str) -> str:
        there = "ringworld" in rate and name in rate
        return f"{rate['ringworld'] / rate[name]:>7.2f}" if there else f"{'-':>7}"

    names = ("ringworld", "kernels", implementation, f"{implementation} rows", "gemm")
    return (
        f"{row['tokens']:>8} {row['heads']:>5} {row['documents']:>9}  {row['pass']:<16}"
        + "".join(map(number, names))
        + "".join(map(ratio, (implementation, f"{implementation} rows", "gemm")))
    )


def main() -> None:
    """Check, measure every length and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2**13, 2**15, 2**17, 2**19, 2**20])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    device = jax.devices()[0]
    if device.platform != "gpu" and not options.smoke:
        raise SystemExit(f"no GPU: jax sees {device.device_kind}; run this where one is, or with --smoke at toy size")
    bad = [length for length in options.lengths if length < DOCUMENTS or length % DOCUMENTS]
    if bad:
        raise SystemExit(f"--lengths {bad[0]}: must be a multiple of {DOCUMENTS}, for as many equal documents")

    toy = options.smoke
    lengths, runs, gemm = ([64], 1, 64) if toy else (options.lengths, options.runs, 8192)
    head_dim, at_least = (16, 0.0) if toy else (128, 0.2)
    implementation: Implementation = "xla" if toy else "cudnn"
    print(f"{device.device_kind}, jax {jax.__version__}{', toy size: the times mean nothing' if toy else ''}\n")

    print("largest error relative to the largest value, against float64: out, grad_q, grad_k, grad_v")
    errors = []
    for dtype in (jnp.float32, jnp.bfloat16):
        for documents in (1, DOCUMENTS):
            size = Size(64 if toy else 2048, 2, head_dim, documents)
            # cuDNN takes no float32, and no documents but as rows.
            sides = {"ringworld": ours(size)}
            if dtype == jnp.bfloat16 or toy:
                sides[implementation] = peer(implementation, documents)
            for name, values in check(size, sides, dtype).items():
                errors.append({"side": name, "dtype": dtype.__name__, "documents": documents, "errors": values})
                print(
                    f"  {name:<10} {dtype.__name__:<9} {documents:>3} documents  "
                    + "  ".join(f"{x:.1e}" for x in values)
                )

    names = ("ringworld", "kernels", implementation, "..rows", "gemm")
    print(
        f"\n{'tokens':>8} {'heads':>5} {'documents':>9}  {'TFLOP/s of':<16}"
        + "".join(f"{name:>10}" for name in names)
        + "".join(f"{name:>7}" for name in ("/peer", "/rows", "/gemm"))
    )
    rows = []
    for documents in (1, DOCUMENTS):
        for tokens in lengths:
            size = Size(tokens, 2 if toy or tokens >= LONG else 8, head_dim, documents)
            for backward in (False, True):
                row = compare(size, backward, runs, gemm, implementation, at_least)
                rows.append(row)
                print(line(row, implementation), flush=True)
                for name, why in row["refused"].items():
                    print(f"{'':>26}{name} did not run: {why}", flush=True)
    if options.json:
        report = {"device": device.device_kind, "jax": jax.__version__, "errors": errors, "rows": rows}
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
