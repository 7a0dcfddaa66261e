"""Carry out a plan: a thread for each stage that is ready, attempts with retries, and a manifest at the end of each.

- The driver holds the run's lease throughout and keeps nothing that storage does not know: killing it at any moment
  loses nothing committed, and the same command goes on from what is there.
- A stage becomes visible only by `manifest.commit`, after the fence. What a dead attempt left behind is never looked
  at, except the state series of the same identity, which the next attempt resumes.
- Stopping (Ctrl-C, the caller's event, a lost lease) is one event that every context sees. An attempt that ends after
  it commits nothing, whatever it returned: a run function may have returned early because of it.
- When a stage fails for good, what depends on it does not start; everything else goes on.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from infra import manifest as manifests
from infra.errors import LeaseLost, UserError
from infra.lease import Lease, acquire
from infra.manifest import InputRef, Manifest
from infra.observer import Observer, Observers
from infra.plan import Plan, Step, plan, survey
from infra.provenance import provenance
from infra.redact import redact_text
from infra.retries import Failure, Stop, decide
from infra.stage import Artifact, Result, Stage, StageContext, StageFailure, canonical
from infra.storage import Store

JOIN_SECONDS = 10.0
"""How long stages have to end after a stop."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    artifacts: of every stage that is finished, reused ones included. failures: the last one of each stage that failed
    for good. unfinished: stages that were due and have neither, as the run was stopped or an input failed.
    """

    plan: Plan
    artifacts: Mapping[str, Artifact]
    failures: Mapping[str, Failure]
    unfinished: tuple[str, ...]
    stopped: bool

    @property
    def ok(self) -> bool:
        return not self.failures and not self.unfinished


def run(
    stages: Iterable[Stage],
    store: Store,
    *,
    gangs: Any = None,
    only: str | None = None,
    start: str | None = None,
    force: str | None = None,
    observer: Observer | None = None,
    stop: threading.Event | None = None,
    user_errors: tuple[type[Exception], ...] = (),
    limit: int = 3,
    first_wait: float = 1.0,
    lease_seconds: float = 60.0,
) -> Outcome:
    """Make the stages and all they depend on, as far as they are not made yet.

    gangs: handed to every context as it is. only, start, force: see `infra.plan.plan`. stop: set it to end the run; it
    is set here on Ctrl-C and lease loss. user_errors: exceptions, besides infra's UserError, that are never retried.
    limit, first_wait: see `infra.retries.decide`. lease_seconds: see `infra.lease.acquire`.

    Raises UserError before any work for drift, blocked stages, unknown names or another driver's lease; LeaseLost when
    the lease was lost; KeyboardInterrupt, once the stages have ended, after Ctrl-C (at once after a second one).
    """
    halt = stop if stop is not None else threading.Event()
    watch = Observers(*([observer] if observer is not None else []))
    ordered = tuple(stages)
    # A wrong name is an error before anything is written, even the lease.
    plan(ordered, {}, only=only, start=start, force=force)
    lease = acquire(store, seconds=lease_seconds, on_loss=lambda reason: halt.set())
    works: dict[str, _Work] = {}
    try:
        decided = plan(ordered, survey(ordered, store), only=only, start=start, force=force)
        decided.require_possible()
        watch.on_plan(decided)
        driver = _Driver(store, lease, halt, gangs, watch, (UserError, *user_errors), limit, first_wait)
        interrupted = _schedule(decided, driver, works)
    finally:
        # A stage that would not end may still write: then only this process's end, or time, frees the lease.
        lease.close(release=not any(work.thread.is_alive() for work in works.values()))
    if lease.lost.is_set():
        raise LeaseLost(f"run {store.run!r} was stopped, its lease is lost: {lease.loss}. Nothing was committed since")
    if interrupted:
        raise KeyboardInterrupt
    artifacts = {step.stage.name: _reused(store, step) for step in decided.steps if step.action == "reuse"}
    artifacts |= {name: work.ending for name, work in works.items() if isinstance(work.ending, Artifact)}
    failures = {name: work.ending for name, work in works.items() if isinstance(work.ending, Failure)}
    names = [step.stage.name for step in decided.steps if step.due]
    unfinished = tuple(name for name in names if name not in artifacts and name not in failures)
    return Outcome(decided, artifacts, failures, unfinished, stopped=halt.is_set())


@dataclass(frozen=True)
class _Driver:
    """What every stage of this run shares."""

    store: Store
    lease: Lease
    halt: threading.Event
    gangs: Any
    watch: Observers
    user_errors: tuple[type[Exception], ...]
    limit: int
    first_wait: float


class _Work:
    """A stage being made in a thread of its own. ending: None until it has ended, and when it was stopped."""

    def __init__(self, driver: _Driver, step: Step, inputs: Mapping[str, Artifact], wake: threading.Event) -> None:
        self.ending: Artifact | Failure | None = None

        def work() -> None:
            try:
                self.ending = _make(driver, step, inputs)
            finally:
                wake.set()

        # A daemon, so that one that ignores the stop cannot keep the process.
        self.thread = threading.Thread(target=work, name=step.stage.name, daemon=True)


def _schedule(decided: Plan, driver: _Driver, works: dict[str, _Work]) -> bool:
    """Start each due stage when its inputs are there, and wait for all. Fills `works`; True when Ctrl-C was pressed."""
    ready: dict[str, Artifact] = {}
    due: dict[str, Step] = {}
    for step in decided.steps:
        if step.due:
            due[step.stage.name] = step
            driver.watch.on_state(step.stage, "waiting", step.reason)
        elif step.action == "reuse":
            ready[step.stage.name] = _reused(driver.store, step)
            driver.watch.on_state(step.stage, "reused", step.reason)
    wake = threading.Event()
    interrupted, deadline = False, None
    while True:
        try:
            # Seen before the endings are read, so that one which comes in between is read the next time round.
            idle = not any(work.thread.is_alive() for work in works.values())
            for name, work in works.items():
                if isinstance(work.ending, Artifact):
                    ready[name] = work.ending
                elif isinstance(work.ending, Failure):
                    _block_below(name, due, works, driver)
            if not driver.halt.is_set():
                for name, step in list(due.items()):
                    if name not in works and all(parent.name in ready for parent in step.stage.inputs.values()):
                        inputs = {port: ready[parent.name] for port, parent in step.stage.inputs.items()}
                        works[name] = _Work(driver, step, inputs, wake)
                        works[name].thread.start()
                        idle = False
            elif deadline is None:
                deadline = time.monotonic() + JOIN_SECONDS
            if idle:
                break
            if deadline is not None and time.monotonic() > deadline:
                alive = [name for name, work in works.items() if work.thread.is_alive()]
                _LOG.error("%s did not end within %.0f s of the stop: left behind", ", ".join(alive), JOIN_SECONDS)
                break
            # A thread sets `wake` just before it ends, and others may set `halt`: look again soon in any case.
            wake.wait(0.1)
            wake.clear()
        except KeyboardInterrupt:
            driver.halt.set()
            if interrupted:
                break
            interrupted = True
    for name, step in due.items():
        if name not in works or (works[name].ending is None):
            driver.watch.on_state(step.stage, "stopped", "run the same command again to go on")
    return interrupted


def _block_below(name: str, due: dict[str, Step], works: Mapping[str, _Work], driver: _Driver) -> None:
    """Take everything that depends on a failed stage out of what is due."""
    below = [
        step.stage
        for other, step in due.items()
        if other not in works and any(parent.name == name for parent in step.stage.inputs.values())
    ]
    for stage in below:
        # Two ways may lead to a stage; what was found below the first may hold it already.
        if due.pop(stage.name, None) is not None:
            driver.watch.on_state(stage, "blocked", f"needs {name}, which failed")
            _block_below(stage.name, due, works, driver)


def _make(driver: _Driver, step: Step, inputs: Mapping[str, Artifact]) -> Artifact | Failure | None:
    """Attempts until one is committed (its artifact), one fails for good (its failure), or the run stops (None)."""
    stage, store, series = step.stage, driver.store, step.series
    history: tuple[Failure, ...] = ()
    while not driver.halt.is_set():
        attempt = None
        try:
            driver.lease.fence()
            if series is None:
                series = store.claim_series(stage.name, stage.fingerprint)
            attempt = store.claim_attempt(stage.name, _claim(driver.lease, series))
            return _attempt(driver, step, inputs, series, attempt)
        except BaseException as error:
            # Everything, SystemExit too: nobody stands above this thread to see it.
            if isinstance(error, (LeaseLost, _Stopped)) or driver.halt.is_set():
                driver.halt.set()
                return None
            failure = _without_secrets(_classify(error, driver.user_errors, store.url(stage.name)))
            _keep_error(store, stage.name, attempt, error, failure)
        history = (*history, failure)
        decision = decide(history, driver.limit, driver.first_wait)
        driver.watch.on_failure(stage, failure, decision)
        if isinstance(decision, Stop):
            driver.watch.on_state(stage, "failed", f"{failure.message} ({decision.reason})")
            return failure
        driver.watch.on_state(stage, "retrying", f"in {decision.after:.0f} s: {decision.reason}")
        driver.halt.wait(decision.after)
    return None


def _attempt(driver: _Driver, step: Step, inputs: Mapping[str, Artifact], series: int, attempt: int) -> Artifact:
    """One attempt from its folder to its manifest."""
    stage, store = step.stage, driver.store
    begun = time.time()
    context = StageContext(
        stage=stage,
        inputs=inputs,
        attempt=attempt,
        attempt_dir=store.attempt_url(stage.name, attempt),
        state_dir=store.state_url(stage.name, series),
        gangs=driver.gangs,
        report=lambda **figures: driver.watch.on_report(stage, figures),
        stop=driver.halt,
        fence=driver.lease.fence,
    )
    driver.watch.on_state(stage, "running", f"attempt {attempt}, state series {series}")
    result = stage.run(context, stage.recipe)
    if driver.halt.is_set():
        raise _Stopped
    if not isinstance(result, Result):
        raise TypeError(f"stage {stage.name!r} returned {type(result).__name__}, not a Result")
    manifest = Manifest(
        stage=stage.name,
        kind=stage.recipe.kind,
        code_version=stage.code_version,
        fingerprint=stage.fingerprint,
        recipe=canonical(stage.recipe),
        inputs={port: InputRef(parent.name, parent.fingerprint) for port, parent in stage.inputs.items()},
        files=manifests.describe(store, stage.name, attempt, result.files),
        values=dict(result.values),
        attempt=attempt,
        series=series,
        provenance=provenance(begun, store.attempts_of_series(stage.name, series)),
    )
    driver.lease.fence()
    manifests.commit(store, manifest, replacing=step.replaces)
    driver.watch.on_finished(stage, manifest)
    driver.watch.on_state(stage, "finished", f"{len(manifest.files)} files, {manifest.provenance.seconds:.1f} s")
    return Artifact(manifest, context.attempt_dir)


class _Stopped(Exception):
    """The run was stopped while this attempt was at work."""


def _claim(lease: Lease, series: int) -> dict[str, Any]:
    return {
        "series": series,
        "token": lease.token,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": time.time(),
    }


def _classify(error: BaseException, user_errors: tuple[type[Exception], ...], where: str) -> Failure:
    if isinstance(error, StageFailure):
        return Failure(error.kind, error.message, error.marker, error.log_tail)
    if isinstance(error, user_errors):
        return Failure("user", str(error))
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            place = cause.filename or where
            return Failure(
                "user", f"disk full ({cause.strerror}) at {place}: free some space, then run the same command again"
            )
    trace = "".join(traceback.format_exception(error))
    return Failure("crashed", f"{type(error).__name__}: {error}", None, trace)


def _without_secrets(failure: Failure) -> Failure:
    """Libraries put URLs and headers into their errors."""
    return replace(failure, message=redact_text(failure.message), log_tail=redact_text(failure.log_tail))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, each once."""
    seen: set[int] = set()
    rest = [error]
    while rest:
        cause = rest.pop(0)
        if id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            rest.extend(other for other in (cause.__cause__, cause.__context__) if other is not None)


def _keep_error(store: Store, stage: str, attempt: int | None, error: BaseException, failure: Failure) -> None:
    """Leave the failure beside the attempt's files, for people."""
    if attempt is None:
        return
    text = redact_text("".join(traceback.format_exception(error)))
    tail = f"\n{failure.log_tail}\n" if failure.log_tail and failure.log_tail != text else ""
    try:
        store.write_text(f"{failure.kind}: {failure.message}\n\n{text}{tail}", stage, f"attempt-{attempt}", "error.txt")
    except Exception as wrong:
        # On a full disk there is no room for it either, and silent storage has errors of its own; the failure itself is
        # reported all the same.
        _LOG.warning("could not write error.txt of %s attempt %d: %s", stage, attempt, wrong)


def _reused(store: Store, step: Step) -> Artifact:
    assert step.manifest is not None
    return Artifact(step.manifest, store.attempt_url(step.stage.name, step.manifest.attempt))
