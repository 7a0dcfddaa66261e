"""What a run left on storage, and how it differs from what a calm run left. Pure but for `read`.

Equal means: the same stages; the same manifests but for where and when they were made; of every training stage each
step exactly once, in order, with the same loss, gradient norm and learning rate to the last bit; the same weights, bit
by bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra import manifest as manifests
from infra.errors import UserError
from infra.storage import Store

# Of values: what a clock or the machine says, the machine's own rates in what was planned among it.
_MEASURED = frozenset(
    """
    data_wait data_wait_worst mfu peak_bytes planned_mfu planned_seconds_per_step seconds seconds_per_step
    tokens_per_second
    """.split()  # noqa: SIM905 - a list of nine quoted words is harder to read
)
_COMPUTED = ("step", "tokens", "loss", "gradient_norm", "learning_rate")


@dataclass(frozen=True)
class Remains:
    """manifests: by stage, as they were read. steps: what was computed at each recorded step, in the file's order.
    weights: a digest of every array by its name. broken: why a manifest is not what it should be."""

    manifests: Mapping[str, Mapping[str, Any]]
    steps: Mapping[str, Sequence[tuple[Any, ...]]]
    weights: Mapping[str, Mapping[str, str]]
    broken: tuple[str, ...] = field(default=())


def read(root: Path, run: str) -> Remains:
    """What lies in {root}/{run}."""
    store, found, steps, weights, broken = Store(str(root), run), {}, {}, {}, []
    for path in sorted((root / run).glob("*/manifest.json")):
        stage = path.parent.name
        try:
            loaded = manifests.load(store, stage)
        except UserError as wrong:
            broken.append(str(wrong))
            continue
        assert loaded is not None
        manifest = loaded[0]
        sizes = store.files(store.attempt_url(stage, manifest.attempt))
        broken += [
            f"{stage}: {entry.path} has {sizes.get(entry.path)} bytes, its manifest says {entry.bytes}"
            for entry in manifest.files
            if sizes.get(entry.path) != entry.bytes
        ]
        found[stage] = json.loads(manifest.to_json())
        if manifest.kind == "train":
            attempt = Path(store.attempt_url(stage, manifest.attempt))
            lines = (attempt / "progress.jsonl").read_text().splitlines()
            steps[stage] = [tuple(json.loads(line)[name] for name in _COMPUTED) for line in lines]
            weights[stage] = _digests(attempt / "params")
    return Remains(found, steps, weights, tuple(broken))


def differences(calm: Remains, other: Remains) -> list[str]:
    """What is not as the calm run has it, a sentence each; empty for a run that is equal."""
    wrong = list(other.broken)
    for stage in sorted(set(calm.manifests) | set(other.manifests)):
        if stage not in other.manifests:
            wrong.append(f"{stage} is not finished")
        elif stage not in calm.manifests:
            wrong.append(f"{stage} is finished, and the calm run has no such stage")
        else:
            wrong += _unequal(stage, essence(calm.manifests[stage]), essence(other.manifests[stage]))
    for stage, steps in other.steps.items():
        expected = calm.steps.get(stage, ())
        numbers = [step[0] for step in steps]
        if numbers != list(range(1, len(expected) + 1)):
            wrong.append(f"{stage}: steps are not 1 to {len(expected)}, each once: {_first_break(numbers)}")
        else:
            apart = [step[0] for step, calm_step in zip(steps, expected, strict=True) if step != calm_step]
            if apart:
                wrong.append(f"{stage}: {len(apart)} steps differ from the calm run's, the first is {apart[0]}")
        if other.weights[stage] != calm.weights.get(stage):
            wrong.append(f"{stage}: the final weights differ from the calm run's")
    return wrong


def essence(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest without where, when, and after how many attempts it was made."""
    kept = {key: manifest[key] for key in ("stage", "kind", "code_version", "fingerprint", "recipe", "inputs")}
    values = {name: value for name, value in manifest["values"].items() if name not in _MEASURED}
    return {**kept, "values": values, "files": _names(manifest)}


def _names(manifest: Mapping[str, Any]) -> list[str]:
    # Orbax draws the names inside `params`; what is in them is compared as weights.
    return sorted({path if path.split("/")[0] != "params" else "params" for path in _paths(manifest)})


def _paths(manifest: Mapping[str, Any]) -> list[str]:
    return [entry["path"] for entry in manifest["files"]]


def _unequal(stage: str, calm: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    wrong = []
    for key in calm:
        if calm[key] != other[key]:
            ours, theirs = calm[key], other[key]
            if key == "values":
                names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
                ours, theirs = ({name: side.get(name) for name in names} for side in (ours, theirs))
            wrong.append(f"{stage}: {key} of the manifest: {str(theirs)[:300]} instead of {str(ours)[:300]}")
    return wrong


def _first_break(numbers: Sequence[int]) -> str:
    for place, number in enumerate(numbers):
        if number != place + 1:
            return f"line {place + 1} is step {number}"
    return f"{len(numbers)} lines"


def _digests(params: Path) -> dict[str, str]:
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    device = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    with ocp.StandardCheckpointer() as checkpointer:
        stored = checkpointer.metadata(params).item_metadata
        wanted = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
            stored.tree if hasattr(stored, "tree") else stored,
            is_leaf=lambda leaf: hasattr(leaf, "shape"),
        )
        restored = checkpointer.restore(params, wanted)
    leaves = jax.tree_util.tree_flatten_with_path(restored)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
        for path, leaf in leaves
    }
