"""The manifest: the only 'done'. Written last, created atomically, listing every output file with its size.

No other status file decides anything. A manifest is read strictly: a truncated one, one of another schema or a foreign
file is an error that names it, never a guess. `commit` looks at every listed file before it writes, and writes
conditionally: it creates, or replaces exactly the manifest that the driver had read (`force=`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from infra.errors import UserError

if TYPE_CHECKING:
    from infra.storage import Store, Version

SCHEMA = 1


@dataclass(frozen=True)
class FileEntry:
    """One output file: its path relative to the attempt folder, and its size in bytes."""

    path: str
    bytes: int


@dataclass(frozen=True)
class InputRef:
    """What was plugged into a port: the stage's name and its fingerprint."""

    stage: str
    fingerprint: str


@dataclass(frozen=True)
class Provenance:
    """Where, when and by which code a stage was made; never part of its identity.

    commit: the code's git commit where known. versions: of the libraries that matter. started, finished: of the
    attempt that succeeded, ISO 8601 UTC; seconds: its duration. attempts: how many this series took.
    """

    commit: str | None
    versions: Mapping[str, str]
    host: str
    started: str
    finished: str
    seconds: float
    attempts: int


@dataclass(frozen=True)
class Manifest:
    """What a finished stage is and what it made; see the fields of `Stage` and `Result` for their meaning."""

    stage: str
    kind: str
    code_version: int
    fingerprint: str
    recipe: Mapping[str, Any]
    inputs: Mapping[str, InputRef]
    files: tuple[FileEntry, ...]
    values: Mapping[str, Any]
    attempt: int
    series: int
    provenance: Provenance
    schema: int = SCHEMA

    def to_json(self) -> str:
        """Readable JSON, the same text for the same manifest. ValueError for values that JSON lacks, such as NaN."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> Manifest:
        """Read what `to_json` wrote. UserError, naming `where`, for anything else."""
        try:
            data = _object(json.loads(text), "the file")
            if data.get("schema") != SCHEMA:
                raise _Foreign(f"schema {data.get('schema')!r} where this version reads {SCHEMA}")
            _keys(data, cls, "the file")
            origin = _object(data["provenance"], "provenance")
            _keys(origin, Provenance, "provenance")
            return cls(
                stage=_typed(data, "stage", str),
                kind=_typed(data, "kind", str),
                code_version=_typed(data, "code_version", int),
                fingerprint=_typed(data, "fingerprint", str),
                recipe=_object(data["recipe"], "recipe"),
                inputs={port: _input(port, ref) for port, ref in _object(data["inputs"], "inputs").items()},
                files=tuple(_file(entry) for entry in _typed(data, "files", list)),
                values=_object(data["values"], "values"),
                attempt=_typed(data, "attempt", int),
                series=_typed(data, "series", int),
                provenance=Provenance(
                    commit=None if origin["commit"] is None else _typed(origin, "commit", str),
                    versions=_object(origin["versions"], "versions"),
                    host=_typed(origin, "host", str),
                    started=_typed(origin, "started", str),
                    finished=_typed(origin, "finished", str),
                    seconds=float(_typed(origin, "seconds", (int, float))),
                    attempts=_typed(origin, "attempts", int),
                ),
            )
        except (json.JSONDecodeError, UnicodeDecodeError, _Foreign) as wrong:
            raise UserError(
                f"{where} is not a manifest of this version ({wrong}): it was cut short or written by something else; "
                "move it away to make the stage again, or use another run= name"
            ) from wrong


def describe(store: Store, stage: str, attempt: int, paths: Iterable[str]) -> tuple[FileEntry, ...]:
    """The sizes of an attempt's files. UserError for a path that leaves the attempt folder or does not exist."""
    sizes = store.files(store.attempt_url(stage, attempt))
    entries = []
    for path in sorted(set(paths)):
        if path.startswith("/") or any(part in ("", ".", "..") for part in path.split("/")):
            raise UserError(f"stage {stage!r} lists {path!r}: give paths relative to its attempt folder, without '..'")
        if path not in sizes:
            raise UserError(
                f"stage {stage!r} lists {path!r}, which attempt {attempt} did not write: nothing is committed; "
                f"list only files under {store.attempt_url(stage, attempt)}"
            )
        entries.append(FileEntry(path, sizes[path]))
    return tuple(entries)


def commit(store: Store, manifest: Manifest, replacing: Version | None = None) -> None:
    """Make the manifest visible, atomically and last.

    replacing: the version of the manifest that was read before a forced attempt; None demands that there is none.
    Raises UserError when a listed file is missing or has another size, or when the manifest on storage is no longer
    the one that was read: then another driver has been here, and nothing is written.
    """
    present = store.files(store.attempt_url(manifest.stage, manifest.attempt))
    for entry in manifest.files:
        found = present.get(entry.path)
        if found != entry.bytes:
            state = "is missing" if found is None else f"has {found} bytes"
            raise UserError(
                f"stage {manifest.stage!r}: {entry.path!r} should have {entry.bytes} bytes and {state}; "
                "nothing is committed"
            )
    key = f"{manifest.stage}/manifest.json"
    data = manifest.to_json().encode()
    written = store.create(key, data) if replacing is None else store.replace(key, data, replacing)
    if written is None:
        raise UserError(
            f"{store.url(key)} was written by another driver since this one read it; nothing is committed. "
            "Run the same command again to see what it made"
        )


def load(store: Store, stage: str) -> tuple[Manifest, Version] | None:
    """The manifest of a stage with the version to hand to `commit(replacing=)`; None when the stage is not done."""
    key = f"{stage}/manifest.json"
    found = store.read(key)
    if found is None:
        return None
    manifest = Manifest.from_json(found.data, store.url(key))
    if manifest.stage != stage:
        raise UserError(f"{store.url(key)} is the manifest of stage {manifest.stage!r}: move it away")
    return manifest, found.version


class _Foreign(Exception):
    """Not what `Manifest.to_json` writes; the message says where."""


def _object(value: Any, at: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Foreign(f"{at} is no JSON object")
    return value


def _keys(data: Mapping[str, Any], cls: type, at: str) -> None:
    expected = set(cls.__dataclass_fields__)
    if missing := expected - set(data):
        raise _Foreign(f"{at} lacks {', '.join(sorted(missing))}")
    if unknown := set(data) - expected:
        raise _Foreign(f"{at} has unknown keys {', '.join(sorted(unknown))}")


def _typed(data: Mapping[str, Any], key: str, kind: type | tuple[type, ...]) -> Any:
    value = data[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _Foreign(f"{key} is {value!r}")
    return value


def _input(port: str, value: Any) -> InputRef:
    ref = _object(value, f"inputs.{port}")
    _keys(ref, InputRef, f"inputs.{port}")
    return InputRef(stage=_typed(ref, "stage", str), fingerprint=_typed(ref, "fingerprint", str))


def _file(value: Any) -> FileEntry:
    entry = _object(value, "files[]")
    _keys(entry, FileEntry, "files[]")
    return FileEntry(path=_typed(entry, "path", str), bytes=_typed(entry, "bytes", int))
