"""A needle grid against the same grid through `transformers` on torch, on this CPU, in one run.

    python benchmarks/needle_grid.py [--quick] [--embed 512 --layers 8] [--lengths 1024 2048 4096 8192] [--rounds 1]

The same random Llama and the same prompts on both sides, float32, at five depths of every length. The peer answers each
by `generate()`, eight tokens, as a script of the field does; it is asked with one thread and with two, and its faster
answer counts. Ringworld packs the prompts into rows, reads each row once and looks whether every token of the answer is
the likeliest after the true ones before it, which says the same. That it does is checked: the peer's own answers must
all be found right, and each with one token changed, wrong. The sides take turns; the median counts. Needs the `parity`
extra for the peer.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

# Run as a file, Python looks for imports beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.generate import OURS, PEER, QUICK, SIZES
from benchmarks.worker import Worker

NEW = 8  # tokens of an answer: a number of seven digits in many tokenizers
DEPTHS = 5


def write_prompts(path: Path, lengths: list[int], rounds: int, vocabulary: int) -> int:
    """Prompts of random ids, so long that prompt and answer are a length of the grid; returns how many."""
    rng = np.random.default_rng(0)
    count = DEPTHS * rounds
    prompts = [rng.integers(vocabulary, size=length + 1 - NEW) for length in lengths for _ in range(count)]
    np.savez(path, *(prompt.astype(np.int32) for prompt in prompts))
    return len(prompts)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model and short prompts: whether it runs")
    parser.add_argument("--embed", type=int, default=SIZES["embed"])
    parser.add_argument("--layers", type=int, default=SIZES["layers"])
    parser.add_argument("--vocabulary", type=int, default=SIZES["vocabulary"])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--rounds", type=int, default=1, help="prompts of each length and depth")
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    sizes = {
        "layers": given.layers, "embed": given.embed, "heads": given.embed // 64, "kv_heads": given.embed // 128,
        "mlp": given.embed * 43 // 16, "vocabulary": given.vocabulary,
    }  # fmt: skip
    lengths = [256, 512] if given.quick else given.lengths
    python = Path(sys.executable)
    with tempfile.TemporaryDirectory() as folder, Worker(python, PEER, 1) as peer, Worker(python, OURS, 1) as ours:
        made = peer.ask({"do": "make", "folder": folder, "sizes": QUICK if given.quick else sizes})
        ours.ask({"do": "load", "folder": folder, "mesh": "data=1"})
        prompts, answers = Path(folder) / "prompts.npz", Path(folder) / "answers.npy"
        vocabulary = (QUICK if given.quick else sizes)["vocabulary"]
        count = write_prompts(prompts, lengths, given.rounds, vocabulary)
        about = {"prompts": str(prompts), "answers": str(answers)}
        found: dict[str, list[float]] = {"ringworld": [], "1 thread": [], "2 threads": []}
        for turn in range(given.runs + 1):
            for threads in (1, 2):
                peer.ask({"do": "threads", "count": threads})
                told = peer.ask({"do": "answer", "new": NEW} | about)
                found[f"{threads} thread{'s' * (threads > 1)}"] += [told["seconds"]] * bool(turn)
            mine = ours.ask({"do": "grade", "sequence": max(lengths)} | about)
            found["ringworld"] += [mine["seconds"]] * bool(turn)
        changed = np.load(answers)
        changed[np.arange(count), np.arange(count) % NEW] += 1
        np.save(answers, changed % vocabulary)
        wrong = ours.ask({"do": "grade", "sequence": max(lengths)} | about)
    if not all(mine["exact"]) or any(wrong["exact"]):
        raise SystemExit(f"the sides do not agree: {mine['exact']}, and with a token changed {wrong['exact']}")
    medians = {side: statistics.median(seconds) for side, seconds in found.items()}
    fastest = min(medians["1 thread"], medians["2 threads"])
    print(f"{made['parameters'] / 1e6:.1f} M parameters, {count} prompts of {', '.join(map(str, lengths))} tokens")
    print(", ".join(f"{side} {seconds:.2f} s" for side, seconds in medians.items()))
    print(f"ringworld {fastest / medians['ringworld']:.2f} x of the faster peer; both give the same verdicts")


if __name__ == "__main__":
    main()
