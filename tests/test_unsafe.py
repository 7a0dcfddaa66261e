"""Nothing read from outside is unpickled, evaluated, unpacked to where it likes, or passed to a shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("flows", "stages", "actors", "infra", "ringworld")

# Modules whose business is to run what they read.
MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "runpy", "code", "codeop"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "os.system": "a shell",
    "os.popen": "a shell",
    "subprocess.getoutput": "a shell",
    "subprocess.getstatusoutput": "a shell",
    "asyncio.create_subprocess_shell": "a shell",
    "yaml.load": "use yaml.safe_load",
    "yaml.load_all": "use yaml.safe_load_all",
    "yaml.full_load": "use yaml.safe_load",
    "yaml.unsafe_load": "use yaml.safe_load",
    "torch.load": "unpickles",
    "pandas.read_pickle": "unpickles",
    "numpy.lib.format.read_array": "may unpickle",
    "shutil.unpack_archive": "writes wherever the archive says",
    "tempfile.mktemp": "a name that somebody else may take first",
    "ssl._create_unverified_context": "trusts everybody",
}
METHODS = {"extractall": "writes wherever the archive says", "read_pickle": "unpickles"}
KEYWORDS = {"shell": "a shell", "allow_pickle": "unpickles", "trust_remote_code": "runs what it downloads"}
NEVER_FALSE = {"verify": "trusts everybody", "weights_only": "unpickles"}


def unsafe(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what is wrong with it) of every import and call that could run what was read."""
    names: dict[str, str] = {}  # as written in this file -> in full
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
            found = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found = {str(node.module).partition(".")[0]}
        else:
            continue
        yield from ((node.lineno, f"imports {name}") for name in found & MODULES)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = full_name(node.func, names)
            if name in BUILTINS or name in CALLS:
                yield node.lineno, f"{name}: {CALLS.get(name, 'evaluates')}"
            if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
                yield node.lineno, f"{node.func.attr}: {METHODS[node.func.attr]}"
            for word in node.keywords:
                value = word.value.value if isinstance(word.value, ast.Constant) else None
                if word.arg in KEYWORDS and value is not False:
                    yield node.lineno, f"{word.arg}: {KEYWORDS[word.arg]}"
                if word.arg in NEVER_FALSE and value is False:
                    yield node.lineno, f"{word.arg}=False: {NEVER_FALSE[word.arg]}"


def full_name(node: ast.expr, names: dict[str, str]) -> str:
    """`np.lib.format` as `numpy.lib.format`; empty for what is not a plain dotted name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (before := full_name(node.value, names)):
        return f"{before}.{node.attr}"
    return ""


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_from_outside_is_unpickled_evaluated_unpacked_or_passed_to_a_shell(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    found = [
        f"{file.relative_to(ROOT)}:{line} {what}"
        for file in files
        for line, what in unsafe(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from cloudpickle import loads", "eval(text)", "__import__(name)",
        "import os as o; o.system(x)", "from os import popen; popen(x)", "run(x, shell=flag)",
        "import subprocess; subprocess.run(x, shell=True)", "import yaml; yaml.load(x, Loader=yaml.Loader)",
        "import numpy as np; np.load(x, allow_pickle=True)", "import torch; torch.load(x)",
        "from tarfile import open; open(x).extractall(y)", "load(x, weights_only=False)",
        "from_pretrained(x, trust_remote_code=True)", "get(x, verify=False)",
    ],
)  # fmt: skip
def test_each_rule_finds_what_it_is_for(line: str) -> None:
    assert list(unsafe(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        "import yaml; yaml.safe_load(x)",
        "subprocess.run(x, shell=False)",
        "re.compile(x)",
        "np.load(x, allow_pickle=False)",
    ],
)
def test_what_is_safe_passes(line: str) -> None:
    assert not list(unsafe(ast.parse(line)))
