"""A training step against `transformers` on torch, on this CPU, in one run: seconds, their ratio, peak memory.

    python benchmarks/train_step.py [--lengths 4096 16384] [--runs 5] [--json FILE]

Both sides do the same work: forward, backward and AdamW of one Llama (4 layers x 256, 8 heads, 4 key-value heads,
feed-forward 688, vocabulary 1000), float32, one causal document, batch 1. Each side runs in a process of its own, the
two in turn, A B A B; the median of the runs after a warm-up counts. Needs the `parity` extra for the peer.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

SIZES = {"layers": 4, "embed": 256, "heads": 8, "kv_heads": 4, "mlp": 688, "vocabulary": 1000}
RATE = 1e-3


def ours(length: int) -> Callable[[], float]:
    """A closure that makes one step of ringworld's trainer and returns its loss."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from ringworld.mesh import MeshSpec, make_mesh
    from ringworld.model.config import ModelConfig
    from ringworld.train.recipe import OptimizerConfig, TrainOptions, TrainRecipe
    from ringworld.train.step import Arrays, TrainStep

    config = ModelConfig(
        vocabulary=SIZES["vocabulary"], num_layers=SIZES["layers"], embed_dim=SIZES["embed"], num_heads=SIZES["heads"],
        num_kv_heads=SIZES["kv_heads"], head_dim=SIZES["embed"] // SIZES["heads"], mlp_dim=SIZES["mlp"],
    )  # fmt: skip
    recipe = TrainRecipe(
        model=config, sequence=length, batch_tokens=length, steps=100, optimizer=OptimizerConfig(learning_rate=RATE)
    )
    step = TrainStep(recipe, TrainOptions(), make_mesh(MeshSpec(), jax.devices()[:1]))
    state, compiled = step.init(jax.random.key(0)), step.compiled()
    ids = np.random.default_rng(0).integers(0, config.vocabulary, (1, length + 1)).astype(np.int32)
    batch = Arrays(
        tokens=jnp.asarray(ids[:, :-1]),
        targets=jnp.asarray(ids[:, 1:]),
        segments=jnp.ones((1, length), jnp.int32),
        positions=jnp.arange(length, dtype=jnp.int32)[None],
        loss_weight=jnp.full((1, length), 1 / length, jnp.float32),
    )

    def run() -> float:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready(state)
        return float(metrics.loss)

    return run


def peer(length: int) -> Callable[[], float]:
    """The same step by transformers' Llama and torch's AdamW."""
    import torch  # pyright: ignore[reportMissingImports] (an extra)
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=SIZES["vocabulary"], hidden_size=SIZES["embed"], intermediate_size=SIZES["mlp"],
        num_hidden_layers=SIZES["layers"], num_attention_heads=SIZES["heads"], num_key_value_heads=SIZES["kv_heads"],
        max_position_embeddings=length, use_cache=False,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    model = transformers.LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1)
    tokens = torch.randint(0, SIZES["vocabulary"], (1, length))

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss)

    return run


def gemm() -> Callable[[], float]:
    """A float32 product of 2048 x 2048 matrices by JAX: this machine's limit. Returns operations."""
    import jax
    import jax.numpy as jnp

    matrix, product = jnp.ones((2048, 2048), jnp.float32), jax.jit(lambda x: x @ x)

    def run() -> float:
        product(matrix).block_until_ready()
        return 2.0 * 2048**3

    return run


def serve(side: str, length: int) -> None:
    """A worker process: one step for every line on stdin, one JSON line of seconds, value and peak memory for each."""
    step = {"ours": ours, "peer": peer}[side](length) if side != "gemm" else gemm()
    for _ in sys.stdin:
        start = time.perf_counter()
        value = step()
        seconds = time.perf_counter() - start
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "value": value, "peak_bytes": memory}), flush=True)


def compare(length: int, runs: int) -> dict[str, float]:
    """Medians of both sides at one length, measured in turn."""
    workers = {
        side: subprocess.Popen(
            [sys.executable, __file__, "--serve", side, str(length)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for side in ("ours", "peer", "gemm")
    }
    results: dict[str, list[dict[str, float]]] = {side: [] for side in workers}
    try:
        for turn in range(runs + 1):
            for side, worker in workers.items():
                assert worker.stdin is not None
                assert worker.stdout is not None
                worker.stdin.write("step\n")
                worker.stdin.flush()
                answer = worker.stdout.readline()
                if not answer:
                    raise SystemExit(f"{side} ended early; the peer needs `pip install .[parity]`")
                if turn:  # the first is compilation and warm-up
                    results[side].append(json.loads(answer))
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    seconds = {side: statistics.median(item["seconds"] for item in results[side]) for side in results}
    return {
        "length": length,
        "ringworld_seconds": seconds["ours"],
        "transformers_seconds": seconds["peer"],
        "ratio": seconds["peer"] / seconds["ours"],
        "ringworld_peak_mib": max(item["peak_bytes"] for item in results["ours"]) / 2**20,
        "transformers_peak_mib": max(item["peak_bytes"] for item in results["peer"]) / 2**20,
        "gemm_gflops": results["gemm"][0]["value"] / seconds["gemm"] / 1e9,
        "ringworld_gflops": _model_flops(length) / seconds["ours"] / 1e9,
    }


def _model_flops(length: int) -> float:
    from ringworld.model.config import ModelConfig
    from ringworld.train.flops import training_flops

    config = ModelConfig(
        SIZES["vocabulary"], SIZES["layers"], SIZES["embed"], SIZES["heads"], SIZES["kv_heads"], 32, SIZES["mlp"]
    )
    return training_flops(config, length, length * (length + 1) // 2)


def main() -> None:
    """Measure every length and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--serve", nargs=2, metavar=("SIDE", "LENGTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve[0], int(options.serve[1]))
        return
    print(
        f"{'tokens':>7} {'ringworld':>10} {'transformers':>13} {'ratio':>6} {'peak MiB':>16} {'GFLOP/s':>8} "
        f"{'of GEMM':>8}"
    )
    rows = []
    for length in options.lengths:
        row = compare(length, options.runs)
        rows.append(row)
        print(
            f"{length:>7} {row['ringworld_seconds']:>9.2f}s {row['transformers_seconds']:>12.2f}s {row['ratio']:>6.2f} "
            f"{row['ringworld_peak_mib']:>7.0f} / {row['transformers_peak_mib']:>6.0f} {row['ringworld_gflops']:>8.0f} "
            f"{row['ringworld_gflops'] / row['gemm_gflops']:>8.0%}",
            flush=True,
        )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
