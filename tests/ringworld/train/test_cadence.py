"""When to save, as arithmetic: against a count of what is lost, and against published figures."""

import math

import numpy as np
import pytest

from ringworld.train.cadence import (
    PRIOR_HOST_HOURS,
    automatic_interval,
    save_cost,
    save_interval,
    seconds_between_failures,
    steps_to_wait,
)

HOUR = 3600.0


@pytest.mark.parametrize(
    ("failures", "host_hours", "hosts", "hours"),
    [
        (0, 0, 2048, 54 * 24 / 419),  # Llama 3: one in 3.1 hours
        (0, 0, 1, PRIOR_HOST_HOURS),
        (0, 0, 64, PRIOR_HOST_HOURS / 64),
        (3, 0, 64, PRIOR_HOST_HOURS / 64 / 4),
        (0, 64 * 240, 64, PRIOR_HOST_HOURS / 64 + 240),  # ten calm days
        (10_000, 1000, 1, 0.7335),  # what was seen outweighs the prior
    ],
)
def test_the_time_between_failures_is_what_was_seen_and_one_prior_failure(failures, host_hours, hosts, hours):
    assert seconds_between_failures(failures, host_hours, hosts) / HOUR == pytest.approx(hours, rel=1e-3)


def lost(interval, cost, between):
    """Seconds lost of each second: a save in each interval, half an interval at each failure."""
    return cost / interval + interval / 2 / between


@pytest.mark.parametrize("cost", [0.1, 2.0, 60.0])
@pytest.mark.parametrize("between", [600.0, 2.7 * HOUR, 1000 * HOUR])
def test_no_other_interval_loses_less(cost, between):
    best = save_interval(cost, between, 0.0, math.inf)
    tried = np.geomspace(best / 20, best * 20, 401)
    assert lost(best, cost, between) <= lost(tried, cost, between).min() * (1 + 1e-9)


@pytest.mark.parametrize(
    ("cost", "between", "least", "most", "durable", "interval"),
    [
        (2.0, 10_000.0, 60, 3600, 0, 200),
        (0.0, 10_000.0, 60, 3600, 0, 60),
        (2.0, 1e9, 60, 3600, 0, 3600),
        (2.0, 10_000.0, 60, 3600, 300, 300),  # the save before must be durable
        (2.0, 10_000.0, 60, 150, 300, 300),
    ],
)
def test_an_interval_keeps_its_bounds_and_waits_for_the_save_before(cost, between, least, most, durable, interval):
    assert save_interval(cost, between, least, most, durable) == pytest.approx(interval)


@pytest.mark.parametrize(
    ("during", "calm", "blocked", "cost"),
    [
        ([1.5, 1.2, 1.0], [1.0, 1.0, 9.0], 0.4, 0.7),
        ([0.9, 0.9], [1.0, 1.0], 0.1, 0.1),  # never less than the loop was seen to stand still
        ([], [1.0], 0.3, 0.3),
        ([2.0], [], 0.3, 0.3),
    ],
)
def test_a_save_costs_what_its_steps_took_longer(during, calm, blocked, cost):
    assert save_cost(during, calm, blocked) == pytest.approx(cost)


@pytest.mark.parametrize(
    ("remaining", "step", "wait"),
    [
        (100, 1, 50),
        (3, 1, 1),
        (1, 1, 1),
        (0.5, 1, 0),
        (0.4, 1, 0),
        (-5, 1, 0),
        (10, 60, 0),
        (40, 60, 1),
        (7, 0, 3500000000),
    ],
)
def test_the_clock_is_read_again_after_half_of_the_time_that_remains(remaining, step, wait):
    assert steps_to_wait(remaining, step) == wait


def test_few_looks_at_the_clock_come_within_half_a_step_of_the_time():
    for step in (0.01, 0.7, 33.0):
        looks, clock = 0, 0.0
        while wait := steps_to_wait(600 - clock, step):
            looks, clock = looks + 1, clock + wait * step
        assert abs(clock - 600) <= step / 2 + 1e-9
        assert looks <= 2 * math.log2(600 / step) + 2


def test_the_automatic_interval_follows_the_median_cost_and_the_failures_seen():
    def chosen(costs, failures=0, durable=0.0):
        return automatic_interval(costs, failures, 1e6, 1000, least=3.0, most=1e6, durable=durable)

    assert chosen(()) == 3.0
    between = seconds_between_failures(0, 1e6, 1000)
    assert chosen((1.0, 2.0, 30.0)) == pytest.approx((2 * 2.0 * between) ** 0.5)
    assert chosen((2.0,), failures=3) == pytest.approx(chosen((2.0,)) / 2)
    assert chosen((2.0,), durable=5e5) == 5e5
