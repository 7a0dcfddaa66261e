"""The simulator's accounts balance: what `account` finds in the files is what the simulated machines really did."""

from __future__ import annotations

import logging
import math

import pytest

from benchmarks.goodput_world import HOUR, Policy, Simulation, World

AUTO, HOURLY = Policy("auto"), Policy("hourly", save=3600.0)
CALM = World(days=4, failure_every=math.inf, preemption_every=math.inf, slow_every=math.inf, away_every=math.inf,
             driver_every=math.inf)  # fmt: skip
WILD = World(
    days=8, failure_every=HOUR, preemption_every=2 * HOUR, hangs=0.2, away_every=8 * HOUR, driver_every=5 * HOUR
)


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("infra.lease").setLevel(logging.ERROR)


@pytest.mark.parametrize("policy", [AUTO, HOURLY, Policy("awaited", save=300.0, blocking=True, counted=3)])
def test_the_account_is_the_truth(policy: Policy):
    lived = Simulation(WILD, policy, seed=3).run()
    assert lived.attempts > 80
    assert lived.drivers > 25
    assert lived.goodput.productive == pytest.approx(lived.trained, rel=1e-6)
    assert lived.goodput.wall == pytest.approx(lived.wall, rel=1e-9)
    for cause in ("waiting", "restart", "replayed", "saves", "stopped"):
        assert lived.goodput.lost[cause] > 0, cause
    assert lived.goodput.lost["other"] < 0.01 * lived.wall


def test_a_calm_job_loses_its_saves_alone():
    lived = Simulation(CALM, Policy("hourly", save=HOUR), seed=1).run()
    assert lived.attempts == 1
    # 95 saves of half a second and 2% of 8 to 12; the start; nothing else.
    lost = 95 * (0.5 + 0.02 * 10) + CALM.restart
    assert lived.wall - lived.trained == pytest.approx(lost, rel=0.15)


def test_what_is_chosen_from_failures_seen_beats_an_hour():
    world = World(days=20)
    auto, hourly = (Simulation(world, policy, seed=1).run() for policy in (AUTO, HOURLY))
    assert (auto.goodput.share or 0) > 0.965
    assert (hourly.goodput.share or 1) < (auto.goodput.share or 0) - 0.05
    # Young and Daly: twice the cost of a save (0.5 s and 2% of 10) times the time between failures seen.
    assert auto.interval == pytest.approx((2 * 0.7 * 2.7 * HOUR) ** 0.5, rel=0.35)


def test_the_same_seed_is_the_same_life():
    one, other = (Simulation(World(days=3), AUTO, seed=7).run() for _ in range(2))
    assert one.goodput == other.goodput
