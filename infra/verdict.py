"""Why a gang ended: one verdict for all its ranks together, as a pure function.

The ranks of a gang share collectives, so the first failure drags the others down within a second, with whatever exit
code their part of the library happens to use. A rank's code alone therefore says little; only the set of them does.

Exit codes of a trainer: 0 done | 64 user error | 75 preempted, saved | 124 stalled | anything else, a signal: crashed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

DONE, USER_ERROR, PREEMPTED, STALLED = 0, 64, 75, 124

Verdict = Literal["done", "user", "preempted", "stalled", "crashed"]


@dataclass(frozen=True)
class RankExit:
    """How one rank ended.

    code: its exit code, negative for a signal; None when nobody could see it any more.
    cause: exited = by itself; stopped = the gang stopped it (another rank had failed, or somebody asked);
        lost = its host died under it; stalled = it gave no sign of life, and the gang stopped it for that.
    """

    code: int | None
    cause: Literal["exited", "stopped", "lost", "stalled"]


def classify(exits: Sequence[RankExit]) -> Verdict:
    """The verdict on a gang. Rules in order; the first that holds decides:

    1. every rank 0                         -> done
    2. a rank 64 by itself                  -> user: it read the recipe and refused; what its siblings did is noise
    3. a rank 124 by itself, or found hung  -> stalled
    4. a rank 75 by itself                  -> preempted: a save is collective, so one rank that reports it speaks for
                                               all, and siblings may have crashed only because it left
    5. every rank stopped, or 0             -> preempted: nothing was wrong, somebody asked the gang to stop
    6. otherwise                            -> crashed, a lost host included

    What a rank answers after the gang has stopped it is a consequence, never the reason.
    """
    if exits and all(rank.code == DONE for rank in exits):
        return "done"
    spoken = {rank.code for rank in exits if rank.cause == "exited"}
    if USER_ERROR in spoken:
        return "user"
    if STALLED in spoken or any(rank.cause == "stalled" for rank in exits):
        return "stalled"
    if PREEMPTED in spoken:
        return "preempted"
    if all(rank.cause == "stopped" or rank.code == DONE for rank in exits):
        return "preempted"
    return "crashed"
