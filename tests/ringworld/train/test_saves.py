"""When a job saves: against a clock and a storage of the test's own."""

import itertools
import json

import pytest

from ringworld.errors import UserError
from ringworld.train import saves as module
from ringworld.train.cadence import save_interval, seconds_between_failures
from ringworld.train.recipe import TrainOptions
from ringworld.train.saves import Saves
from ringworld.train.sessions import SessionLog


class Clock:
    """Stands still unless the test moves it."""

    def __init__(self):
        self.now = 1000.0

    def perf_counter(self):
        return self.now

    def time(self):
        return self.now


class Storage:
    """Stands in for Checkpoints: the loop stands still for `blocked` seconds, a save is durable `slow` later."""

    def __init__(self, clock, blocked, slow):
        self.clock, self.blocked, self.slow = clock, blocked, slow
        self.steps, self.began = [], 0.0

    def latest_step(self):
        return self.steps[-1] if self.steps else None

    def save(self, step, state):
        self.steps.append(step)
        self.began = self.clock.now
        self.clock.now += self.blocked

    def check(self):
        pass

    def saved_in(self):
        return self.slow if self.steps and self.clock.now >= self.began + self.slow else None

    def wait(self):
        self.clock.now = max(self.clock.now, self.began + self.slow)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that trains `steps` steps of one second and gives the saved steps and the session's account."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)

    def train(steps, blocked=0.0, slow=0.5, slower=0.0, failures=0, **options):
        storage = Storage(clock, blocked, slow)
        session = SessionLog(str(tmp_path), clock.now, hosts=1, writes=False)
        session.session = session.session.__class__(**{**vars(session.session), "failures": failures})
        saves = Saves(storage, TrainOptions(**options), session)  # pyright: ignore[reportArgumentType]
        for step in range(1, steps + 1):
            clock.now += 1.0 + (slower if storage.steps and storage.saved_in() is None else 0.0)
            session.stepped(step, 0.0)
            if saves.due(step) or step == steps:
                saves.save(step, None)
        saves.settle()
        return storage.steps, session.session

    return train


def test_by_steps(run):
    assert run(100, save_every=30)[0] == [30, 60, 90, 100]


def test_by_time(run):
    steps, session = run(100, save_every=0, save_seconds=20.0, blocked=2.0, slow=4.0)
    assert steps == [20, 38, 56, 74, 92, 100]  # a save's own two seconds count
    assert (session.saves, session.save_blocked_seconds, session.save_seconds) == (6, 12.0, 4.0)
    assert session.interval_seconds == 20.0


def test_what_is_kept_for_good_is_saved_whatever_the_time(run):
    assert run(100, save_every=0, save_seconds=1000.0, keep_every=40)[0] == [40, 80, 100]


def test_by_both_the_time_begins_anew_at_each_save(run):
    assert run(100, save_every=30, save_seconds=20.0)[0] == [20, 30, 50, 60, 80, 90, 100]


@pytest.mark.parametrize("failures", [0, 40, 100_000])
def test_the_interval_follows_the_cost_measured_and_the_failures_seen(run, failures):
    """A save stops the loop for a second, and slows the three steps behind which it is written by a tenth."""
    bounds = {"save_seconds_least": 10.0, "save_seconds_most": 1500.0}
    steps, session = run(
        4000, save_every=0, save_seconds="auto", blocked=1.0, slow=4.0, slower=0.1, failures=failures, **bounds
    )
    between = seconds_between_failures(failures, (4000 + len(steps)) / 3600, 1)
    expected = save_interval(1.3, between, 10.0, 1500.0, durable=4.0)
    assert session.interval_seconds == pytest.approx(expected, rel=0.02)
    assert steps[0] == 10
    gaps = [after - before for before, after in itertools.pairwise(steps[1:-1])]
    assert all(gap == pytest.approx(expected, abs=3.0) for gap in gaps)
    assert {0: 1500.0, 100_000: 24.3}.get(failures, expected) == pytest.approx(expected, rel=0.01)


def test_what_was_just_saved_is_not_saved_twice(run):
    assert run(60, save_every=30)[0] == [30, 60]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"save_every": 0}, "save_every=0, save_seconds=0.0"),
        ({"save_every": -1}, "save_every=-1"),
        ({"save_seconds": -2.0}, "save_seconds=-2.0"),
        ({"keep_every": -5}, "keep_every=-5"),
        ({"save_seconds_least": 100.0, "save_seconds_most": 50.0}, "save_seconds_least=100.0"),
    ],
)
def test_options_that_never_save_or_contradict_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        TrainOptions(**options)


def test_auto_and_seconds_are_read_from_a_job_file():
    from ringworld.strict import from_mapping

    for given in ("auto", 30, 2.5):
        read = from_mapping(TrainOptions, json.loads(json.dumps({"save_seconds": given})))
        assert read.save_seconds == given
    with pytest.raises(UserError, match="sometimes"):
        from_mapping(TrainOptions, {"save_seconds": "sometimes"})
