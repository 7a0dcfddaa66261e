"""A believable run on disk, for tests of what only shows runs: stages, manifests, progress, pictures. No training."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from infra import manifest as manifests
from infra.manifest import InputRef, Manifest, Provenance
from infra.stage import Stage, canonical
from infra.storage import Store


@dataclass(frozen=True)
class DocumentsRecipe:
    kind: ClassVar[str] = "documents"
    sources: tuple[str, ...] = ("installed",)
    minimum_tokens: int = 64


@dataclass(frozen=True)
class TokensRecipe:
    kind: ClassVar[str] = "tokens"
    held_out: float = 0.05


@dataclass(frozen=True)
class TrainRecipe:
    kind: ClassVar[str] = "train"
    sequence: int
    rope_theta: float
    batch_tokens: int = 8192
    learning_rate: float = 1e-3
    hub_token: str | None = None


@dataclass(frozen=True)
class EvaluateRecipe:
    kind: ClassVar[str] = "evaluate"
    sequence: int
    needle_lengths: tuple[int, ...] = (256, 512)


def make_stage(name: str, recipe: Any, inputs: Mapping[str, Stage] | None = None) -> Stage:
    return Stage(name, recipe, _never_run, inputs or {}, None)  # pyright: ignore[reportArgumentType]


def write_steps(store: Store, stage: Stage, count: int, start: int = 0, series: int = 1, speed: float = 9000.0) -> None:
    """Write a whole progress.jsonl of `count` steps, and the identity of its series when there is none."""
    batch = getattr(stage.recipe, "batch_tokens", 8192)
    lines = [
        {
            "step": step,
            "tokens": step * batch,
            "loss": 2.2 + 3.5 * math.exp(-step / 20),
            "tokens_per_second": speed + 300 * math.sin(step),
            "mfu": 0.3,
            "seconds": batch / speed,
            "learning_rate": 1e-3,
            "gradient_norm": 0.9,
            "time": 1.79e9 + start + step,
        }
        for step in range(1, count + 1)
    ]
    store.create(f"{stage.name}/state/{series}/identity.json", json.dumps({"fingerprint": stage.fingerprint}).encode())
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    put(store, f"{stage.name}/state/{series}/progress.jsonl", text)


def finish(
    store: Store,
    stage: Stage,
    values: Mapping[str, Any],
    files: Mapping[str, bytes] | None = None,
    series: int = 1,
    seconds: float = 42.0,
) -> Manifest:
    """Commit the stage's manifest with these files."""
    store.create(f"{stage.name}/state/{series}/identity.json", json.dumps({"fingerprint": stage.fingerprint}).encode())
    attempt = store.claim_attempt(stage.name, {"series": series})
    for path, data in (files or {}).items():
        put(store, f"{stage.name}/attempt-{attempt}/{path}", data)
    manifest = Manifest(
        stage=stage.name,
        kind=stage.recipe.kind,
        code_version=stage.code_version,
        fingerprint=stage.fingerprint,
        recipe=canonical(stage.recipe),
        inputs={port: InputRef(source.name, source.fingerprint) for port, source in stage.inputs.items()},
        files=manifests.describe(store, stage.name, attempt, files or {}),
        values=values,
        attempt=attempt,
        series=series,
        provenance=Provenance(
            commit="0123456789abcdef",
            versions={"python": "3.11.7", "jax": "0.10.2"},
            host="laptop",
            started="2026-11-20T10:00:00+00:00",
            finished="2026-11-20T10:00:42+00:00",
            seconds=seconds,
            attempts=1,
        ),
    )
    loaded = manifests.load(store, stage.name)
    manifests.commit(store, manifest, loaded[1] if loaded else None)
    return manifest


def put(store: Store, key: str, data: bytes) -> None:
    found = store.read(key)
    assert store.create(key, data) if found is None else store.replace(key, data, found.version)


def picture(red: int = 120) -> bytes:
    """A real PNG of one pixel, written by hand."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixel = zlib.compress(bytes([0, red, 90, 160]))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixel) + chunk(b"IEND", b"")


def with_recipe(stage: Stage, **changes: Any) -> Stage:
    recipe: Any = stage.recipe
    return dataclasses.replace(stage, recipe=dataclasses.replace(recipe, **changes))


def _never_run(context: Any, recipe: Any) -> Any:
    raise AssertionError("a view of a run never runs a stage")
