"""sessions/NNNN.json: what each life of the trainer did with its time, one small file for each, for people to look at.

Written by the first process alone, by a thread that never makes training wait: at the start, when training can begin,
after each save, every ten seconds, at the end. A session that died says so by having no end. Nothing decides by these
files what to run; the save interval is chosen with the failures that they count.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Literal, Self

from ringworld.data.files import join, list_folder, read_json, write_whole
from ringworld.errors import UserError
from ringworld.strict import from_mapping

WRITE_SECONDS = 10.0
LAST_WORDS_SECONDS = 3.0
End = Literal["done", "preempted", "stalled", "user"]


@dataclass(frozen=True)
class Session:
    """One life of the trainer. Times are seconds since the epoch; `_seconds` are sums over the session.

    begun              the process began
    hosts              processes of the job
    written            this file was written
    ready              a state was restored or made, and the first step could begin; None before
    resumed            the step restored; None where it began anew
    damaged            checkpoints that were found damaged and passed over
    discarded_steps    steps, and their seconds, that an earlier session trained beyond `resumed`: trained again
    compile_seconds    of the compilation of steps
    data_wait_seconds  waited for batches
    saves, save_blocked_seconds, save_seconds
                       saves begun; the loop stood still for them; the last one took from its begin until it was durable
    interval_seconds   between saves, now; None where they go by steps alone
    step               the last one finished
    ended              done | preempted | stalled | user (who must repair something); None while it runs, or it died
    failures, host_hours
                       seen by the sessions before this one, all together
    """

    begun: float
    hosts: int
    written: float = 0.0
    ready: float | None = None
    resumed: int | None = None
    damaged: tuple[int, ...] = ()
    discarded_steps: int = 0
    discarded_seconds: float = 0.0
    compile_seconds: float = 0.0
    data_wait_seconds: float = 0.0
    saves: int = 0
    save_blocked_seconds: float = 0.0
    save_seconds: float | None = None
    interval_seconds: float | None = None
    step: int = 0
    ended: End | None = None
    failures: int = 0
    host_hours: float = 0.0

    def after(self) -> tuple[int, float]:
        """(failures, host_hours) up to the end of this session, once another has begun. A session that ended without a
        word, or stalled, is a failure; one that was told to leave had saved."""
        hours = max(0.0, self.written - self.begun) / 3600 * self.hosts
        return self.failures + (self.ended in (None, "stalled")), self.host_hours + hours


class SessionLog:
    """Keeps the session's account, and its file up to date while it is entered.

    Every process has one; where `writes` is false nothing is read or written.
    """

    def __init__(self, state_dir: str, begun: float, hosts: int, writes: bool) -> None:
        self.session = Session(begun=round(begun, 3), hosts=hosts)
        self._folder = join(state_dir, "sessions") if writes else ""
        self._place = ""
        self._write_now, self._over = threading.Event(), False
        self._writing = threading.Lock()  # an older account never replaces a newer one
        self._thread = threading.Thread(target=self._keep, name="session", daemon=True)

    def __enter__(self) -> Self:
        if self._folder:
            number, newest = _newest(self._folder)
            failures, hours = newest.after() if newest else (0, 0.0)
            self.session = replace(self.session, failures=failures, host_hours=round(hours, 6))
            self._place = join(self._folder, f"{number + 1:04d}.json")
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, UserError):
            self.ended("user")
        self._over = True
        self._write_now.set()
        if self._place:
            self._thread.join()

    def ready(self, resumed: int | None, damaged: tuple[int, ...], discarded: list[float]) -> None:
        """Training can begin. discarded: the seconds of each step that must be trained again."""
        self.session = replace(
            self.session,
            ready=round(time.time(), 3),
            resumed=resumed,
            damaged=damaged,
            step=resumed or 0,
            discarded_steps=len(discarded),
            discarded_seconds=round(sum(discarded), 4),
        )
        self._write_now.set()

    def compiled(self, seconds: float) -> None:
        self.session = replace(self.session, compile_seconds=round(self.session.compile_seconds + seconds, 4))

    def stepped(self, step: int, waited: float) -> None:
        """A step was dispatched, after `waited` seconds for its batch."""
        total = round(self.session.data_wait_seconds + waited, 4)
        self.session = replace(self.session, step=step, data_wait_seconds=total)

    def saved(self, blocked: float) -> None:
        """A save was begun; the loop stood still for `blocked` seconds."""
        total = round(self.session.save_blocked_seconds + blocked, 4)
        self.session = replace(self.session, saves=self.session.saves + 1, save_blocked_seconds=total)
        self._write_now.set()

    def durable(self, seconds: float) -> None:
        """A save can be restored, `seconds` after its begin."""
        self.session = replace(self.session, save_seconds=round(seconds, 4))

    def interval(self, seconds: float) -> None:
        self.session = replace(self.session, interval_seconds=round(seconds, 3))

    def ended(self, how: End) -> None:
        self.session = replace(self.session, ended=how)

    def stalled(self) -> None:
        """The process is about to be ended: say so, unless storage is what it waits for."""
        self.ended("stalled")
        if self._place:
            words = threading.Thread(target=self._write, name="last words", daemon=True)
            words.start()
            words.join(LAST_WORDS_SECONDS)

    def _write(self) -> None:
        with self._writing:
            account = asdict(replace(self.session, written=round(time.time(), 3)))
            try:
                write_whole(self._place, (json.dumps(account, indent=1) + "\n").encode())
            except Exception as error:  # whatever a client of storage raises: it may cost this file, never the training
                print(f"warning: {self._place} was not written: {error}", file=sys.stderr, flush=True)

    def _keep(self) -> None:
        while not self._over:
            self._write_now.clear()
            self._write()
            self._write_now.wait(WRITE_SECONDS)
        self._write()


def _newest(folder: str) -> tuple[int, Session | None]:
    """The number of the newest session, 0 where there is none, and the newest that can be read, if any."""
    numbers = sorted(
        (int(name[:-5]) for name in list_folder(folder) if re.fullmatch(r"[0-9]+\.json", name)), reverse=True
    )
    for number in numbers:
        try:
            return numbers[0], from_mapping(Session, read_json(join(folder, f"{number:04d}.json")), at="session")
        except UserError as error:  # cut short by the death of its writer
            print(f"warning: session {number}: {error}; what it counted is lost", file=sys.stderr, flush=True)
    return max(numbers, default=0), None
