"""Source specs become a sorted list of items to read; nothing is read here.

- A spec is a path, a glob or a folder (taken recursively), local or on gs://, or the word `installed`: one document per
  Python distribution of the environment, which is real, long text that every machine has.
- The same specs over the same files give the same list, whatever the order of specs or of the directory.
- A folder is taken without its hidden files and folders; what is no text is told apart by its bytes, when it is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from fsspec.core import url_to_fs

from ringworld.data.files import absolute
from ringworld.errors import UserError

INSTALLED = "installed"

# fmt: off
_DISTRIBUTION_SUFFIXES = frozenset({
    ".py", ".pyi", ".pyx", ".pxd", ".md", ".rst", ".txt", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hh", ".hpp",
    ".rs", ".go", ".java", ".js", ".ts", ".proto",
})
# fmt: on
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True, order=True)
class SourceFile:
    """A file to read: `name` is its absolute path or URL, `bytes` its size on storage."""

    name: str
    bytes: int


@dataclass(frozen=True, order=True)
class Distribution:
    """An installed Python distribution: one document made of its text files. `bytes` bounds what is taken of it."""

    name: str
    bytes: int

    @property
    def source(self) -> str:
        return f"{INSTALLED}:{self.name}"


Item = SourceFile | Distribution


def expand(specs: Iterable[str], installed_bytes: int) -> list[Item]:
    """Every item that the specs name, each once: files sorted by name, then distributions sorted by name.

    Raises UserError for a path that does not exist, an empty folder, a glob that matches no file, or no specs at all.
    """
    specs = list(specs)
    if not specs:
        raise UserError(f"sources=[]: name paths, globs, folders, or {INSTALLED!r} for the installed Python packages")
    files: set[SourceFile] = set()
    distributions: list[Distribution] = []
    for spec in specs:
        if spec == INSTALLED:
            distributions = _distributions(installed_bytes)
        else:
            files.update(_files(spec))
    return [*sorted(files), *distributions]


def distribution_files(name: str) -> list[tuple[str, Path]]:
    """The text files of an installed distribution, as (path inside it, where it lies), sorted by path.

    Its README is in METADATA; the rest of its dist-info folder, compiled files and data are left out.
    """
    found = {}
    for file in metadata.distribution(name).files or []:
        path = file.as_posix()
        if ".." in file.parts or "__pycache__" in file.parts:
            continue
        if ".dist-info/" in path or ".egg-info/" in path:
            if file.name not in ("METADATA", "PKG-INFO"):
                continue
        elif file.suffix not in _DISTRIBUTION_SUFFIXES:
            continue
        found[path] = Path(str(file.locate()))
    return sorted(found.items())


def _distributions(installed_bytes: int) -> list[Distribution]:
    names = {re.sub(r"[-_.]+", "-", found.name).lower() for found in metadata.distributions() if found.name}
    return [Distribution(name, installed_bytes) for name in sorted(names)]


def _files(spec: str) -> list[SourceFile]:
    filesystem, path = url_to_fs(absolute(spec))
    local = "://" not in spec

    def named(found: str) -> str:
        return found if local else filesystem.unstrip_protocol(found)

    if filesystem.isfile(path):
        return [SourceFile(named(path), filesystem.size(path) or 0)]
    if filesystem.isdir(path):
        prefix = path.rstrip("/") + "/"
        found = {
            name: entry
            for name, entry in filesystem.find(path, detail=True).items()
            if not any(part.startswith(".") for part in name.removeprefix(prefix).split("/"))
        }
        if not found:
            raise UserError(f"sources: the folder {spec!r} holds no files; put documents there or name another folder")
    elif _GLOB.search(spec):
        found = {n: e for n, e in filesystem.glob(path, detail=True).items() if e["type"] == "file"}
        if not found:
            raise UserError(f"sources: the glob {spec!r} matches no file; quote it, and use ** to look in subfolders")
    else:
        raise UserError(f"sources: {spec!r} does not exist; give a file, a folder, a glob, or {INSTALLED!r}")
    return [SourceFile(named(name), entry["size"] or 0) for name, entry in found.items()]
