"""Running one of the library's command lines on a gang, and turning how it ended into what the runner understands.

What the driver reads and writes while a gang runs is for people only. A thread of its own does it, so that storage that
is slow or silent neither ends a gang nor keeps its driver from watching it.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import os
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from infra.stage import StageContext, StageFailure
from ringworld.data.files import exists, is_local, join, list_files, list_folder, write_bytes, write_whole

LOOK_SECONDS = 0.5
REMOTE_LOOK_SECONDS = 3.0

_COMMITTED = "commit_success.txt"
_LOG = logging.getLogger(__name__)


def run_module(
    context: StageContext,
    module: str,
    arguments: Sequence[str],
    *,
    watch: Callable[[], None],
    newest_step: Callable[[], int | None] = lambda: None,
) -> None:
    """`python -m MODULE ARGUMENTS --mesh ...` on every host of the stage's placement; returns when all are done.

    watch: reports live figures; called by another thread about twice a second while the trainers run, less often where
    it must ask an object store, and once when all are done. newest_step: the newest durable step, by which the runner
    sees whether attempts advance. Raises StageFailure for any other end than done.
    """
    placement = context.stage.placement
    record, running = GangRecord(context), threading.Event()

    def poll(view: Any) -> None:
        record.see(view.phase)
        if view.phase == "running":
            running.set()
        else:
            running.clear()
            context.report(note=view.note)

    def look() -> None:
        record.write()
        if running.is_set():
            watch()

    with context.gangs(placement, context.stage.name) as gang, _aside(look, context.state_dir):
        ended = gang.run(
            ["-m", module, *arguments, "--mesh", placement.mesh],
            log_dir=_log_folder(context.attempt_dir),
            stop=context.stop,
            on_poll=poll,
            stall_seconds=placement.frozen_seconds,
            bring_logs=not is_local(context.attempt_dir),
        )
    record.end(ended.kind, ended.message, len(ended.codes))
    for keep in (record.write, lambda: _keep_logs(context.attempt_dir, ended.logs)):
        _tolerated(keep)
    if ended.kind != "done":
        raise StageFailure(ended.kind, ended.message, ended.log_tail, newest_step())
    watch()


class GangRecord:
    """`gangs/NNNN.json` of a series: when a gang asked for machines, had them, ran and ended, in seconds since the
    epoch; null for what was not reached. For accounting: nothing decides by it."""

    def __init__(self, context: StageContext) -> None:
        folder = join(context.state_dir, "gangs")
        numbers = [int(found[1]) for name in list_folder(folder) if (found := re.fullmatch(r"(\d+)\.json", name))]
        self._place = join(folder, f"{max(numbers, default=0) + 1:04d}.json")
        self._lock, self._written = threading.Lock(), b""
        self._told: dict[str, Any] = {
            "asked": _now(),
            "granted": None,
            "started": None,
            "ended": None,
            "kind": None,
            "message": "",
            "attempt": context.attempt,
            "hosts": context.stage.placement.hosts,
        }

    def see(self, phase: str) -> None:
        """The phase that the gang is in now."""
        reached = {"starting": ("granted",), "running": ("granted", "started")}.get(phase, ())
        for name in reached:
            if self._told[name] is None:
                self._told[name] = _now()

    def end(self, kind: str, message: str, hosts: int) -> None:
        """hosts: of the ranks that were started; 0 for none."""
        self._told |= {"ended": _now(), "kind": kind, "message": message, "hosts": hosts or self._told["hosts"]}

    def write(self) -> None:
        """Where there is something new."""
        with self._lock:
            data = (json.dumps(self._told, indent=1) + "\n").encode()
            if data != self._written:
                write_whole(self._place, data)
                self._written = data


def newest_checkpoint(state_dir: str) -> int | None:
    """The step of the newest checkpoint in a state folder; None where there is none."""
    folder = join(state_dir, "checkpoints")
    steps = sorted((int(name) for name in list_folder(folder) if name.isdigit()), reverse=True)
    # Orbax renames a whole folder into its place, or, where nothing can be renamed, writes this file last.
    return next((step for step in steps if is_local(folder) or exists(join(folder, str(step), _COMMITTED))), None)


def written(folder: str, *names: str) -> tuple[str, ...]:
    """Paths relative to `folder` of the named files and of all files in named folders; absent ones are left out."""
    return tuple(
        path for path in list_files(folder) if any(path == name or path.startswith(f"{name}/") for name in names)
    )


@contextlib.contextmanager
def _aside(look: Callable[[], None], place: str) -> Iterator[None]:
    """Calls `look` every now and then in a thread, until the end of the block; what it raises is a warning."""
    over, seconds = threading.Event(), LOOK_SECONDS if is_local(place) else REMOTE_LOOK_SECONDS

    def keep_looking() -> None:
        while not over.wait(seconds):
            _tolerated(look)

    thread = threading.Thread(target=keep_looking, name="looking", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(seconds)


def _tolerated(work: Callable[[], None]) -> None:
    """The boundary around what is for people only: clients of storage raise families of their own."""
    try:
        work()
    except Exception as error:
        _LOG.warning("storage: %s: %s", type(error).__name__, error)


def _log_folder(attempt_dir: str) -> str:
    """A local folder, the same on every host, for the trainers' logs: the attempt's own where it is one."""
    if is_local(attempt_dir):
        return attempt_dir
    # Of its own for every gang: another bucket's run may have had the same names.
    name = "-".join([*attempt_dir.split("/")[-3:], secrets.token_hex(4)])
    return os.path.join(tempfile.gettempdir(), f"ringworld-logs-{getpass.getuser()}", name)


def _keep_logs(attempt_dir: str, logs: Mapping[str, bytes]) -> None:
    with ThreadPoolExecutor(max_workers=16) as pool:
        list(pool.map(lambda name: write_bytes(join(attempt_dir, name), logs[name]), logs))


def _now() -> float:
    return round(time.time(), 3)
