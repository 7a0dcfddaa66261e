"""When to save, as arithmetic: what a save costs, how often hosts fail, the interval between saves that loses least.

Seconds between saves lose the cost of a save each time, and half of themselves, to be trained again, at each failure.
The sum is smallest at the square root of twice the cost times the time between failures (Young 1974, "A first order
approximation to the optimum checkpoint interval"; Daly 2006 refines it for costs near the time between failures).
Seconds, hours and counts in, seconds out: nothing here reads a clock.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

# Llama 3 405B (arXiv 2407.21783, section 3.3.4): 419 unexpected interruptions in 54 days on 2,048 hosts of 8 GPUs.
PRIOR_HOST_HOURS = 54 * 24 * 2048 / 419


def seconds_between_failures(failures: int, host_hours: float, hosts: int) -> float:
    """What to expect of `hosts` hosts that were seen to fail `failures` times in `host_hours` hours of a host.

    One failure in PRIOR_HOST_HOURS is counted on top: with nothing seen yet it is the whole estimate.
    """
    return 3600.0 * (PRIOR_HOST_HOURS + host_hours) / ((1 + failures) * hosts)


def save_cost(during: Sequence[float], calm: Sequence[float], blocked: float) -> float:
    """Seconds that a save took from training: what the steps from its begin until it was durable took longer than the
    median of calm steps, the time in which the loop stood still included; at least that time itself."""
    if not during or not calm:
        return blocked
    return max(blocked, sum(during) - len(during) * statistics.median(calm))


def save_interval(cost: float, between_failures: float, least: float, most: float, durable: float = 0.0) -> float:
    """Seconds from the begin of a save to the begin of the next, within `least` and `most`.

    durable: seconds from a save's begin until it can be restored; no interval is shorter, whatever `most` says, because
    one save waits for the one before it.
    """
    best = math.sqrt(2.0 * cost * between_failures)
    return max(min(max(best, least), most), durable)


def automatic_interval(
    costs: Sequence[float],
    failures: int,
    host_hours: float,
    hosts: int,
    least: float,
    most: float,
    durable: float = 0.0,
) -> float:
    """`save_interval` for the median of the last costs and the failures seen; `least` until a cost was measured."""
    if not costs:
        return least
    between = seconds_between_failures(failures, host_hours, hosts)
    return save_interval(statistics.median(costs), between, least, most, durable)


def steps_to_wait(remaining: float, step_seconds: float) -> int:
    """Steps to train before the clock is read again, `remaining` seconds before a save; 0 is to save now.

    Half of the remaining time: so clocks are compared a few times an interval, whatever the steps' seconds turn out to
    be, and a save comes within half a step of its time.
    """
    if remaining <= step_seconds / 2:
        return 0
    return max(1, int(remaining / max(step_seconds, 1e-9) / 2))
