"""A driver in a process of its own, for tests that kill it:  python -m tests.infra.driver ROOT [force=slow] [ticks=N]

Its one stage counts ticks into its state series, so that a later attempt sees how far an earlier one came.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from infra.runner import run
from infra.stage import Result, Stage, StageContext
from infra.storage import Store
from tests.infra.tiny import Number, stage

TICK = 0.02


def count(context: StageContext, recipe: Number) -> Result:
    """Append the attempt's number to state/ticks until there are `recipe.value` of them; then list them in out.txt."""
    ticks = os.path.join(context.state_dir, "ticks")
    with open(os.path.join(context.attempt_dir, "partial.txt"), "w") as partial:
        partial.write("not to be seen")
    while (seen := lines(ticks)) is None or len(seen) < recipe.value:
        if context.stop.is_set():
            raise InterruptedError("stopped")
        with open(ticks, "a") as file:
            file.write(f"{context.attempt}\n")
        time.sleep(TICK)
    with open(os.path.join(context.attempt_dir, "out.txt"), "w") as file:
        file.write(" ".join(seen))
    return Result(("out.txt",), {"ticks": len(seen)})


def lines(path: str) -> list[str] | None:
    try:
        with open(path) as file:
            return file.read().split()
    except FileNotFoundError:
        return None


def slow(ticks: int) -> Stage:
    return stage("slow", ticks, count)


def main() -> None:
    # A shell's background job, and so what a test suite run as one starts, is born ignoring Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    root, *rest = sys.argv[1:]
    options = dict(item.split("=") for item in rest)
    run([slow(int(options.get("ticks", "1000000")))], Store(root, "tiny"), force=options.get("force"))


if __name__ == "__main__":
    main()
