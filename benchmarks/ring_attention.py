"""Ring attention against `ringattention` 0.1.2, on this CPU, in one run; the time and memory of ours by length.

    python benchmarks/ring_attention.py [--quick] [--no-peer] [--json FILE]

Both sides do the same work: forward and backward of causal attention, float32, 8192 tokens, 4 heads of 64, batch 1,
over 1, 2 and 8 devices of the host. Each side runs in a process of its own, the peer's in an environment of its own
(installed on first use), all in turn, A B A B; the median of 7 after a warm-up counts. Settings that a user may choose
are tried first, and each side keeps its fastest: the peer's chunk sizes, and for both whether XLA's products use
several threads. The limit of the machine is a 2048 x 2048 matrix product by our JAX, the best one of the run.
Every repetition's seconds are in the JSON. About ten minutes on two cores; run it with nothing else running.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

# Run as a file, Python looks for imports beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import environment
from benchmarks.ring_attention_work import GEMM, Work, largest_difference, one_long
from benchmarks.worker import Worker

OURS, PEER = "benchmarks.ring_attention_ours", "benchmarks.ring_attention_peer"
PEER_PACKAGES = (
    "jax==0.4.29", "jaxlib==0.4.29", "flax==0.8.4", "numpy<2", "scipy<1.13", "einops==0.8.2", "ringattention==0.1.2",
)  # fmt: skip
FLAGS = ("", "--xla_cpu_multi_thread_eigen=false")


@dataclass(frozen=True)
class Plan:
    """How much is measured. chunks: the peer's (query, key) chunks to try; those longer than a shard are left out."""

    tokens: int
    runs: int
    devices: tuple[int, ...]
    flags: tuple[str, ...]
    chunks: tuple[tuple[int, int], ...]
    document: int  # tokens of each document, where the length varies
    lengths: tuple[int, ...]
    memory_ring: int
    shards: tuple[int, ...]


FULL = Plan(
    tokens=8192,
    runs=7,
    devices=(1, 2, 8),
    flags=FLAGS,
    chunks=((128, 128), (256, 128), (256, 256), (256, 512), (512, 128), (512, 512), (1024, 1024), (2048, 2048)),
    document=2048,
    lengths=tuple(2048 * 2**n for n in range(6)),
    memory_ring=8,
    shards=tuple(2048 * 2**n for n in range(6)),
)
QUICK = Plan(
    tokens=2048,
    runs=3,
    devices=(1, 2),
    flags=FLAGS[:1],
    chunks=((256, 256), (512, 128)),
    document=1024,
    lengths=(1024, 4096),
    memory_ring=4,
    shards=(2048, 8192),
)


@dataclass(frozen=True)
class Entry:
    """One line of a comparison: what one worker is asked again and again. name: what the tables call it."""

    name: str
    worker: Worker
    request: Mapping[str, Any]


@dataclass
class Progress:
    """One line on stderr for each step begun, with the time gone and, in steps, what is left."""

    total: int
    done: int = 0
    start: float = field(default_factory=time.monotonic)

    def step(self, what: str) -> None:
        gone = time.monotonic() - self.start
        left = f", about {_clock(gone / self.done * (self.total - self.done))} left" if self.done else ""
        self.done += 1
        print(f"[{self.done:>3}/{self.total}] {_clock(gone)} gone{left}: {what}", file=sys.stderr, flush=True)


def in_turn(entries: Sequence[Entry], runs: int, progress: Progress, what: str) -> dict[str, list[dict[str, float]]]:
    """Every entry's answers, A B A B, after one warm-up of each that does not count."""
    answers: dict[str, list[dict[str, float]]] = {entry.name: [] for entry in entries}
    for turn in range(runs + 1):
        progress.step(f"{what}, {f'run {turn} of {runs}' if turn else 'warm-up'}")
        for entry in entries:
            answer = entry.worker.ask(entry.request)
            if turn:
                answers[entry.name].append(answer)
    return answers


def summary(answers: Sequence[Mapping[str, float]], work: Work) -> dict[str, Any]:
    """Median seconds of the clock and of all threads, the rate they mean, and every repetition's seconds."""
    seconds = statistics.median(answer["seconds"] for answer in answers)
    return {
        "seconds": seconds,
        "cpu_seconds": statistics.median(answer["cpu_seconds"] for answer in answers),
        "gflops": work.operations / seconds / 1e9,
        "runs": [answer["seconds"] for answer in answers],
    }


class Benchmark:
    """A plan carried out: its methods measure one thing each, and say what they do as they go.

    Workers stay for the whole run, so that nothing is compiled twice; those not asked wait, and take no time.
    """

    def __init__(self, plan: Plan, peer: Path | None, stack: contextlib.ExitStack) -> None:
        self._plan = plan
        self._peer = peer
        self._stack = stack
        self._workers: dict[tuple[str, int, str], Worker] = {}
        self._settings: dict[int, dict[str, Any]] = {}
        self._gemm: list[float] = []
        tried = sum(
            len(plan.flags) + (len(plan.flags) - 1 + len(self._chunks(devices)) if peer else 0)
            for devices in plan.devices
        )
        self._progress = Progress(tried + (len(plan.devices) + 3) * (1 + plan.runs) + len(plan.shards))

    def run(self) -> dict[str, Any]:
        """Everything, as the JSON file has it."""
        tokens = self._plan.tokens
        rings = [self._ring(devices) for devices in self._plan.devices]
        packed = {
            "16 equal documents": self._compare(1, Work((tokens // 16,) * 16), "16 equal documents"),
            "1 long, 15 short documents": self._compare(1, Work(one_long(tokens, 15)), "1 long, 15 short documents"),
        }
        lengths, memory = self._lengths(), self._memory()
        return {
            "plan": asdict(self._plan),
            "gemm_gflops": 2 * GEMM**3 / min(self._gemm) / 1e9,
            "rings": rings,
            "packed": packed,
            "lengths": lengths,
            "memory": memory,
        }

    def _worker(self, side: str, devices: int, flags: str) -> Worker:
        key = (side, devices, flags)
        if key not in self._workers:
            python, module = (Path(sys.executable), OURS) if side == "ours" else (self._peer, PEER)
            assert python is not None
            self._workers[key] = self._stack.enter_context(Worker(python, module, devices, flags))
        return self._workers[key]

    def _chunks(self, devices: int) -> list[tuple[int, int]]:
        shard = self._plan.tokens // devices
        return [chunks for chunks in self._plan.chunks if max(chunks) <= shard]

    def _ring(self, devices: int) -> dict[str, Any]:
        """One document over a ring of so many devices."""
        self._settings[devices] = self._choose(devices)
        answers = self._compare(devices, Work((self._plan.tokens,)), f"ring {devices}")
        return {"devices": devices, "settings": self._settings[devices], **answers}

    def _compare(self, devices: int, work: Work, what: str) -> dict[str, Any]:
        """Both sides in turn, ours in each layout, and how far their results differ."""
        chosen = self._settings[devices]
        ours = self._worker("ours", devices, chosen["ours"]["flags"])
        layouts = ("balanced", "contiguous") if devices > 1 else ("contiguous",)
        entries = [Entry(layout, ours, _step(work, layout=layout)) for layout in layouts]
        if self._peer:
            peer = self._worker("peer", devices, chosen["peer"]["flags"])
            entries.append(Entry("peer", peer, _step(work, **chosen["peer"]["chunks"])))
        answers = in_turn([*entries, Entry("gemm", ours, {"do": "gemm"})], self._plan.runs, self._progress, what)
        self._gemm += [answer["seconds"] for answer in answers.pop("gemm")]
        medians = {name: summary(of_name, work) for name, of_name in answers.items()}
        return {"difference": self._difference(entries), **medians}

    def _choose(self, devices: int) -> dict[str, Any]:
        """Each side's fastest settings, by the better of two runs after a warm-up."""
        work = Work((self._plan.tokens,))

        def fastest(side: str, candidates: Sequence[tuple[str, dict[str, Any]]]) -> tuple[int, list[dict[str, Any]]]:
            tried = []
            for flags, options in candidates:
                self._progress.step(f"ring {devices}, trying {side}: {', '.join(map(str, options.values()))} {flags}")
                worker, request = self._worker(side, devices, flags), _step(work, **options)
                worker.ask(request)
                seconds = min(worker.ask(request)["seconds"] for _ in range(2))
                tried.append({"flags": flags, **options, "seconds": seconds})
            return min(range(len(tried)), key=lambda n: tried[n]["seconds"]), tried

        layout = "balanced" if devices > 1 else "contiguous"
        best, tried = fastest("ours", [(flags, {"layout": layout}) for flags in self._plan.flags])
        chosen: dict[str, Any] = {"ours": {"flags": self._plan.flags[best], "tried": tried}}
        if self._peer:
            first, *others = self._plan.flags
            chunks = [{"query_chunk": q, "key_chunk": k} for q, k in self._chunks(devices)]
            best, tried = fastest("peer", [(first, each) for each in chunks])
            _, more = fastest("peer", [(flags, chunks[best]) for flags in others]) if others else (0, [])
            flags = min([tried[best], *more], key=lambda each: each["seconds"])["flags"]
            chosen["peer"] = {"flags": flags, "chunks": chunks[best], "tried": tried + more}
        return chosen

    def _difference(self, entries: Sequence[Entry]) -> dict[str, float]:
        """How far out and the three gradients of the other entries are from the first one's, relative."""
        with tempfile.TemporaryDirectory() as folder:
            results = {}
            for entry in entries:
                path = f"{folder}/{entry.name}.npz"
                entry.worker.ask({**entry.request, "do": "save", "path": path})
                with np.load(path) as file:
                    results[entry.name] = list(file.values())
            first, *others = results
            return {f"{first}, {other}": largest_difference(results[first], results[other]) for other in others}

    def _lengths(self) -> list[dict[str, Any]]:
        """Ours on one device, rows of ever more documents of the same length."""
        works = [Work((self._plan.document,) * (length // self._plan.document)) for length in self._plan.lengths]
        worker = self._worker("ours", 1, self._settings[1]["ours"]["flags"])
        entries = [Entry(str(work.length), worker, _step(work, layout="contiguous")) for work in works]
        answers = in_turn(entries, self._plan.runs, self._progress, "cost by length")
        return [{"tokens": work.length, **summary(answers[str(work.length)], work)} for work in works]

    def _memory(self) -> list[dict[str, Any]]:
        rows, worker = [], self._worker("ours", self._plan.memory_ring, "")
        for shard in self._plan.shards:
            self._progress.step(f"memory of shards of {shard} tokens, ring {self._plan.memory_ring}")
            rows.append({"shard": shard, **worker.ask({"do": "memory", "shard": shard})})
        return rows


def table(results: Mapping[str, Any]) -> str:
    """What a run found, to be read."""
    plan, gemm = results["plan"], results["gemm_gflops"]
    head = (
        f"{'layout':>10} {'ringworld':>10} {'ringattention':>13} {'ratio':>6} {'goal':>5} {'of CPU time':>12} "
        f"{'GFLOP/s':>8} {'of GEMM':>8} {'difference':>10}"
    )
    lines = [
        f"Matrix product of {GEMM} x {GEMM}: {gemm:.0f} GFLOP/s",
        "",
        f"One document of {plan['tokens']} tokens, forward + backward, float32",
        f"{'devices':>7} {head}",
    ]
    for row in results["rings"]:
        for layout in ("balanced", "contiguous"):
            if layout in row:
                goal = 2.0 if layout == "balanced" or row["devices"] == 1 else None
                lines.append(f"{row['devices']:>7} {_sides(row, layout, goal, gemm)}")
    for row in results["rings"]:
        lines.append(f"ring {row['devices']}: {_settings(row['settings'])}")
        if row["devices"] == 1:
            lines.append(f"ring 1: {row['contiguous']['gflops'] / gemm:.0%} of the GEMM rate (goal 70%)")
        else:
            gain = row["contiguous"]["seconds"] / row["balanced"]["seconds"]
            goal = " (goal 1.40)" if row["devices"] == 2 else ""
            lines.append(f"ring {row['devices']}: balanced is {gain:.2f} x as fast as contiguous{goal}")
    lines += ["", f"{plan['tokens']} tokens of packed documents, 1 device", f"{'documents':>26} {head}"]
    for name, row in results["packed"].items():
        lines.append(f"{name:>26} {_sides(row, 'contiguous', 12.0 if name.startswith('16') else None, gemm)}")
    lines += [
        "",
        f"Documents of {plan['document']} tokens, 1 device",
        f"{'tokens':>7} {'seconds':>8} {'us per token':>12}",
    ]
    for row in results["lengths"]:
        lines.append(f"{row['tokens']:>7} {row['seconds']:>8.3f} {row['seconds'] / row['tokens'] * 1e6:>12.1f}")
    lines += [
        "",
        f"MiB per device, ring {plan['memory_ring']}: allotted by XLA, and counted as to be held (goal: within 20%)",
        f"{'shard':>7} {'arguments':>10} {'results':>8} {'temporaries':>11} {'sum':>8} {'counted':>8} {'ratio':>6}",
    ]
    for row in results["memory"]:
        mib = {key: value / 2**20 for key, value in row.items()}
        lines.append(
            f"{row['shard']:>7} {mib['arguments']:>10.1f} {mib['results']:>8.1f} {mib['temporaries']:>11.1f} "
            f"{mib['bytes']:>8.1f} {mib['counted']:>8.1f} {row['bytes'] / row['counted']:>6.2f}"
        )
    return "\n".join(lines)


def _sides(row: Mapping[str, Any], layout: str, goal: float | None, gemm: float) -> str:
    ours, peer = row[layout], row.get("peer")
    theirs, ratio, of_cpu = "-", "-", "-"
    if peer:
        theirs, ratio = f"{peer['seconds']:.3f}s", f"{peer['seconds'] / ours['seconds']:.2f}"
        of_cpu = f"{peer['cpu_seconds'] / ours['cpu_seconds']:.2f}"
    wanted = f"{goal:.0f}" if goal else "-"
    apart = f"{max(row['difference'].values()):.0e}" if row["difference"] else "-"
    return (
        f"{layout:>10} {ours['seconds']:>9.3f}s {theirs:>13} {ratio:>6} {wanted:>5} {of_cpu:>12} "
        f"{ours['gflops']:>8.1f} {ours['gflops'] / gemm:>8.0%} {apart:>10}"
    )


def _settings(chosen: Mapping[str, Any]) -> str:
    said = f"ringworld with {chosen['ours']['flags'] or 'no flags'}"
    if "peer" not in chosen:
        return said
    chunks = "chunks of {query_chunk} x {key_chunk}".format_map(chosen["peer"]["chunks"])
    return f"{said}; ringattention with {chunks}, {chosen['peer']['flags'] or 'no flags'}"


def _step(work: Work, **options: Any) -> dict[str, Any]:
    return {"do": "step", "documents": work.documents, **options}


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _machine() -> dict[str, Any]:
    return {"system": platform.platform(), "cores": os.cpu_count(), "load_before": os.getloadavg()[0]}


def main() -> None:
    """Measure, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short rows and few runs: does it work?")
    parser.add_argument("--no-peer", action="store_true", help="our side alone")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    machine, peer = _machine(), None
    if machine["load_before"] > 0.3:
        print(f"warning: the load is {machine['load_before']:.1f}; other programs disturb the figures", file=sys.stderr)
    if not options.no_peer:
        try:
            peer = environment.python_with("ringattention", PEER_PACKAGES)
        except environment.Unavailable as error:
            raise SystemExit(f"the peer cannot be installed; --no-peer measures our side alone\n{error}") from error
    with contextlib.ExitStack() as stack:
        results = {"machine": machine, **Benchmark(QUICK if options.quick else FULL, peer, stack).run()}
    print(table(results))
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
