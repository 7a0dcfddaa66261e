"""Packing: ten million documents, how full rows are and what is cut, and what masked packing is worth in training.

    python benchmarks/packing.py [--documents 10000000] [--skip-training] [--json FILE]

- Plans: lengths are drawn from lognormal distributions, web-like (median 810 tokens, sigma 1.1, rows of 8,192) and
  book-like (median 110,000 tokens, sigma 0.8, rows of 131,072). Best fit decreasing, as the pack stage does it, with
  the whole plan made and saved, in a process of its own: processor seconds, peak memory, fill, documents cut. Beside
  it, on the same lengths: first fit decreasing over as many documents as its loop packs in a minute or so, and naive
  concatenation, which fills every row and cuts documents at its ends.
- Balance: the attention of the busiest of 16 ranks over the mean, one row a rank, in steps of sorted rows and of rows
  as they come.
- Training: one step of a small model (4 layers x 128) on the same examples, packed in rows and padded to a row each:
  tokens of documents a second, and the two losses, which must agree within 1e-5.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

KINDS = {"web-like": (6.7, 1.1, 8_192), "book-like": (11.6, 0.8, 131_072)}  # mean and sigma of the log, slots of a row


def lengths_of(kind: str, documents: int) -> np.ndarray:
    """int64 [documents]: tokens, with the end-of-text."""
    mean, sigma, _ = KINDS[kind]
    return np.exp(np.random.default_rng(0).normal(mean, sigma, documents)).astype(np.int64) + 2


def plan(kind: str, documents: int) -> dict[str, Any]:
    """Best fit decreasing of the whole corpus, in this process."""
    from ringworld.data.packing import cut_in_rows, pack
    from ringworld.data.token_store import TokenIndex

    sequence = KINDS[kind][2]
    tokens = lengths_of(kind, documents)
    index = TokenIndex("", np.zeros(documents, np.int32), np.cumsum(tokens) - tokens, tokens, np.zeros(documents, bool))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, began = time.perf_counter(), time.process_time()
    made = pack(index, cut_in_rows(index, index.documents("train"), sequence), sequence, "token")
    planned = time.process_time() - began
    with tempfile.TemporaryDirectory() as folder:
        made.save(os.path.join(folder, "plan.parquet"))
        size = os.path.getsize(os.path.join(folder, "plan.parquet"))
    return {
        "kind": kind,
        "documents": documents,
        "tokens": int(tokens.sum()),
        "rows": made.num_rows,
        "plan_cpu_seconds": planned,
        "save_cpu_seconds": time.process_time() - began - planned,
        "wall_seconds": time.perf_counter() - wall,
        "index_mib": before / 1024,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "file_mib": size / 2**20,
        "fill": made.fill,
        "cut_that_fit": int((np.bincount(made.document)[tokens - 1 <= sequence] > 1).sum()),
        "cut": int((tokens - 1 > sequence).sum()),
        "imbalance": _imbalance(made),
    }


def _imbalance(made: Any, ranks: int = 16, steps: int = 500) -> dict[str, float]:
    """Busiest rank over the mean, less 1: mean over steps, and the share of steps above a tenth."""
    from ringworld.data.order import Order, Schedule
    from ringworld.data.shapes import Split, busiest, deal

    split, found = Split(ranks), {}
    for name, window in (("sorted", 256), ("shuffled", 1)):
        order = Order(made.corpora, made.work, ranks * made.sequence, 0, Schedule(window))
        work = [made.work[order.rows_at(step)] for step in range(min(steps, made.num_rows // ranks))]
        over = np.array([busiest(w[deal(w, split)], split) * ranks / w.sum() - 1 for w in work])
        found |= {name: float(over.mean()), f"{name}_above_tenth": float((over > 0.1).mean())}
    return found


def first_fit_decreasing(sizes: np.ndarray, capacity: int) -> tuple[int, float]:
    """(rows, processor seconds) of the textbook's loop, rooms in a tree of maxima: longest first, first row with
    room."""
    began = time.process_time()
    leaves = 1 << int(np.ceil(np.log2(max(2, len(sizes)))))
    room = [capacity] * (2 * leaves)
    rows = 0
    for size in np.sort(sizes)[::-1].tolist():
        node = 1
        while node < leaves:
            node *= 2
            if room[node] < size:
                node += 1
        rows = max(rows, node - leaves + 1)
        room[node] -= size
        while node > 1:
            node //= 2
            largest = max(room[2 * node], room[2 * node + 1])
            if room[node] == largest:
                break
            room[node] = largest
    return rows, time.process_time() - began


def rests(tokens: np.ndarray, sequence: int) -> np.ndarray:
    """What shares rows: whole documents, and what is left of long ones."""
    left = (tokens - 1) % sequence
    return left[left > 0]


def peers(kind: str, documents: int) -> dict[str, float]:
    """First fit decreasing and best fit on the same sample; naive concatenation by count."""
    from ringworld.data.best_fit import best_fit

    tokens, sequence = lengths_of(kind, documents), KINDS[kind][2]
    pairs = tokens - 1
    sizes = rests(tokens, sequence)
    rows, seconds = first_fit_decreasing(sizes, sequence)
    began = time.process_time()
    ours = int(best_fit(sizes, sequence)[0].max()) + 1
    own = time.process_time() - began
    full = int((pairs // sequence).sum())
    # One stream of all documents, cut every `sequence` tokens: a document is cut where a row ends inside it.
    ends = np.cumsum(pairs)
    crossed = (ends - 1) // sequence > (ends - pairs) // sequence
    return {
        "sample": documents,
        "first_fit_fill": float(pairs.sum() / ((full + rows) * sequence)),
        "first_fit_seconds": seconds,
        "best_fit_fill": float(pairs.sum() / ((full + ours) * sequence)),
        "best_fit_seconds": own,
        "naive_cut_that_fit": float((crossed & (pairs <= sequence)).sum() / (pairs <= sequence).sum()),
    }


def training(rounds: int = 3) -> dict[str, float]:
    """The trainer's step on 64 web-like documents in rows of 1,024: packed, and padded to a row each."""
    import jax

    from ringworld.data.packing import Slices, cut_in_rows, pack
    from ringworld.data.plan import PackingPlan
    from ringworld.data.token_store import TokenIndex
    from ringworld.mesh import make_mesh, parse_mesh
    from ringworld.model.config import ModelConfig
    from ringworld.train.recipe import OptimizerConfig, TrainOptions, TrainRecipe
    from ringworld.train.step import Arrays, TrainStep

    sequence, documents = 1024, 64
    random = np.random.default_rng(0)
    tokens = np.clip(np.exp(random.normal(5.3, 0.9, documents)), 8, sequence + 1).astype(np.int64)
    index = TokenIndex("", np.zeros(documents, np.int32), np.zeros(documents), tokens, np.zeros(documents, bool))
    text = [random.integers(0, 2048, count) for count in tokens.tolist()]
    slices = cut_in_rows(index, np.arange(documents), sequence)
    packed = pack(index, slices, sequence, "example")
    alone = [
        Slices(slices.document[k : k + 1], slices.start[k : k + 1], slices.length[k : k + 1]) for k in range(documents)
    ]
    padded = [pack(index, one, sequence, "example") for one in alone]

    def batch_of(plans: list[PackingPlan]) -> Any:
        rows = sum(plan.num_rows for plan in plans)
        arrays = {name: np.zeros((rows, sequence), np.int32) for name in Arrays._fields[:4]}
        weight = np.zeros((rows, sequence), np.float32)
        first = 0
        for plan in plans:
            for k in range(len(plan.row)):
                length, ids = int(plan.length[k]), text[int(plan.document[k])]
                at = int(plan.row[k]) + first, slice(int(plan.slot[k]), int(plan.slot[k]) + length)
                arrays["tokens"][at], arrays["targets"][at] = ids[:length], ids[1 : length + 1]
                arrays["segments"][at], arrays["positions"][at] = plan.segment[k], np.arange(length)
                weight[at] = 1 / (documents * length)
            first += plan.num_rows
        return Arrays(**jax.tree.map(jax.numpy.asarray, {**arrays, "loss_weight": weight}))

    model = ModelConfig(
        vocabulary=2048, num_layers=4, embed_dim=128, num_heads=4, num_kv_heads=2, head_dim=32, mlp_dim=344,
        tied_embeddings=True,
    )  # fmt: skip
    mesh = make_mesh(parse_mesh("fsdp=1"), jax.devices()[:1])
    found: dict[str, float] = {"documents": documents, "tokens": float((tokens - 1).sum())}
    runs: dict[str, Any] = {}
    for name, plans in (("packed", [packed]), ("padded", padded)):
        batch = batch_of(plans)
        rows = batch.tokens.shape[0]
        recipe = TrainRecipe(model, sequence, rows * sequence, 100, OptimizerConfig(1e-3))
        step = TrainStep(recipe, TrainOptions(), mesh)
        compiled, state = step.compiled(), step.init(jax.random.key(0))
        state, metrics = compiled(state, batch)  # the same weights for both: the first step's loss is before any update
        found |= {f"{name}_rows": rows, f"{name}_loss": float(metrics.loss)}
        runs[name] = [compiled, state, batch, []]
    for _ in range(rounds):
        for run in runs.values():  # in turn: another program on the machine slows both
            began = time.perf_counter()
            run[1], metrics = run[0](run[1], run[2])
            jax.block_until_ready(metrics)
            run[3].append(time.perf_counter() - began)
    for name, run in runs.items():
        found[f"{name}_tokens_per_second"] = found["tokens"] / statistics.median(run[3])
    if abs(found["packed_loss"] - found["padded_loss"]) > 1e-5:
        raise SystemExit(f"packing changed the loss: {found['packed_loss']} and {found['padded_loss']}")
    return found


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=10_000_000)
    parser.add_argument("--sample", type=int, default=200_000, help="documents for first fit decreasing")
    parser.add_argument("--skip-training", action="store_true")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--plan", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plan:
        print(json.dumps(plan(options.plan, options.documents)))
        return
    results: dict[str, Any] = {"plans": [], "peers": []}
    for kind in KINDS:
        words = [sys.executable, __file__, "--plan", kind, "--documents", str(options.documents)]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(done.stdout)
        results["plans"].append(row)
        print(
            f"{kind}: {row['documents']:,} documents, {row['tokens']:,} tokens, {row['rows']:,} rows of "
            f"{KINDS[kind][2]:,}\n"
            f"  plan {row['plan_cpu_seconds']:.1f} s, saved in {row['save_cpu_seconds']:.1f} s of processor time "
            f"({row['wall_seconds']:.1f} s together); peak {row['peak_mib']:,.0f} MiB, of them lengths and libraries "
            f"{row['index_mib']:,.0f}; file {row['file_mib']:,.0f} MiB\n"
            f"  fill {row['fill']:.4%}; cut: {row['cut']:,} documents longer than a row, {row['cut_that_fit']} others\n"
            f"  busiest of 16 ranks over the mean: {row['imbalance']['sorted']:.2%} sorted (above 10% in "
            f"{row['imbalance']['sorted_above_tenth']:.1%} of steps), {row['imbalance']['shuffled']:.1%} as they come",
            flush=True,
        )
        peer = peers(kind, min(options.sample, options.documents))
        results["peers"].append(peer | {"kind": kind})
        print(
            f"  on {peer['sample']:,}: best fit {peer['best_fit_fill']:.4%} in {peer['best_fit_seconds']:.2f} s, "
            f"first fit {peer['first_fit_fill']:.4%} in {peer['first_fit_seconds']:.2f} s; concatenation fills all "
            f"and cuts {peer['naive_cut_that_fit']:.1%} of the documents that fit a row",
            flush=True,
        )
    if not options.skip_training:
        found = results["training"] = training()
        ratio = found["packed_tokens_per_second"] / found["padded_tokens_per_second"]
        print(
            f"training on {found['documents']:.0f} documents of {found['tokens']:,.0f} tokens: packed in "
            f"{found['packed_rows']:.0f} rows {found['packed_tokens_per_second']:,.0f} tokens/s, padded to "
            f"{found['padded_rows']:.0f} rows {found['padded_tokens_per_second']:,.0f}: {ratio:.2f} x; losses "
            f"{found['packed_loss']:.7f} and {found['padded_loss']:.7f}"
        )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
