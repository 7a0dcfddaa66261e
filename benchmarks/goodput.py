"""Simulated goodput: three months on a thousand hosts that fail every 2.7 hours, by policy and by restart time.

    python benchmarks/goodput.py [--days 92] [--seeds 5] [--restart 15] [--json FILE]
    python benchmarks/goodput.py --memory

- The rate is Llama 3's (arXiv 2407.21783: 419 unexpected interruptions in 54 days, one in 3.1 hours; 466 with planned
  ones, one in 2.8), and beside it come preemptions, slow storage, storage that is away and dead drivers: see
  `goodput_world.World`, whose fields are flags here. A save's defaults are those of 405 billion parameters: 12 bytes
  each on 1,000 hosts are 5 GB a host, 0.5 s at 10 GB/s into the host's memory and 10 s at 0.5 GB/s to storage.
- Each policy lives through the same events; figures are means over seeds with their 95% interval (Student's t).
- --memory: what a driver holds after six hours of reports, in this process: see `goodput_memory`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import statistics
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import scipy.stats

# Run as a file, Python looks for imports beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.goodput_world import Lived, Policy, Simulation, World
from infra.console import print_table
from infra.goodput import CAUSES

SHIPPED = Policy("as shipped: save_seconds=auto")
POLICIES = (
    SHIPPED,
    Policy("every 5 min", save=300.0),
    Policy("every 30 min", save=1800.0),
    Policy("every hour", save=3600.0),
    Policy("every 5 min, each save awaited", save=300.0, blocking=True),
    Policy("every 30 min, restart compiles 10 min", save=1800.0, restart=600.0),
    Policy("auto, gives up after 3 failures", counted=3),
)
RESTARTS = (15.0, 60.0, 180.0, 600.0)


def main(words: Sequence[str]) -> int:
    chosen = _parse(words)
    if chosen.memory:
        from benchmarks.goodput_memory import main as measure

        return measure()
    # Storage that is away is part of the plan.
    logging.getLogger("infra.lease").setLevel(logging.ERROR)
    world = World(**{field.name: getattr(chosen, field.name) for field in fields(World)})
    seeds = range(1, chosen.seeds + 1)
    lives = {policy.name: [Simulation(world, policy, seed).run() for seed in seeds] for policy in POLICIES}
    print(f"{world.days:g} days on {world.hosts:,} hosts, a failure every {world.failure_every / 3600:g} h, "
          f"{world.restart:g} s to restart, {chosen.seeds} seeds\n")  # fmt: skip
    _print_policies(lives)
    print(f"\nwhere the time went, {SHIPPED.name}")
    print_table(("cause", "share"), _causes(lives[SHIPPED.name]), sys.stdout, right=("share",))
    print("\nby seconds to restart, as shipped")
    rows, by_restart = [], {}
    for restart in RESTARTS:
        changed = dataclasses.replace(world, restart=restart)
        again = (
            lives[SHIPPED.name] if restart == world.restart else [Simulation(changed, SHIPPED, n).run() for n in seeds]
        )
        by_restart[restart] = again
        rows.append((f"{restart:g}", _interval([_share(life) for life in again])))
    print_table(("restart", "goodput"), rows, sys.stdout, right=("restart", "goodput"))
    if chosen.json:
        found = {name: [_plain(life) for life in kept] for name, kept in lives.items()}
        by = {str(restart): [_plain(life) for life in kept] for restart, kept in by_restart.items()}
        about = {"world": dataclasses.asdict(world), "policies": found, "by_restart": by}
        Path(chosen.json).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return 0


def _print_policies(lives: dict[str, list[Lived]]) -> None:
    rows = [
        (
            name,
            _interval([_share(life) for life in kept]),
            _mean([life.goodput.lost["replayed"] / life.wall for life in kept]),
            _mean([life.goodput.lost["saves"] / life.wall for life in kept]),
            _mean([(life.goodput.lost["restart"] + life.goodput.lost["waiting"]) / life.wall for life in kept]),
            _mean([life.goodput.lost["stopped"] / life.wall for life in kept]),
            f"{statistics.fmean(life.given_up for life in kept):.1f}",
        )
        for name, kept in lives.items()
    ]
    headings = ("saves", "goodput", "replayed", "in saves", "restarts, waits", "no driver", "gave up")
    print_table(headings, rows, sys.stdout, right=headings[1:])


def _causes(lives: list[Lived]) -> list[tuple[str, str]]:
    shares = {"trained": _mean([_share(life) for life in lives], 2)}
    for cause, name in CAUSES.items():
        shares[name] = _mean([life.goodput.lost[cause] / life.goodput.wall for life in lives], 2)
    return list(shares.items())


def _share(life: Lived) -> float:
    return life.goodput.share or 0.0


def _interval(shares: Sequence[float]) -> str:
    """Mean and the half width of its 95% interval, in percent."""
    if len(shares) < 2:
        return f"{shares[0]:.2%}"
    wide = scipy.stats.t.ppf(0.975, len(shares) - 1) * statistics.stdev(shares) / len(shares) ** 0.5
    return f"{100 * statistics.fmean(shares):.2f} ± {100 * wide:.2f}%"


def _mean(shares: Sequence[float], digits: int = 1) -> str:
    return f"{100 * statistics.fmean(shares):.{digits}f}%"


def _plain(life: Lived) -> dict[str, Any]:
    return {**dataclasses.asdict(life), "goodput": _share(life), "lost": dict(life.goodput.lost)}


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", default="")
    parser.add_argument("--memory", action="store_true", help="measure a driver's memory instead")
    for field in fields(World):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
