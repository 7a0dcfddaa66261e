"""Months of a training job on a thousand hosts, in seconds: a virtual clock under the policies that real runs use.

What decides is the project's own code: `infra.verdict.classify` judges each end, `infra.retries.decide` whether and
when there is another attempt, `infra.lease` who may drive (real conditional writes, with this clock),
`ringworld.train.cadence` and the account of `ringworld.train.sessions` when to save, and `infra.goodput.account` where
the time went. What is made up are machines, storage and time: a step takes `step` seconds, and events come as Poisson
processes at the given rates.

A save holds the loop up for `blocked` seconds, slows it by `slowdown` until it is durable, and counts only then.
"""

from __future__ import annotations

import dataclasses
import math
import random
import tempfile
from dataclasses import dataclass, field
from typing import Any, Literal

from infra import lease
from infra.errors import LeaseLost, UserError
from infra.goodput import Goodput, History, account
from infra.retries import Failure, Stop, decide
from infra.storage import Found, Store, Version
from infra.verdict import PREEMPTED, STALLED, RankExit, classify
from ringworld.train.cadence import automatic_interval, save_cost, steps_to_wait
from ringworld.train.recipe import TrainOptions
from ringworld.train.saves import REMEMBERED_SAVES
from ringworld.train.sessions import Session

HOUR, DAY = 3600.0, 86400.0
LEASE_SECONDS = 60.0
_NOTICED = 1.0  # seconds until a gang knows of a rank that is dead
_OPTIONS = TrainOptions(save_seconds="auto")


@dataclass(frozen=True)
class World:
    """What happens to the job, in seconds; `_every`: mean time between two, of the whole fleet (infinite: never).

    restart       from a known failure to training again, machines being there; in `restore` of it the state is read
    hangs         share of failures that only the watchdog finds, after `stall`
    machine       until a failed host is replaced; spares make it short
    blocked, durable, slowdown    of a save: the loop stands still; until it counts; how much slower steps are till then
    notice        what a preempted machine is given
    slow_*, away_*    of storage that is `slow_factor` times slower, and of storage that does not answer
    driver        until a dead driver's machine is back
    person        until somebody looks at a run that gave up
    """

    days: float = 92.0
    hosts: int = 1000
    step: float = 8.0
    failure_every: float = 2.7 * HOUR
    hangs: float = 0.05
    stall: float = 600.0
    restart: float = 15.0
    restore: float = 5.0
    machine: float = 30.0
    preemption_every: float = 12 * HOUR
    notice: float = 30.0
    blocked: float = 0.5
    durable: float = 10.0
    slowdown: float = 0.02
    slow_every: float = 7 * DAY
    slow_lasts: float = HOUR
    slow_factor: float = 10.0
    away_every: float = 10 * DAY
    away_lasts: float = 300.0
    driver_every: float = 14 * DAY
    driver: float = 60.0
    person: float = 8 * HOUR


@dataclass(frozen=True)
class Policy:
    """How the job is run. save: auto, or seconds between saves. blocking: the loop waits until a save is durable.

    restart: seconds on top of the world's, as of a program compiled anew. limit: failures without a newer checkpoint;
    counted: failures at all, after which a run gives up.
    """

    name: str
    save: float | Literal["auto"] = "auto"
    blocking: bool = False
    restart: float = 0.0
    limit: int = 3
    counted: int | None = None


@dataclass(frozen=True)
class Lived:
    """A simulated job. trained: seconds of steps that count, by the simulation's own count. given_up: times."""

    goodput: Goodput
    trained: float
    wall: float
    attempts: int
    drivers: int
    given_up: int
    interval: float


class _Arrivals:
    """A Poisson process: the time of the next event after any moment."""

    def __init__(self, draw: random.Random, every: float) -> None:
        self._draw, self._every = draw, every
        self.next = draw.expovariate(1 / every) if math.isfinite(every) else math.inf

    def passed(self, moment: float) -> None:
        while self.next <= moment:
            self.next += self._draw.expovariate(1 / self._every)


class _Episodes:
    """Stretches of time that begin as a Poisson process, drawn ahead."""

    def __init__(self, draw: random.Random, every: float, lasts: float, end: float) -> None:
        self._spans: list[tuple[float, float]] = []
        arrivals = _Arrivals(draw, every)
        while arrivals.next < end:
            self._spans.append((arrivals.next, arrivals.next + lasts))
            arrivals.passed(arrivals.next + lasts)

    def at(self, moment: float) -> tuple[float, float] | None:
        return next((span for span in self._spans if span[0] <= moment < span[1]), None)

    def after(self, moment: float) -> tuple[float, float]:
        return next((span for span in self._spans if span[0] > moment), (math.inf, math.inf))


class _Storage(Store):
    """A run's folder that does not answer while the world's storage is away."""

    def __init__(self, root: str, simulation: Simulation) -> None:
        super().__init__(root, "simulated")
        self._simulation = simulation

    def read(self, key: str, timeout: float | None = None) -> Found | None:
        self._simulation.require_storage()
        return super().read(key, timeout)

    def replace(self, key: str, data: bytes, version: Version, timeout: float | None = None) -> Version | None:
        self._simulation.require_storage()
        return super().replace(key, data, version, timeout)


@dataclass
class _Left:
    """What the job leaves on storage for `account`. steps: one entry for all the steps between two saves."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    gangs: list[dict[str, Any]] = field(default_factory=list)
    claims: list[dict[str, Any]] = field(default_factory=list)


class Simulation:
    """One job under one policy. `run` once."""

    def __init__(self, world: World, policy: Policy, seed: int) -> None:
        draw = random.Random(seed)
        self.world, self.policy, self.now = world, policy, 0.0
        self._end = world.days * DAY
        self._failures = _Arrivals(random.Random(draw.random()), world.failure_every)
        self._preemptions = _Arrivals(random.Random(draw.random()), world.preemption_every)
        self._driver_deaths = _Arrivals(random.Random(draw.random()), world.driver_every)
        self._slow = _Episodes(random.Random(draw.random()), world.slow_every, world.slow_lasts, self._end)
        self._away = _Episodes(random.Random(draw.random()), world.away_every, world.away_lasts, self._end)
        self._draw = random.Random(draw.random())
        self._left = _Left()
        self._lease: lease.Lease | None = None
        self._session = Session(begun=0.0, hosts=world.hosts)
        self._durable = 0  # steps of the newest checkpoint that counts
        self._interval = 0.0
        self._costs: list[float] = []
        self._drivers = self._given_up = 0

    def run(self) -> Lived:
        """Until the last day."""
        with tempfile.TemporaryDirectory(prefix="goodput-") as root:
            self._store = _Storage(root, self)
            history: tuple[Failure, ...] = ()
            while self.now < self._end:
                if self._lease is None:
                    self._take_over()
                    history = ()
                failure = self._attempt()
                if failure is None or self._lease is None:
                    continue
                history = (*history, failure)
                decision = decide(history, self.policy.limit)
                counted = self.policy.counted is not None and len(history) >= self.policy.counted
                if isinstance(decision, Stop) or counted:
                    self._given_up += 1
                    self._leave(release=True)
                    self.now += self.world.person
                else:
                    self.now += decision.after
            if self._lease is not None:
                self._leave(release=True)
        return self._lived()

    def require_storage(self) -> None:
        if self._away.at(self.now):
            raise TimeoutError("storage is away")

    # ------------------------------------------------------------------ drivers

    def _take_over(self) -> None:
        """A driver asks for the lease until it gets it: at once, or when the one of a dead driver has expired."""
        while self._lease is None:
            try:
                self._lease = lease.acquire(self._store, seconds=LEASE_SECONDS, clock=lambda: self.now)
            except (UserError, TimeoutError):
                self.now += 5.0  # whoever starts drivers tries again
        self._drivers += 1

    def _leave(self, release: bool) -> None:
        assert self._lease is not None
        self._lease.close(release=release)
        self._lease = None

    def _renew_until(self, moment: float) -> bool:
        """Set the clock to `moment`, the driver renewing its lease, or to when it lost it; whether it still has it.

        Only renewals while storage is away can matter, and one before.
        """
        assert self._lease is not None
        away = self._away.at(self.now) or self._away.after(self.now)
        if away[0] < moment:
            self.now = max(self.now, away[0] - 1.0)
            self._lease.renew()
            while self.now < min(moment, away[1]) and not self._lease.lost.is_set():
                self.now += lease.RENEW_EVERY * LEASE_SECONDS
                self._lease.renew()
        if not self._lease.lost.is_set():
            self.now = moment
        return not self._lease.lost.is_set()

    # ------------------------------------------------------------------ one attempt

    def _attempt(self) -> Failure | None:
        """From the claim to the end of the gang; None when its driver ended, or the months did."""
        assert self._lease is not None
        world = self.world
        try:
            self._lease.fence()
        except (LeaseLost, TimeoutError):
            self._leave(release=False)
            self.now += 1.0
            return None
        number = len(self._left.claims) + 1
        self._left.claims.append({"attempt": number, "started": self.now, "token": self._lease.token})
        asked, granted = self.now, self.now + (self._draw.expovariate(1 / world.machine) if number > 1 else 0.0)
        gang: dict[str, Any] = {"asked": asked, "granted": granted, "attempt": number, "ended": None, "kind": None}
        self._left.gangs.append(gang)
        slower = world.slow_factor - 1 if self._slow.at(granted) else 0.0
        ready = granted + world.restart + self.policy.restart + slower * world.restore
        what = self._what_happens()
        until = self.now
        if until > granted:
            failures, hours = self._session.after() if self._left.sessions else (0, 0.0)
            self._session = Session(
                begun=granted,
                hosts=world.hosts,
                failures=failures,
                host_hours=hours,
                discarded_seconds=self._cut_back(),
            )
            ended, first = self._train(what, ready, until)
        else:
            # Before the machines were there: no trainer has begun.
            gang["granted"], ended, first = None, until, RankExit(-15, "stopped")
        verdict = classify([first, RankExit(-15, "stopped")])
        if until > granted:
            said: Any = verdict if verdict in ("preempted", "stalled") and what != "driver" else None
            reached = ready if until > ready else None
            self._session = dataclasses.replace(self._session, ready=reached, written=ended, ended=said)
            self._left.sessions.append(dataclasses.asdict(self._session))
        self.now = max(self.now, ended)
        if what == "driver":
            # Nobody is left to write how the gang ended.
            self._leave(release=False)
            self.now += world.driver
            return None
        gang |= {"ended": self.now, "kind": verdict}
        if what == "over":
            return None
        if self._lease.lost.is_set():
            self._leave(release=False)
            return None
        assert verdict != "done"
        return Failure(verdict, what, self._durable or None)

    def _cut_back(self) -> float:
        """Forget the steps after the newest durable checkpoint; their seconds."""
        lost = 0.0
        while self._left.steps and self._left.steps[-1]["step"] > self._durable:
            lost += self._left.steps.pop()["seconds"]
        return lost

    def _what_happens(self) -> str:
        """The next event, with the clock at its moment; until then the driver keeps its lease, or loses it."""
        for arrivals in (self._failures, self._preemptions, self._driver_deaths):
            arrivals.passed(self.now)  # what nothing ran for to be hit
        happens = {
            "failure": self._failures.next,
            "preemption": self._preemptions.next,
            "driver": self._driver_deaths.next,
            "over": self._end,
        }
        what = min(happens, key=lambda name: happens[name])
        return what if self._renew_until(happens[what]) else "lease"

    def _train(self, what: str, ready: float, until: float) -> tuple[float, RankExit]:
        """Steps and saves until something happens: when the gang has ended, and how its first rank did."""
        world = self.world
        steps = self._steps_and_saves(ready, until)
        if what == "failure":
            if self._draw.random() < world.hangs:
                return until + world.stall, RankExit(STALLED, "exited")
            return until + _NOTICED, RankExit(-9, "exited")
        if what in ("preemption", "lease") and until > ready:
            durable = self._durable_seconds(until)
            if world.blocked + durable <= world.notice:
                self._durable = steps
                self._saved(world.blocked)
                return until + world.blocked + durable, RankExit(PREEMPTED, "exited")
            return until + world.notice, RankExit(-9, "exited" if what == "preemption" else "stopped")
        return until, RankExit(-15, "stopped")

    def _steps_and_saves(self, ready: float, until: float) -> int:
        """Train from `ready` to `until`; the steps that are done then."""
        step, moment, steps = self.world.step, ready, self._durable
        began, pending = ready, None
        recorded, since, held = steps, 0.0, 0.0  # of the steps since the last record: their seconds, those of saves
        while moment + step <= until:
            ahead = steps_to_wait(self._next_interval(moment) - (moment - began), step)
            if ahead > 0 or steps == recorded:
                taken = min(max(1, ahead), int((until - moment) / step))
                steps, moment, since = steps + taken, moment + taken * step, since + taken * step
                continue
            # One save waits for the one before it.
            waits = max(0.0, pending[1] - moment) if pending else 0.0
            durable = self._durable_seconds(moment + waits)
            blocked = waits + self.world.blocked + (durable if self.policy.blocking else 0.0)
            slowed = 0.0 if self.policy.blocking else self.world.slowdown * durable
            if moment + blocked + slowed > until:
                moment = until
                break
            if pending is not None:
                self._durable = pending[0]
            began, moment, held = moment + waits, moment + blocked + slowed, held + blocked + slowed
            self._left.steps.append({"step": steps, "time": moment, "seconds": since + held, "save": held})
            recorded, since, held = steps, 0.0, 0.0
            pending = (steps, moment if self.policy.blocking else began + durable)
            cost = save_cost([step + blocked + slowed], [step], blocked)
            self._costs = [*self._costs[1 - REMEMBERED_SAVES :], cost]
            self._session = dataclasses.replace(self._session, save_seconds=durable)
            self._saved(blocked)
        if steps > recorded:
            self._left.steps.append({"step": steps, "time": moment, "seconds": since + held, "save": held})
        if pending is not None and pending[1] <= until:
            self._durable = pending[0]
        return steps

    def _next_interval(self, moment: float) -> float:
        if self.policy.save != "auto":
            return self.policy.save
        session = self._session
        hours = session.host_hours + (moment - session.begun) / HOUR * session.hosts
        seconds = automatic_interval(
            self._costs, session.failures, hours, session.hosts,
            _OPTIONS.save_seconds_least, _OPTIONS.save_seconds_most, session.save_seconds or 0.0,
        )  # fmt: skip
        self._interval = seconds
        return seconds

    def _durable_seconds(self, moment: float) -> float:
        """From a save's begin until it counts, as storage is at that moment."""
        seconds = self.world.durable * (0.8 + 0.4 * self._draw.random())
        if self._slow.at(moment):
            seconds *= self.world.slow_factor
        if span := self._away.at(moment):
            seconds += span[1] - moment
        return seconds

    def _saved(self, blocked: float) -> None:
        session = self._session
        self._session = dataclasses.replace(
            session, saves=session.saves + 1, save_blocked_seconds=session.save_blocked_seconds + blocked
        )

    # ------------------------------------------------------------------ the account

    def _lived(self) -> Lived:
        left = self._left
        # A pause at the very end belongs to no attempt.
        wall = left.gangs[-1]["ended"] or self.now
        goodput = account(History(left.steps, left.sessions, left.gangs, left.claims), finished=wall)
        trained = sum(step["seconds"] - step["save"] for step in left.steps)
        return Lived(goodput, trained, wall, len(left.claims), self._drivers, self._given_up, self._interval)
