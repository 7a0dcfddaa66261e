"""Running one of the library's command lines on a gang, and turning how it ended into what the runner understands."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from infra.stage import StageContext, StageFailure

# Trainers give a sign of life twice a second from a thread of their own, whatever their main thread waits for.
FROZEN_SECONDS = 120.0


def run_module(
    context: StageContext,
    module: str,
    arguments: Sequence[str],
    *,
    watch: Callable[[], None],
    newest_step: Callable[[], int | None] = lambda: None,
) -> None:
    """`python -m MODULE ARGUMENTS --mesh ...` on every host of the stage's placement; returns when all are done.

    watch: called about twice a second while the trainers run, to report live figures. newest_step: the newest durable
    step, by which the runner sees whether attempts advance. Raises StageFailure for any other end than done.
    """
    placement = context.stage.placement

    def poll(view) -> None:
        if view.phase == "running":
            watch()
        else:
            context.report(note=view.note)

    with context.gangs(placement, context.stage.name) as gang:
        ended = gang.run(
            ["-m", module, *arguments, "--mesh", placement.mesh],
            log_dir=context.attempt_dir,
            stop=context.stop,
            on_poll=poll,
            stall_seconds=FROZEN_SECONDS,
        )
    if ended.kind != "done":
        raise StageFailure(ended.kind, ended.message, ended.log_tail, newest_step())
    watch()


def newest_checkpoint(state_dir: str) -> int | None:
    """The step of the newest checkpoint in a state folder; None where there is none."""
    folder = os.path.join(state_dir, "checkpoints")
    steps = [int(name) for name in os.listdir(folder) if name.isdigit()] if os.path.isdir(folder) else []
    return max(steps, default=None)


def written(folder: str, *names: str) -> tuple[str, ...]:
    """Paths relative to `folder` of the named files and of all files in named folders; absent ones are left out."""
    found = []
    for name in names:
        place = os.path.join(folder, name)
        if os.path.isfile(place):
            found.append(name)
        for below, _, files in os.walk(place):
            found += [os.path.relpath(os.path.join(below, file), folder).replace(os.sep, "/") for file in files]
    return tuple(sorted(found))
