"""Peak memory of a training step against its length, and against what the planner said before: a ring of 8 on this CPU.

    python benchmarks/memory_by_length.py [--lengths 2048 ... 65536] [--json FILE]

Each length is planned (`ringworld.planning.aot`, the compiler's figure for eight devices of the processor) and trained:
of a small Llama's second step, in a process of its own, the peak of resident memory over what was resident before it,
with the training state and the batch counted in. Goals: within 15% of the plan, and linear in the length.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.memory_by_length_step import MESH, OPTIONS, RING, recipe_of
from benchmarks.worker import Worker
from ringworld.planning.aot import CompileJob, compile_all

LENGTHS = (2048, 4096, 8192, 16384, 32768, 65536)
MIB = 2**20


def planned(length: int, cache: Path) -> float:
    """Bytes of all devices together, as the planner's compiler says."""
    [answer] = compile_all([CompileJob(recipe_of(length), OPTIONS, MESH, None)], cache)
    if answer.peak is None:
        raise RuntimeError(f"{length} tokens: {answer.outcome}: {answer.message}")
    return answer.peak * RING


def linearity(lengths: list[int], measured: list[float]) -> tuple[float, float]:
    """Bytes a token, and the largest distance of a measurement from the fitted line, as a share of it."""
    # Relative distances: a plain fit would look at the longest alone.
    weights = 1 / np.asarray(measured)
    slope, base = np.polyfit(lengths, measured, 1, w=weights)
    line = slope * np.asarray(lengths) + base
    return float(slope), float(np.max(np.abs(np.asarray(measured) - line) / line))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--json", metavar="FILE")
    chosen = parser.parse_args()
    rows = []
    print(f"{'tokens':>8} {'planned MiB':>12} {'measured MiB':>13} {'measured / planned':>19}", flush=True)
    with tempfile.TemporaryDirectory() as cache:
        for length in chosen.lengths:
            plan = planned(length, Path(cache))
            with Worker(Path(sys.executable), "benchmarks.memory_by_length_step", RING) as worker:
                found = worker.ask({"do": "measure", "length": length})
            rows.append({"tokens": length, "planned": plan, "measured": found["bytes"], "loss": found["loss"]})
            ratio = found["bytes"] / plan
            print(f"{length:>8,} {plan / MIB:>12,.0f} {found['bytes'] / MIB:>13,.0f} {ratio:>19.2f}", flush=True)
    if len(rows) > 2:
        slope, distance = linearity(chosen.lengths, [row["measured"] for row in rows])
        print(f"\n{slope / 1024:.2f} KiB a token; no length lies more than {distance:.0%} off the line")
    if chosen.json:
        Path(chosen.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
