"""Source specs become a sorted list of items to read; nothing is read here.

- A spec is a path, a glob or a folder (taken recursively), local or on gs://, or the word `installed`: one document per
  Python distribution of the environment, which is real, long text that every machine has.
- The same specs over the same files give the same list, whatever the order of specs or of the directory.
- A folder is taken without its hidden files and folders; what is no text is told apart by its bytes, when it is read.
- An item belongs to one domain, under whose name its documents are counted and mixed.
- The kind of text that an item holds (prose, web or code) is told by its name; how to clean it may depend on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Literal

from fsspec.core import url_to_fs

from ringworld.data.files import absolute
from ringworld.data.html import SUFFIXES as HTML_SUFFIXES
from ringworld.errors import UserError

INSTALLED = "installed"

# fmt: off
_DISTRIBUTION_SUFFIXES = frozenset({
    ".py", ".pyi", ".pyx", ".pxd", ".md", ".rst", ".txt", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hh", ".hpp",
    ".rs", ".go", ".java", ".js", ".ts", ".proto",
})
_CODE_SUFFIXES = (_DISTRIBUTION_SUFFIXES - {".md", ".rst", ".txt"}) | frozenset({
    ".asm", ".bash", ".bat", ".clj", ".cs", ".css", ".cxx", ".dart", ".el", ".erl", ".ex", ".f90", ".fs", ".groovy",
    ".hs", ".hxx", ".ipynb", ".jl", ".jsx", ".kt", ".lisp", ".lua", ".m", ".mjs", ".ml", ".nim", ".php", ".pl", ".ps1",
    ".r", ".rb", ".s", ".scala", ".scss", ".sh", ".sql", ".sv", ".swift", ".toml", ".tsx", ".v", ".vhd", ".vue", ".xml",
    ".yaml", ".yml", ".zig",
})
# fmt: on
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True, order=True)
class SourceFile:
    """A file to read: `name` is its absolute path or URL, `bytes` its size on storage."""

    name: str
    bytes: int
    domain: str = ""

    @property
    def source(self) -> str:
        return self.name


@dataclass(frozen=True, order=True)
class Distribution:
    """An installed Python distribution: one document made of its text files. `bytes` bounds what is taken of it."""

    name: str
    bytes: int
    domain: str = ""

    @property
    def source(self) -> str:
        return f"{INSTALLED}:{self.name}"


Item = SourceFile | Distribution
Kind = Literal["prose", "web", "code"]
KINDS: tuple[Kind, ...] = ("prose", "web", "code")


def kind_of(name: str) -> Kind:
    """By the last suffix of a file's name, compression left out: prose where nothing says otherwise."""
    path = PurePosixPath(name.lower())
    suffix = path.with_suffix("").suffix if path.suffix in (".gz", ".zst") else path.suffix
    if suffix in HTML_SUFFIXES:
        return "web"
    return "code" if suffix in _CODE_SUFFIXES else "prose"


def expand_domains(domains: Mapping[str, Iterable[str]], installed_bytes: int) -> list[Item]:
    """The items of every domain, by domain, each as `expand` has them.

    Raises UserError naming the domain for what `expand` refuses, and for an item that two domains name.
    """
    items: list[Item] = []
    owner: dict[str, str] = {}
    for domain in sorted(domains):
        try:
            found = expand(domains[domain], installed_bytes)
        except UserError as wrong:
            raise UserError(f"domain {domain!r}: {wrong}") from None
        for item in found:
            if (other := owner.setdefault(item.source, domain)) != domain:
                raise UserError(
                    f"{item.source} is in the domains {other!r} and {domain!r}; a document has one: take it out of the "
                    f"other (out of 'text' by sources.text=[])"
                )
            items.append(replace(item, domain=domain))
    return items


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


def distribution_license(name: str) -> str | None:
    """What an installed distribution states: an SPDX expression, or the name of its licence; None for a whole text."""
    stated = metadata.metadata(name)
    for key in ("License-Expression", "License"):
        found = (stated[key] or "").strip() if key in stated else ""
        if found and "\n" not in found and found.upper() != "UNKNOWN":
            return found
    classified = [
        line.split(" :: ")[-1] for line in stated.get_all("Classifier") or () if line.startswith("License ::")
    ]
    return ", ".join(classified) or None


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
