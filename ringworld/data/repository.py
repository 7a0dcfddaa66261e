"""The files of a repository in an order in which each follows what it imports, as far as there is one. Pure.

Reading in this order, what a file uses has been seen before. Only Python's imports are followed, and only to files that
are there; every other file stays where its path puts it.
"""

from __future__ import annotations

import ast
import posixpath
import warnings
from collections.abc import Iterator, Mapping, Sequence

_DESCRIPTIONS = ("METADATA", "PKG-INFO")


def imports_first(files: Mapping[str, str]) -> list[str]:
    """The paths of `files` (path to text), each after the files that it imports; otherwise by path.

    The description of a distribution comes first. A cycle is entered at the file whose path is the smallest, so of each
    cycle only imports back to files that wait for their own imports are not kept. A file that is no Python, or none of
    this version, imports nothing.
    """
    modules = _modules(files)
    imported = {path: sorted(_imports(path, text, modules)) for path, text in files.items() if path.endswith(".py")}
    ordered: list[str] = []
    seen: set[str] = set()
    for root in sorted(files, key=lambda path: (posixpath.basename(path) not in _DESCRIPTIONS, path)):
        if root in seen:
            continue
        seen.add(root)
        waiting = [(root, iter(imported.get(root, ())))]
        while waiting:
            path, rest = waiting[-1]
            found = next((other for other in rest if other not in seen), None)
            if found is None:
                ordered.append(path)
                waiting.pop()
            else:
                seen.add(found)
                waiting.append((found, iter(imported.get(found, ()))))
    return ordered


def _modules(files: Mapping[str, str]) -> dict[str, str]:
    """The path of each module by its dotted name."""
    found = {}
    for path in files:
        if path.endswith(".py"):
            name = path.removesuffix(".py").replace("/", ".")
            found[name.removesuffix(".__init__")] = path
    return found


def _imports(path: str, text: str, modules: Mapping[str, str]) -> set[str]:
    """The paths that a file imports by name; importing a submodule counts for it, not for the packages above it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old files
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    package = path.removesuffix(".py").replace("/", ".").split(".")[:-1]
    found = {modules[name] for node in ast.walk(tree) for name in _names(node, package, modules)}
    return found - {path}


def _names(node: ast.AST, package: Sequence[str], modules: Mapping[str, str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in modules)
    elif isinstance(node, ast.ImportFrom):
        above = package[: len(package) - node.level + 1] if node.level else []
        base = ".".join([*above, *(node.module or "").split(".")]).strip(".")
        for alias in node.names:
            name = f"{base}.{alias.name}"
            if name in modules:
                yield name
            elif base in modules:
                yield base
