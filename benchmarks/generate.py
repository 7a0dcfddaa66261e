"""Reading prompts and drawing tokens against `transformers` on torch, on this CPU, in one run.

    python benchmarks/generate.py [--quick] [--devices 1 2] [--json FILE]

The same random Llama on both sides (8 layers x 512, 8 heads, 4 key-value heads of 64, feed-forward 1376, vocabulary
8192), float32. Prefill is a prompt of 8,192 tokens and the token after it; decode is greedy, a token for each of 1 to
16 requests after short prompts, and for one after 8,192 tokens. Each side runs in a process of its own, the sides in
turn, A B A B; the median of the runs after a warm-up counts, in seconds of the clock and, for a machine with other work
on it, of the processor. The peer is asked with one thread and with two, and its faster answer counts. Also: the cache's
bytes against those that are counted. Needs the `parity` extra for the peer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

# Run as a file, Python looks for imports beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.worker import Worker

SIZES = {"layers": 8, "embed": 512, "heads": 8, "kv_heads": 4, "mlp": 1376, "vocabulary": 8192}
QUICK = {"layers": 2, "embed": 128, "heads": 4, "kv_heads": 2, "mlp": 344, "vocabulary": 1000}
BATCHES = (1, 2, 4, 8, 16)
OURS, PEER = "benchmarks.generate_ours", "benchmarks.generate_peer"


def in_turn(ours: Worker, peer: Worker, request: dict[str, Any], runs: int) -> dict[str, dict[str, float]]:
    """The medians of each side's answers to one request, asked in turn; the first answers, compilation, are dropped."""
    answers: dict[str, list[dict[str, float]]] = {"ours": [], "peer with 1 thread": [], "peer with 2 threads": []}
    for turn in range(runs + 1):
        for side, found in answers.items():
            if side != "ours":
                peer.ask({"do": "threads", "count": int(side.split()[2])})
            answer = (ours if side == "ours" else peer).ask(request)
            if turn:
                found.append(answer)
    medians = {
        side: {name: statistics.median(answer[name] for answer in found) for name in found[0]}
        for side, found in answers.items()
    }
    return medians | {"peer": {name: min(medians[s][name] for s in medians if s != "ours") for name in medians["ours"]}}


def measure(folder: str, sizes: dict[str, int], devices: list[int], tokens: int, runs: int) -> dict[str, Any]:
    """Every figure, printed as it is found."""
    python = Path(sys.executable)
    result: dict[str, Any] = {"sizes": sizes, "prefill": [], "decode": [], "cache": []}
    with Worker(python, PEER, 1) as peer:
        made = peer.ask({"do": "make", "folder": folder, "sizes": sizes})
        print(f"{made['parameters'] / 1e6:.1f} M parameters; seconds of the clock (of the processor)")
        for count in devices:
            mesh = "data=1" if count == 1 else f"tensor={count}"
            with Worker(python, OURS, count) as ours:
                ours.ask({"do": "load", "folder": folder, "mesh": mesh})
                row = in_turn(ours, peer, {"do": "prefill", "tokens": tokens}, runs)
                result["prefill"].append({"mesh": mesh, "tokens": tokens} | row)
                _print(f"prefill {tokens} tokens, {mesh}", row)
                for batch, past in [(batch, 64) for batch in BATCHES] + [(1, tokens)]:
                    row = in_turn(ours, peer, {"do": "decode", "batch": batch, "past": past, "steps": 48}, runs)
                    result["decode"].append({"mesh": mesh, "batch": batch, "past": past} | row)
                    _print(f"decode a step, batch {batch}, {past} past, {mesh}", row)
                for batch, context in ((1, tokens + 1), (16, 1000)):
                    told = ours.ask({"do": "cache", "batch": batch, "context": context})
                    result["cache"].append({"mesh": mesh, "batch": batch, "context": context} | told)
                    print(f"cache {batch} x {context}: {told['held']} bytes, counted {told['counted']}", flush=True)
                speed = ours.ask({"do": "gemm"}) and ours.ask({"do": "gemm"})
                result["gemm_gflops"] = speed["operations"] / speed["seconds"] / 1e9
    return result


def _print(name: str, row: dict[str, dict[str, float]]) -> None:
    ours, peer = row["ours"], row["peer"]
    print(
        f"{name:<44} ringworld {ours['seconds']:8.4f} ({ours['cpu_seconds']:.4f})  transformers {peer['seconds']:8.4f} "
        f"({peer['cpu_seconds']:.4f})  ratio {peer['seconds'] / ours['seconds']:.2f} "
        f"({peer['cpu_seconds'] / ours['cpu_seconds']:.2f})",
        flush=True,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model and 1,024 tokens: whether it runs")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2], help="CPU devices of ringworld's side")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sizes, tokens = (QUICK, 1024) if options.quick else (SIZES, 8192)
        result = measure(folder, sizes, options.devices, tokens, options.runs)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
