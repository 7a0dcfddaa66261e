"""What to do with each stage: a pure decision from what is wanted and what storage holds.

- `survey` is the thin part that reads storage; `plan` looks at nothing but its arguments.
- A manifest with the stage's fingerprint is reuse. A manifest with another one is drift, always an error: the two ways
  out are a new run name, which keeps both, and `force=`, which makes a new attempt and deletes nothing.
- Without a manifest, the newest state series of the same fingerprint is resumed; otherwise a new one begins.
- `only=` and `start=` select what may run; a selected stage that is finished and unchanged is still reused, and only
  `force=` makes it again. Unselected stages that nothing selected needs are shown, and never stop a run.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from infra.errors import UserError
from infra.manifest import Manifest, load
from infra.stage import Stage, canonical, topological
from infra.storage import Store, Version

Action = Literal["reuse", "resume", "run", "wait", "drift", "blocked"]


@dataclass(frozen=True)
class StageFacts:
    """What storage holds of one stage. series: (number, fingerprint) of every state series, ascending."""

    manifest: Manifest | None = None
    version: Version | None = None
    series: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Step:
    """One stage's part of a plan.

    action: reuse; resume or run now; wait (for inputs that are still to be made, or because it is not selected);
        drift or blocked (errors).
    series: the state series to go on with; None to begin a new one, or when there is nothing to do.
    selected: whether this stage may run. due: whether it will, now or after its inputs.
    replaces: version of the manifest that a forced attempt will replace.
    """

    stage: Stage
    action: Action
    reason: str
    series: int | None = None
    selected: bool = True
    due: bool = False
    replaces: Version | None = None
    manifest: Manifest | None = None


@dataclass(frozen=True)
class Plan:
    """Steps in topological order; `problem` is the whole error text when the plan cannot be carried out."""

    steps: tuple[Step, ...]
    problem: str | None

    def __getitem__(self, name: str) -> Step:
        return next(step for step in self.steps if step.stage.name == name)

    def require_possible(self) -> None:
        """UserError, before any work, when a stage has drifted or is blocked."""
        if self.problem is not None:
            raise UserError(self.problem)


def survey(stages: Iterable[Stage], store: Store) -> dict[str, StageFacts]:
    """Read what storage holds of the stages and all they depend on. UserError for an unreadable manifest."""

    def look(stage: Stage) -> StageFacts:
        found = load(store, stage.name)
        manifest, version = found if found is not None else (None, None)
        return StageFacts(manifest, version, store.series(stage.name))

    ordered = topological(stages)
    with ThreadPoolExecutor(max_workers=16) as pool:
        return dict(zip((stage.name for stage in ordered), pool.map(look, ordered), strict=True))


def plan(
    stages: Iterable[Stage],
    facts: Mapping[str, StageFacts],
    *,
    only: str | None = None,
    start: str | None = None,
    force: str | None = None,
) -> Plan:
    """Decide for the stages and everything they depend on.

    facts: by stage name; a stage without facts has nothing on storage.
    only, start: a stage name. force: stage names, separated by commas. UserError for names that are no stage, for both
    only= and start=, and for force= of a stage that they leave out. Drift and blocked stages are in `Plan.problem`.
    """
    ordered = topological(stages)
    selected = _selection(ordered, only, start)
    forced = _forced(ordered, selected, force, only, start)
    steps: dict[str, Step] = {}
    for stage in ordered:
        fact = facts.get(stage.name, StageFacts())
        if stage.name in selected:
            steps[stage.name] = _selected_step(stage, fact, steps, stage.name in forced)
        else:
            steps[stage.name] = _unselected_step(stage, fact, f"only={only}" if only else f"start={start}")
    return Plan(tuple(steps.values()), _problem(steps, forced))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    """(dotted field, old, new) for every leaf in which two recipe mappings differ; '(absent)' for a missing one."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    return tuple(
        (field, before.get(field, "(absent)"), after.get(field, "(absent)"))
        for field in [*before, *(field for field in after if field not in before)]
        if before.get(field) != after.get(field)
    )


def _selected_step(stage: Stage, fact: StageFacts, above: Mapping[str, Step], forced: bool) -> Step:
    inputs = {port: above[parent.name] for port, parent in stage.inputs.items()}
    done = fact.manifest
    if done is not None and not forced:
        if done.fingerprint == stage.fingerprint:
            return Step(stage, "reuse", f"finished, unchanged; force={stage.name} makes it again", manifest=done)
        return Step(stage, "drift", "; ".join(_changes(stage, done)), manifest=done)
    if missing := {parent.stage.name: parent for parent in inputs.values() if not _available(parent)}:
        reason = ", ".join(f"needs {name}, which {_lack(parent)}" for name, parent in missing.items())
        return Step(stage, "blocked", reason, manifest=done)
    series = _unfinished(stage, fact)
    if series is not None:
        action, reason = "resume", f"state series {series} is unfinished"
    elif forced:
        action, reason = "run", "forced: a new attempt" if done is not None else "forced; nothing on storage yet"
    elif fact.series:
        action, reason = "run", f"state series {fact.series[-1][0]} belongs to another recipe"
    else:
        action, reason = "run", "nothing on storage yet"
    if waits := sorted({parent.stage.name for parent in inputs.values() if parent.due}):
        action, reason = "wait", f"for {', '.join(waits)}" + (f"; then resumes state series {series}" if series else "")
    return Step(stage, action, reason, series=series, due=True, replaces=fact.version, manifest=done)


def _unselected_step(stage: Stage, fact: StageFacts, selector: str) -> Step:
    if fact.manifest is None:
        return Step(stage, "wait", f"not finished, not selected by {selector}", selected=False)
    if fact.manifest.fingerprint == stage.fingerprint:
        return Step(stage, "reuse", "finished, unchanged", selected=False, manifest=fact.manifest)
    reason = f"changed, not selected by {selector}: {'; '.join(_changes(stage, fact.manifest))}"
    return Step(stage, "wait", reason, selected=False, manifest=fact.manifest)


def _available(parent: Step) -> bool:
    return parent.action == "reuse" or parent.due


def _lack(parent: Step) -> str:
    if parent.action == "drift" or (parent.action == "wait" and parent.manifest is not None):
        return "has changed since it was finished"
    return "is blocked itself" if parent.action == "blocked" else "is not finished and not selected"


def _unfinished(stage: Stage, fact: StageFacts) -> int | None:
    """The newest series of this very identity that no manifest has overtaken."""
    finished = fact.manifest.series if fact.manifest is not None else 0
    newer = (number for number, mark in fact.series if mark == stage.fingerprint and number > finished)
    return max(newer, default=None)


def _changes(stage: Stage, done: Manifest) -> list[str]:
    """Why a finished stage's fingerprint is no longer its stage's, most telling first."""
    changes = [
        f"{field}: {old} -> {new}" for field, old, new in differences(done.recipe, canonical(stage.recipe, stage.name))
    ]
    if done.kind != stage.recipe.kind:
        changes.append(f"kind: {done.kind} -> {stage.recipe.kind}")
    if done.code_version != stage.code_version:
        changes.append(f"code_version: {done.code_version} -> {stage.code_version}")
    for port in sorted(set(done.inputs) | set(stage.inputs)):
        old, new = done.inputs.get(port), stage.inputs.get(port)
        if old is None or new is None:
            was, now = (old.stage if old else "(absent)"), (new.name if new else "(absent)")
            changes.append(f"input {port}: {was} -> {now}")
        elif old.fingerprint != new.fingerprint:
            named = new.name if old.stage == new.name else f"{old.stage} -> {new.name}"
            changes.append(f"input {port} ({named}) has changed")
    return changes or ["its fingerprint was made by another version of this code"]


def _problem(steps: Mapping[str, Step], forced: frozenset[str]) -> str | None:
    """One text for all drift and blocked stages; None when there are none.

    An unselected input that has changed counts as drift: what would be built on it is not what the recipe says.
    """
    needed = [step for step in steps.values() if step.selected]
    to_make = [step for step in needed if step.due or step.action == "blocked"]
    inputs = {parent.name for step in to_make for parent in step.stage.inputs.values()}
    lacking = [step for step in steps.values() if step.stage.name in inputs and not _available(step)]
    drifted = [
        step
        for step in steps.values()
        if step.action == "drift" or (step in lacking and step.action == "wait" and step.manifest is not None)
    ]
    lines = []
    for step in drifted:
        lines.append(f"stage {step.stage.name!r} is finished, and has changed since (drift):")
        assert step.manifest is not None
        lines.extend(f"    {change}" for change in _changes(step.stage, step.manifest))
    if drifted:
        again = [name for name in steps if name in forced or any(step.stage.name == name for step in drifted)]
        lines.append("Nothing was run. Two ways out:")
        lines.append("    run=NEWNAME           keeps this run as it is and makes a new one")
        where = "here" if all(step.selected for step in drifted) else "here, with only= and start= left out"
        lines.append(f"    force={','.join(again)}  makes new attempts {where}; nothing is deleted")
        return "\n".join(lines)
    for step in needed:
        if step.action == "blocked":
            lines.append(f"stage {step.stage.name!r} is blocked: it {step.reason}")
    if lines:
        missing = [step.stage.name for step in lacking if not step.selected]
        first = f"{', '.join(missing)} first (only={missing[0]})"
        lines.append(f"Nothing was run. Make {first}, or leave only= and start= out")
    return "\n".join(lines) or None


def _selection(ordered: tuple[Stage, ...], only: str | None, start: str | None) -> frozenset[str]:
    if only and start:
        raise UserError(f"only={only} start={start}: give one of them")
    if only:
        return frozenset([_known(only, ordered, "only")])
    if not start:
        return frozenset(stage.name for stage in ordered)
    below = {_known(start, ordered, "start")}
    for stage in ordered:
        if any(parent.name in below for parent in stage.inputs.values()):
            below.add(stage.name)
    return frozenset(below)


def _forced(
    ordered: tuple[Stage, ...], selected: frozenset[str], force: str | None, only: str | None, start: str | None
) -> frozenset[str]:
    names = frozenset(_known(name.strip(), ordered, "force") for name in force.split(",")) if force else frozenset()
    if outside := sorted(names - selected):
        selector = f"only={only}" if only else f"start={start}"
        raise UserError(f"force={','.join(outside)}: {selector} leaves it out, so drop one of the two")
    return names


def _known(name: str, ordered: tuple[Stage, ...], option: str) -> str:
    names = [stage.name for stage in ordered]
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"{option}={name!r} is no stage: {hint}stages are {', '.join(names)}")


def _leaves(value: Any, at: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{at}.{key}" if at else str(key))
    else:
        yield at, repr(value)
