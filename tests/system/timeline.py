"""What happened to a cluster while a run went on, as text: a line whenever the nodes or a stage changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Moment:
    """seconds: since the begin. nodes: worker nodes alive. stages: name -> what it does."""

    seconds: float
    nodes: int
    stages: Mapping[str, str]


def timeline(moments: Sequence[Moment]) -> str:
    """A table of the moments at which something changed; stages that do nothing are not named."""
    lines = [f"{'seconds':>8}  nodes  stages"]
    before: tuple[object, ...] = ()
    for moment in moments:
        shown = ", ".join(f"{name} {state}" for name, state in moment.stages.items() if state)
        if (moment.nodes, shown) != before:
            before = (moment.nodes, shown)
            lines.append(f"{moment.seconds:8.1f}  {'#' * moment.nodes or '-':5}  {shown}")
    return "\n".join(line.rstrip() for line in lines)
