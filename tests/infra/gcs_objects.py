"""What a bucket holds: objects with generations, in files that are put in place whole.

What was written before `kill -9` is there after it, with its generation; half-sent uploads go on too.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = 200  # of a listing; the real one's is 1,000
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_CHUNK = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


@dataclass(frozen=True)
class Object:
    """generation: of this content. The file holds a line of JSON (its name and generation), then the content."""

    generation: int
    size: int
    file: Path

    def read(self, start: int = 0, end: int | None = None) -> bytes:
        with open(self.file, "rb") as opened:
            opened.readline()
            opened.seek(start, os.SEEK_CUR)
            return opened.read(self.size - start if end is None else end - start)


class Cloud:
    """The objects of all buckets, as `bucket/name`. writes: (key, ifGenerationMatch, status) of every upload.

    coming: what goes wrong with the next requests, as `_Draws.next` says it, before anything is drawn.
    """

    def __init__(self, folder: Path) -> None:
        self.objects: dict[str, Object] = {}
        self.writes: list[tuple[str, str | None, int]] = []
        self.coming: list[str] = []
        self._folder, self._uploads = folder / "objects", folder / "uploads"
        self._lock = threading.Lock()
        for made in (self._folder, self._uploads):
            made.mkdir(parents=True, exist_ok=True)
        for file in self._folder.glob("*.object"):
            with open(file, "rb") as opened:
                line = opened.readline()
                told = json.loads(line)
            self.objects[told["key"]] = Object(told["generation"], file.stat().st_size - len(line), file)
        self._generation = max((found.generation for found in self.objects.values()), default=1000)

    def clear(self) -> None:
        with self._lock:
            for found in self.objects.values():
                found.file.unlink()
            self.objects.clear()
            self.writes.clear()
            self.coming.clear()

    def put(self, key: str, data: bytes, match: str | None) -> tuple[int, dict[str, Any]]:
        with self._lock:
            if not self._matches(key, match):
                self.writes.append((key, match, 412))
                return 412, error(412, "Precondition Failed")
            self._generation += 1
            # A file of its own for each generation, so that a reader of the one before goes on undisturbed.
            name = f"{hashlib.sha256(key.encode()).hexdigest()[:40]}-{self._generation}"
            line = json.dumps({"key": key, "generation": self._generation}).encode() + b"\n"
            scratch, file = self._folder / f"{name}.new", self._folder / f"{name}.object"
            scratch.write_bytes(line + data)
            before = self.objects.get(key)
            os.replace(scratch, file)
            self.objects[key] = Object(self._generation, len(data), file)
            if before is not None:
                before.file.unlink()
            self.writes.append((key, match, 200))
            return 200, self._describe(key)

    def delete(self, key: str, match: str | None) -> tuple[int, dict[str, Any]]:
        with self._lock:
            if key not in self.objects:
                return 404, error(404, "No such object")
            if not self._matches(key, match):
                return 412, error(412, "Precondition Failed")
            self.objects.pop(key).file.unlink()
            return 204, {}

    def read(self, key: str, asked: str = "") -> tuple[Object, bytes, int] | None:
        """An object, what a Range header asks of it, and where that begins; all of it without one."""
        # With the lock held, as a writer removes the file of the generation before.
        with self._lock:
            found, bounds = self.objects.get(key), _RANGE.fullmatch(asked)
            if found is None:
                return None
            start, end = (bounds[1], bounds[2]) if bounds else ("", "")
            if start:
                return found, found.read(int(start), int(end) + 1 if end else None), int(start)
            begin = max(0, found.size - int(end)) if end else 0
            return found, found.read(begin), begin

    def copy(self, key: str, target: str, match: str | None) -> tuple[int, dict[str, Any]]:
        found = self.read(key)
        return (404, error(404, "No such object")) if found is None else self.put(target, found[1], match)

    def describe(self, key: str) -> tuple[int, dict[str, Any]]:
        with self._lock:
            return (200, self._describe(key)) if key in self.objects else (404, error(404, "No such object"))

    def list(self, bucket: str, query: dict[str, str]) -> dict[str, Any]:
        """A page of a listing by prefix and delimiter; the token is the last name of the page before."""
        start, delimiter = f"{bucket}/{query.get('prefix', '')}", query.get("delimiter", "")
        first, end = (f"{bucket}/{query[name]}" if name in query else "" for name in ("startOffset", "endOffset"))
        token = base64.urlsafe_b64decode(query.get("pageToken", "")).decode()
        most = min(PAGE, int(query.get("maxResults", PAGE)))
        with self._lock:
            entries: dict[str, str | None] = {}  # name or prefix -> key of the object, None for a prefix
            for key in self.objects:
                if key.startswith(start) and key >= first and (not end or key < end):
                    head, cut, _ = key[len(start) :].partition(delimiter) if delimiter else (key, "", "")
                    entries[start + head + cut if cut else key] = None if cut else key
            names = sorted(name for name in entries if name > token)
            shown = names[:most]
            listed: dict[str, Any] = {"kind": "storage#objects"}
            listed["items"] = [self._describe(key) for name in shown if (key := entries[name]) is not None]
            listed["prefixes"] = [name.removeprefix(f"{bucket}/") for name in shown if entries[name] is None]
            if len(names) > most:
                listed["nextPageToken"] = base64.urlsafe_b64encode(shown[-1].encode()).decode()
            return listed

    def begin_upload(self, key: str, match: str | None) -> str:
        upload = secrets.token_hex(8)
        (self._uploads / upload).write_bytes(json.dumps({"key": key, "match": match}).encode() + b"\n")
        return upload

    def upload(self, upload: str, data: bytes, content_range: str | None) -> tuple[int, dict[str, Any], dict[str, str]]:
        """A chunk of a resumable upload; one that was sent before is not taken twice."""
        place = self._uploads / upload
        if not place.exists():
            return 404, error(404, "no such upload"), {}
        line, _, held = place.read_bytes().partition(b"\n")
        told = json.loads(line)
        if "done" in told:
            return 200, told["done"], {}
        chunk = _CHUNK.fullmatch(content_range or f"bytes */{len(data)}")
        if chunk is None:
            return 400, error(400, f"Content-Range {content_range}"), {}
        start = int(chunk[1]) if chunk[1] else len(held)
        if start > len(held):
            return 503, error(503, "a chunk before this one is missing"), {}
        held = held[:start] + data
        if chunk[3] == "*" or len(held) < int(chunk[3]):
            _write_whole(place, line + b"\n" + held)
            return 308, {}, {"Range": f"bytes=0-{len(held) - 1}"} if held else {}
        status, answer = self.put(told["key"], held, told["match"])
        if status == 200:
            _write_whole(place, json.dumps({**told, "done": answer}).encode() + b"\n")
        return status, answer, {}

    def _matches(self, key: str, match: str | None) -> bool:
        present = self.objects[key].generation if key in self.objects else 0
        return match is None or int(match) == present

    def _describe(self, key: str) -> dict[str, Any]:
        found = self.objects[key]
        bucket, _, name = key.partition("/")
        when = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(found.file.stat().st_mtime))
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": bucket,
            "generation": str(found.generation),
            "metageneration": "1",
            "size": str(found.size),
            "contentType": "application/octet-stream",
            "timeCreated": when,
            "updated": when,
        }


def _write_whole(place: Path, data: bytes) -> None:
    scratch = place.with_suffix(".new")
    scratch.write_bytes(data)
    os.replace(scratch, place)


def error(code: int, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}
