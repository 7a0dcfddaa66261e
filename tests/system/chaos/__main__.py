"""`python -m tests.system.chaos --faults 50 --seed 7 [--record FILE]`: 0 when all is survived and nothing differs."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.system.chaos.campaign import Options, Report, run


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="tests.system.chaos", description="A campaign of faults; see docs/operations.md."
    )
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=300, help="of each training stage")
    parser.add_argument("--curriculum", default="curriculum.yaml", help="or short.yaml, which has no branch")
    parser.add_argument(
        "--root", type=Path, help="a folder to make; a temporary one by default, removed when all is well"
    )
    parser.add_argument(
        "--record", type=Path, metavar="FILE",
        help="faults, times and verdict as JSON, after every round; a campaign that was stopped goes on from it",
    )  # fmt: skip
    given = parser.parse_args(words)
    # As Ctrl-C does, and also where a shell has started it in the background, which ignores that.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = (given.root or Path(tempfile.mkdtemp(prefix="chaos-")) / "campaign").resolve()
    before = Report.of(json.loads(given.record.read_text())) if given.record and given.record.exists() else None
    if before and (before.seed, before.asked) != (given.seed, given.faults):
        parser.error(f"--record {given.record} is of --faults {before.asked} --seed {before.seed}: give another file")
    if before and (before.ok or before.wrong):
        print(summary(before))
        return 0 if before.ok else 1

    def keep(report: Report) -> None:
        if given.record:
            scratch = given.record.with_suffix(".new")
            scratch.write_text(json.dumps(asdict(report), indent=1) + "\n")
            scratch.replace(given.record)

    options = Options(given.faults, given.seed, folder, given.steps, given.curriculum)
    report = run(options, lambda line: print(line, flush=True), before, keep)
    keep(report)  # also one that went wrong
    print(summary(report))
    if report.ok and given.root is None:
        shutil.rmtree(folder.parent)
    else:
        print(f"kept: {folder}")
    return 0 if report.ok else 1


def summary(report: Report) -> str:
    """The verdict in words, and recovery times by kind."""
    lines = ["", f"{'fault':20s} struck survived   median    worst"]
    for kind in dict.fromkeys(fault.kind for fault in report.faults):
        times = [fault.recovered for fault in report.faults if fault.kind == kind and fault.recovered is not None]
        struck = sum(fault.kind == kind for fault in report.faults)
        figures = f"{statistics.median(times):6.1f} s {max(times):6.1f} s" if times else ""
        lines.append(f"{kind:20s} {struck:6d} {len(times):8d} {figures}")
    lines += [f"not possible here: {kind}" for kind in report.skipped]
    lines.append(
        f"{report.survived} of {report.asked} faults survived in {report.sittings} sittings, {report.rounds} rounds "
        f"and {report.seconds:.0f} s (seed {report.seed}, {report.restarts} starts of the flow by hand, a calm run "
        f"{report.calm_seconds:.0f} s)"
    )
    lines += [f"wrong: {each}" for each in report.wrong]
    lines.append(
        "verdict: every round equals the calm run: manifests, each step once, losses and weights to the last bit"
        if report.ok
        else "verdict: FAILED"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
