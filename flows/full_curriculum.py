"""The whole curriculum, from raw documents to the longest context, as one resumable graph of stages.

    python flows/full_curriculum.py curriculum=tiny placement=local
    python flows/full_curriculum.py curriculum=lwm_7b placement=v4_512 root=gs://bucket/runs only=text-256k
    ray job submit --working-dir . -- python flows/full_curriculum.py root=/shared/runs

Running the same command again resumes: finished stages are reused, a stage that died goes on at its last checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

# Run as a file, Python looks for imports beside it. A submitted job brings the house along, but does not install it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flows.arguments import HELP, Flow, parse
from flows.views import Views
from infra import runner
from infra.console import Console, print_plan
from infra.errors import LeaseLost, UserError
from infra.metrics import Metrics
from infra.observer import Observers
from infra.plan import Plan, plan, survey
from infra.redact import redact_text
from infra.storage import Store
from ringworld import errors
from stages.graph import build


def main(words: Sequence[str]) -> int:
    """Run the flow; 0: all done, 1: a stage failed, 2: it cannot work as given, 130: interrupted."""
    if {"-h", "--help", "help"} & set(words):
        print(HELP, end="")
        return 0
    try:
        return run(parse(words))
    except (UserError, errors.UserError, LeaseLost) as error:
        print(f"error: {redact_text(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command resumes", file=sys.stderr)
        return 130


def run(flow: Flow) -> int:
    """Plan, and unless it is a dry run: lease, run, track, report."""
    chosen = flow.arguments
    stages = build(flow.curriculum, flow.site)
    store = Store(chosen.root, chosen.run_name)
    todo = plan(stages, survey(stages, store), only=chosen.only, start=chosen.start, force=chosen.force)
    if chosen.dry_run:
        print_plan(todo)
        return 0
    todo.require_possible()
    watching = Views(store, stages, chosen.curriculum, flow.words)
    # In this order: Ray puts a handler of SIGTERM in our place when it starts, one that aborts the process.
    with cluster(todo, flow) as gangs, stop_on_term() as stop, watching as views:
        meters = metrics(store.run, views, gangs)
        with Console() as console:
            outcome = runner.run(
                stages,
                store,
                gangs=gangs,
                only=chosen.only,
                start=chosen.start,
                force=chosen.force,
                observer=Observers(console, views, *meters),
                stop=stop,
                user_errors=(errors.UserError,),
            )
        print(views.finish(), flush=True)
    return 0 if outcome.ok else 1


@contextlib.contextmanager
def cluster(todo: Plan, flow: Flow) -> Iterator[object]:
    """Ray, and the factory of gangs on it; neither when there is nothing to do, so that a rerun takes a second."""
    if not any(step.due for step in todo.steps):
        yield None
        return
    from actors.gang import Gangs
    from actors.local import start_ray

    # By name only: a gang of two hosts also runs on a machine of one core.
    with start_ray(num_cpus=max(os.cpu_count() or 1, flow.site.most_hosts)):
        yield Gangs()


def metrics(run_name: str, views: Views, gangs: object) -> list[Metrics]:
    """The run's figures for Prometheus, which every node of Ray serves; none where no Ray runs."""
    if gangs is None:
        return []
    import ray.util.metrics

    made = Metrics(run_name, ray.util.metrics)
    views.tell_goodput(made.on_goodput)
    return [made]


@contextlib.contextmanager
def stop_on_term() -> Iterator[threading.Event]:
    """An event that SIGTERM sets: how `ray job stop` and a preempted head node ask."""
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
