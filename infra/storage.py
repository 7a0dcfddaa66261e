"""Where a run lies: names of its folders, bytes through fsspec, and conditional writes through TensorStore.

    {root}/{run}/{stage}/manifest.json     {root}/{run}/{stage}/state/{series}/     {root}/{run}/{stage}/attempt-N/
    {root}/{run}/lease.json

The same code serves a local folder and gs://. Whatever decides something (manifests, leases, claims of an attempt or of
a series) goes through `read`, `create` and `replace`: atomic, conditional on the version that was read. Bulk data goes
through fsspec or straight to `url(...)`. Nothing here ever deletes.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import fsspec
import tensorstore

from infra.errors import UserError

_RUN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
# Of Google Cloud Storage, by status; what a client may try again is tried again below us.
_REFUSALS = {
    "401": "give this machine credentials (gcloud auth application-default login, or a service account)",
    "403": "give its account the role Storage Object Admin (roles/storage.objectAdmin) on the bucket",
    "404": "there is no such bucket: make it, or correct root=",
}
T = TypeVar("T")


@dataclass(frozen=True)
class Version:
    """Which content of a key was read or written; opaque, from TensorStore."""

    generation: bytes


@dataclass(frozen=True)
class Found:
    data: bytes
    version: Version


class Store:
    """One run's folder.

    root: a local folder, made absolute, or gs://bucket/prefix. run: the run's name, one folder below it.
    Raises UserError for any other scheme or a run name that is no plain folder name.
    """

    def __init__(self, root: str, run: str) -> None:
        if not _RUN.fullmatch(run):
            raise UserError(f"run={run!r}: use letters, digits, '.', '_' and '-', not starting with '.' or '-'")
        scheme, separator, rest = root.partition("://")
        if not separator or scheme == "file":
            folder = os.path.abspath(os.path.expanduser(rest if separator else root))
            self.root = folder
            spec: dict[str, Any] = {"driver": "file", "path": os.path.join(folder, run) + "/"}
        elif scheme == "gs":
            bucket, _, prefix = rest.strip("/").partition("/")
            if not bucket:
                raise UserError(f"root={root!r} names no bucket: use gs://bucket/folder")
            self.root = f"gs://{bucket}/{prefix}".rstrip("/")
            spec = {"driver": "gcs", "bucket": bucket, "path": f"{prefix}/{run}/".lstrip("/")}
        else:
            raise UserError(f"root={root!r}: a local folder or gs://bucket/folder, not {scheme}://")
        self.run = run
        self._keys = tensorstore.KvStore.open(spec).result()

    @cached_property
    def _fs(self) -> Any:
        """Made at first use: gcsfs looks for credentials at once, which takes seconds."""
        if self.root.startswith("gs://"):
            # Listings must show what other drivers have written since: gcsfs would cache them.
            return fsspec.filesystem("gs", use_listings_cache=False)
        return fsspec.filesystem("file")

    def url(self, *parts: str) -> str:
        """Absolute path or gs:// URL of something in this run, e.g. url("text-8k", "manifest.json")."""
        return "/".join([self.root.rstrip("/"), self.run, *parts])

    def attempt_url(self, stage: str, attempt: int) -> str:
        return self.url(stage, f"attempt-{attempt}")

    def state_url(self, stage: str, series: int) -> str:
        return self.url(stage, "state", str(series))

    def read(self, key: str, timeout: float | None = None) -> Found | None:
        """The newest content of a key such as "lease.json"; None when there is none.

        timeout: seconds until TimeoutError. Without one, TensorStore tries an absent object store again for minutes.
        """
        found = _checked(lambda: self._keys.read(key).result(timeout=timeout), self.url(key))
        return None if found.state == "missing" else Found(bytes(found.value), Version(found.stamp.generation))

    def create(self, key: str, data: bytes) -> Version | None:
        """Write a key that does not exist, atomically; None, and nothing written, when it does."""
        found = _checked(lambda: self._keys.read(key).result(), self.url(key))
        if found.state != "missing":
            return None
        return self.replace(key, data, Version(found.stamp.generation))

    def replace(self, key: str, data: bytes, version: Version, timeout: float | None = None) -> Version | None:
        """Write a key if it still is at `version`, atomically; None, and nothing written, when it is not.

        Two writers that contend must not write the same bytes: when the answer to a write is lost on its way,
        TensorStore writes again and finds the key changed, and only the bytes tell that it was this writer's doing.
        timeout: seconds until TimeoutError; the write may have happened, or happen yet.
        """
        write = self._keys.write(key, data, if_equal=version.generation)
        stamp = _checked(lambda: write.result(timeout=timeout), self.url(key))
        if stamp.generation:
            return Version(stamp.generation)
        found = self.read(key, timeout)
        return found.version if found is not None and found.data == data else None

    def write_text(self, text: str, *parts: str) -> None:
        """Write a file for people, such as a log; not atomic."""
        self.make_folder(self.url(*parts[:-1]))
        with self._fs.open(self.url(*parts), "wb") as out:
            out.write(text.encode())

    def make_folder(self, url: str) -> None:
        """Make a folder that may exist; object stores have none to make."""
        if not url.startswith("gs://"):
            os.makedirs(url, exist_ok=True)

    def files(self, url: str) -> dict[str, int]:
        """Every file below a folder: path relative to it -> bytes. Empty when there is no such folder."""
        folder = self._fs._strip_protocol(url).rstrip("/") + "/"
        try:
            found = self._fs.find(folder, detail=True)
        except FileNotFoundError:
            return {}
        return {path.removeprefix(folder): int(info["size"]) for path, info in found.items()}

    def attempts(self, stage: str) -> tuple[int, ...]:
        """Numbers of the attempts that were ever claimed, ascending."""
        return self._numbers(self.url(stage), re.compile(r"attempt-([1-9]\d*)"))

    def numbers(self, *parts: str, suffix: str = "") -> tuple[int, ...]:
        """Whole numbers that name the entries of a folder, ascending: checkpoints (1200), sessions (0003.json)."""
        return self._numbers(self.url(*parts), re.compile(rf"(\d+){re.escape(suffix)}"))

    def series(self, stage: str) -> tuple[tuple[int, str], ...]:
        """(number, fingerprint) of the state series of a stage, ascending; one without an identity is left out."""
        known = []
        for number in self._numbers(self.url(stage, "state"), re.compile(r"([1-9]\d*)")):
            found = self.read(f"{stage}/state/{number}/identity.json")
            if found is not None:
                known.append((number, _identity(found.data, self.url(stage, "state", str(number), "identity.json"))))
        return tuple(known)

    def claim_attempt(self, stage: str, claim: dict[str, Any]) -> int:
        """Take the next free attempt number by creating attempt-N/attempt.json with `claim`; its folder exists then."""
        number = max(self.attempts(stage), default=0) + 1
        unique = {**claim, "claim": secrets.token_hex(8)}
        data = (json.dumps(unique, indent=1, sort_keys=True) + "\n").encode()
        while self.create(f"{stage}/attempt-{number}/attempt.json", data) is None:
            number += 1
        return number

    def claim_series(self, stage: str, fingerprint: str) -> int:
        """Take the next free state series for an identity; its folder exists then."""
        number = max(self._numbers(self.url(stage, "state"), re.compile(r"([1-9]\d*)")), default=0) + 1
        data = (json.dumps({"fingerprint": fingerprint, "claim": secrets.token_hex(8)}) + "\n").encode()
        while self.create(f"{stage}/state/{number}/identity.json", data) is None:
            number += 1
        return number

    def attempts_of_series(self, stage: str, series: int) -> int:
        """How many attempts have worked on a series, by their claims."""
        claims = [self.read(f"{stage}/attempt-{number}/attempt.json") for number in self.attempts(stage)]
        return sum(claim is not None and json.loads(claim.data).get("series") == series for claim in claims)

    def _numbers(self, url: str, pattern: re.Pattern[str]) -> tuple[int, ...]:
        try:
            names = [path.rstrip("/").rpartition("/")[2] for path in self._fs.ls(url, detail=False)]
        except FileNotFoundError:
            return ()
        return tuple(sorted(int(match[1]) for name in names if (match := pattern.fullmatch(name))))


def _identity(data: bytes, where: str) -> str:
    try:
        value = json.loads(data)["fingerprint"]
    except (ValueError, KeyError, TypeError) as wrong:
        raise UserError(f"{where} is no identity of a state series: move that folder away") from wrong
    return str(value)


def _checked(operation: Callable[[], T], where: str) -> T:
    """TensorStore says what the system said only in its text: turn 'disk full' back into the OSError it was, and a
    refusal into an error that a person can act on."""
    try:
        return operation()
    except (ValueError, RuntimeError, NotImplementedError) as wrong:
        for number in (errno.ENOSPC, errno.EDQUOT):
            if os.strerror(number) in str(wrong):
                raise OSError(number, os.strerror(number), where) from wrong
        if (status := re.search(r"http_response_code='(\d+)'", str(wrong))) and status[1] in _REFUSALS:
            raise UserError(f"{where}: storage answers {status[1]}: {_REFUSALS[status[1]]}") from wrong
        raise
