"""A set of hosts that live and die together, running one trainer as one rank per host.

- `run` goes through four phases: machines are reserved (all or none), every host answers, all ranks start, all are
  watched. No trainer starts before every host has answered, because JAX's own start-up does not wait for slow ones.
- One failure condemns the gang at once: a rank that fails, a host that dies, a rank that gives no sign of life. The
  others are stopped (TERM, time to save, KILL), and one verdict is passed on all of them (`infra.verdict`).
- `stop` is heard in every phase, within a second.
- Nothing is left behind: leaving the `with` block ends every process and gives the machines back. A gang whose hosts
  are whole may run again on the same machines; one that lost a host reserves anew.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.gang_run import LOOK_SECONDS, SILENT_SECONDS, GangView, Rank, Run, first_line
from actors.host import HostActor, tail
from actors.ranks import HostInfo, coordination, rank_order
from actors.reservation import Request, Turns, reserve
from actors.tpu_slice import multislice_variables
from infra.placement import Placement
from infra.verdict import DONE, PREEMPTED, STALLED, USER_ERROR, RankExit, Verdict, classify

GRACE_SECONDS = 6.0
# The siblings of a failed rank wait in a collective that will never end: they have nothing to save.
_CONDEMNED_GRACE_SECONDS = 1.0
# A reserved host that does not answer at all for so long is broken: its machine, its network or its Python.
_ANSWER_SECONDS = 120.0
_TAIL_LINES = 40
_LOG_BYTES = 2**20
_LOG_SECONDS = 5.0


@dataclass(frozen=True)
class GangExit:
    """How a gang ended.

    codes: exit code per rank, negative for a signal, None when unknown; empty when no rank was started.
    kind: the verdict on the gang as a whole.
    message: what happened first, in a sentence that names the rank and its host.
    log_tail: the last lines of the log of that rank; empty for a gang that is done.
    logs: file name -> the end of each rank's log that could be had, where `run` was asked for them.
    """

    codes: tuple[int | None, ...]
    kind: Verdict
    message: str
    log_tail: str = ""
    logs: Mapping[str, bytes] = field(default_factory=dict)


class Gang:
    """The hosts of one placement. A context manager; machines are asked for by the first `run`."""

    def __init__(self, placement: Placement, name: str, turns: Turns | None = None) -> None:
        """turns: the queue in which it waits for machines; None for a gang that has no others beside it."""
        self._placement, self._name, self._turns = placement, name, turns or Turns()
        self._request: Request | None = None
        self._granted = placement
        self._ranks: list[Rank] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def run(
        self,
        argv: Sequence[str],
        *,
        log_dir: str,
        stop: threading.Event,
        on_poll: Callable[[GangView], None] | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        grace_seconds: float = GRACE_SECONDS,
        stall_seconds: float | None = None,
        bring_logs: bool = False,
    ) -> GangExit:
        """Runs `python *argv` on every host until all have ended, and judges them.

        Gangs of more than one host append `--coordinator HOST:PORT --num-processes N --process-id I`.

        argv: what follows the interpreter; paths in it are absolute, since `cwd` is a folder of the host.
        log_dir: a local folder on every host, for `trainer-{rank}.log`; made when missing.
        stop: set by anybody, ends the gang within `grace_seconds` and 3 more.
        on_poll: called about every half second, every second while waiting for machines. What it raises ends the gang
            and passes through.
        cwd: None for the folder that holds this code.
        env: variables over those of the placement.
        grace_seconds: for ranks to save after TERM, when asked to stop or when one of them was preempted.
        stall_seconds: a rank that has not touched its RINGWORLD_HEARTBEAT file for so long is stalled (every command
            line of the library touches it from its first moment). None: trust the trainer's own watchdog, which a
            frozen process does not have.
        bring_logs: fetch the ranks' logs at the end, for a `log_dir` that nobody else can see.

        Raises UserError for machines that the cluster cannot have; ValueError for a log_dir that is a URL.
        """
        run = Run(stop, on_poll or _ignore, time.monotonic())
        if "://" in log_dir:
            raise ValueError(f"log_dir={log_dir!r}: trainers write their logs to a local folder of their host")
        try:
            if not self._ranks and (failed := self._gather(run)) is not None:
                return failed
            variables = {**self._placement.env, **(env or {})}
            self._start(run, argv, log_dir, cwd, variables)
            self._watch(run, grace_seconds, stall_seconds)
            ended = self._judge(run, log_dir)
            if bring_logs:
                ended = replace(ended, logs=self._logs(log_dir))
        except BaseException:
            self.release()
            raise
        if any(rank.exit is not None and rank.exit.cause == "lost" for rank in self._ranks):
            self.release()
        return ended

    def release(self) -> None:
        """Ends every process of the gang and gives its machines back. Takes at most the usual grace and 5 seconds."""
        ranks, self._ranks = self._ranks, []
        request, self._request = self._request, None
        try:
            if ranks:
                stopping = [rank.actor.stop.remote(GRACE_SECONDS) for rank in ranks]
                ray.wait(stopping, num_returns=len(stopping), timeout=GRACE_SECONDS + 4)
        finally:
            # Whatever did not answer is ended by its warden as soon as its actor is gone.
            for rank in ranks:
                ray.kill(rank.actor)
            if request is not None:
                request.release()

    def _gather(self, run: Run) -> GangExit | None:
        """Reserves the machines and waits for every host; the exit if that ends here, None when the ranks are ready."""
        reserved = reserve(self._placement, self._name, self._turns, run.stop, lambda note: run.look("waiting", note))
        if reserved is None:
            return GangExit((), "preempted", f"{self._name} was stopped while waiting for {self._placement.request()}")
        group, self._request, placement = reserved.group, reserved.request, reserved.placement
        self._granted = placement
        hosts = [
            HostActor.options(
                name=None,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
                **_actor_resources(placement.resources),
            ).remote(placement.kind)
            for index in range(placement.hosts)
        ]
        # Known from here on, so that any way out ends them.
        self._ranks = [Rank(index, actor, HostInfo("?", "?", 0)) for index, actor in enumerate(hosts)]
        answers = {actor.describe.remote(): index for index, actor in enumerate(hosts)}
        infos: dict[int, HostInfo] = {}
        failure = ""
        deadline = time.monotonic() + _ANSWER_SECONDS
        while answers and not failure and not run.stop.is_set():
            for answer in ray.wait(list(answers), num_returns=len(answers), timeout=LOOK_SECONDS)[0]:
                try:
                    index = answers.pop(answer)
                    infos[index] = ray.get(answer)
                except RayError as error:
                    failure = f"host {index} of {len(hosts)} died before it answered: {first_line(error)}"
            fewer = f", {len(hosts)} instead of {self._placement.hosts}" if len(hosts) < self._placement.hosts else ""
            run.look("starting", f"{len(infos)} of {len(hosts)} hosts have answered{fewer}")
            if answers and time.monotonic() > deadline:
                failure = f"{len(answers)} of {len(hosts)} hosts did not answer within {_ANSWER_SECONDS:.0f} s"
        if failure or answers:
            self.release()
            stopped = f"{self._name} was stopped while its hosts started"
            return GangExit((), "crashed", failure) if failure else GangExit((), "preempted", stopped)
        order = rank_order([infos[index] for index in range(len(hosts))])
        self._ranks = [Rank(rank, hosts[index], infos[index]) for rank, index in enumerate(order)]
        return None

    def _start(self, run: Run, argv: Sequence[str], log_dir: str, cwd: str | None, env: Mapping[str, str]) -> None:
        """Starts all ranks at once. A rank that cannot start counts as lost."""
        first, count, slices = self._ranks[0], len(self._ranks), self._granted.slices
        coordinator = ""
        for rank in self._ranks:
            rank.exit = rank.order = rank.status = None
        if count > 1:
            try:
                coordinator = f"{first.info.address}:{ray.get(first.actor.free_port.remote(), timeout=SILENT_SECONDS)}"
            except RayError as error:
                run.lose(first, f"found no port for the coordinator: {first_line(error)}")
                return
        starts = {}
        for rank in self._ranks:
            slice_id = rank.index * slices // count
            variables = {**env, **multislice_variables(first.info.address, slices, slice_id)}
            arguments = [*argv, *coordination(rank.index, count, coordinator)]
            starts[rank.actor.start.remote(arguments, variables, cwd, _log_path(log_dir, rank))] = rank
        for started, rank in starts.items():
            try:
                ray.get(started, timeout=SILENT_SECONDS)
            except RayError as error:
                run.lose(rank, f"could not start its trainer: {first_line(error)}")
            rank.answered = time.monotonic()

    def _watch(self, run: Run, grace_seconds: float, stall_seconds: float | None) -> None:
        """Returns when every rank has ended, by itself or by us."""
        polls: dict[Any, Rank] = {}
        while (running := [rank for rank in self._ranks if rank.exit is None]) and not run.condemned:
            asked = {rank.index for rank in polls.values()}
            # The host answers as soon as its trainer ends, so a failure is known here in milliseconds.
            polls |= {rank.actor.poll.remote(LOOK_SECONDS): rank for rank in running if rank.index not in asked}
            ready, _ = ray.wait(list(polls), num_returns=1, timeout=LOOK_SECONDS)
            if ready:  # siblings that ended in the same moment are part of the same event
                ready, _ = ray.wait(list(polls), num_returns=len(polls), timeout=0.02)
            for poll in ready:
                run.note(polls.pop(poll), poll)
            for rank in running:
                run.check_alive(rank, stall_seconds)
            if run.stop.is_set():
                run.condemned = run.condemned or "it was asked to stop"
            ages = [rank.status.heartbeat_age for rank in running if rank.status is not None]
            known = [age for age in ages if age is not None]
            run.look("running", f"{len(running)} of {len(self._ranks)} ranks", max(known, default=None))
        self._stop(run, grace_seconds)

    def _stop(self, run: Run, grace_seconds: float) -> None:
        """Ends what runs, and sweeps the hosts whose trainers have ended by themselves."""
        own_end = {rank.exit.code for rank in self._ranks if rank.exit is not None}
        patient = own_end <= {DONE, PREEMPTED}
        grace = grace_seconds if patient else min(grace_seconds, _CONDEMNED_GRACE_SECONDS)
        reached = [rank for rank in self._ranks if rank.exit is None or rank.exit.cause != "lost"]
        # Grace is for those that still run; a rank found hung would only let it pass.
        stops = {rank.actor.stop.remote(grace if rank.exit is None else 0.0): rank for rank in reached}
        deadline = time.monotonic() + grace + 5
        while stops and time.monotonic() < deadline:
            for stopped in ray.wait(list(stops), num_returns=len(stops), timeout=LOOK_SECONDS)[0]:
                rank = stops.pop(stopped)
                try:
                    code = ray.get(stopped)
                except RayError as error:
                    run.lose(rank, f"died while it was stopped: {first_line(error)}")
                    continue
                if rank.exit is None:
                    rank.exit = RankExit(code, "stopped")
                elif rank.exit.cause == "stalled":
                    rank.exit = RankExit(code, "stalled")
            if stops:
                run.look("stopping", run.condemned or "the trainers have ended")
        for rank in stops.values():
            run.lose(rank, f"did not answer within {grace + 5:.0f} s of being stopped")

    def _judge(self, run: Run, log_dir: str) -> GangExit:
        exits = [rank.exit or RankExit(None, "lost") for rank in self._ranks]
        kind, codes = classify(exits), tuple(end.code for end in exits)
        if kind == "done":
            return GangExit(codes, kind, f"{self._name}: every rank is done")
        telling = {"user": USER_ERROR, "stalled": STALLED, "preempted": PREEMPTED}.get(kind)
        # The rank whose code gave the verdict, else the one that ended first; nobody ended first when all were stopped.
        own = [
            rank
            for rank in self._ranks
            if rank.exit is not None and rank.exit.cause != "stopped" and rank.exit.code != 0
        ]
        own.sort(key=lambda rank: (rank.exit is not None and rank.exit.code != telling, rank.order))
        if not own:
            return GangExit(
                codes, kind, f"{self._name} was stopped: {run.condemned}", self._tail(self._ranks[0], log_dir)
            )
        return GangExit(codes, kind, f"{self._name}: {self._sentence(own[0], run)}", self._tail(own[0], log_dir))

    def _sentence(self, rank: Rank, run: Run) -> str:
        who = f"rank {rank.index} of {len(self._ranks)} on {rank.info.address}"
        if rank.index in run.reasons:
            return f"{who} {run.reasons[rank.index]}"
        code = rank.exit.code if rank.exit is not None else None
        if code is not None and code < 0:
            return f"{who} was killed by signal {-code} ({signal.Signals(-code).name})"
        return f"{who} exited with code {code}"

    def _logs(self, log_dir: str) -> dict[str, bytes]:
        """By file name, of the hosts that answer."""
        asked = {rank.actor.log.remote(_LOG_BYTES): rank for rank in self._ranks}
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_LOG_SECONDS)
        found: dict[str, bytes] = {}
        for answer in answered:
            with contextlib.suppress(RayError):  # its host is gone, and its log with it
                found[Path(_log_path(log_dir, asked[answer])).name] = ray.get(answer)
        return found

    def _tail(self, rank: Rank, log_dir: str) -> str:
        if rank.exit is not None and rank.exit.cause != "lost":
            try:
                return ray.get(rank.actor.tail.remote(_TAIL_LINES), timeout=5)
            except RayError:
                pass  # the verdict stands without its log, and the file may be within reach
        # A host that died took its actor along, but on one machine, or a shared disk, its log is here.
        return tail(Path(_log_path(log_dir, rank)), _TAIL_LINES)


class Gangs:
    """The factory that a flow hands to its stages as `context.gangs`; its gangs get machines in the order they ask."""

    def __init__(self) -> None:
        self._turns = Turns()

    def __call__(self, placement: Placement, name: str) -> Gang:
        return Gang(placement, name, self._turns)


def _actor_resources(resources: Mapping[str, float]) -> dict[str, Any]:
    """Per-host resources as options of a Ray actor, which names three of them apart."""
    custom = {name: size for name, size in resources.items() if name not in ("CPU", "GPU", "memory")}
    options: dict[str, Any] = {"num_cpus": resources.get("CPU", 0), "num_gpus": resources.get("GPU", 0)}
    if "memory" in resources:
        options["memory"] = resources["memory"]
    return {**options, "resources": custom}


def _log_path(log_dir: str, rank: Rank) -> str:
    return f"{log_dir}/trainer-{rank.index}.log"


def _ignore(_: GangView) -> None:
    pass
