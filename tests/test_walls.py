"""The walls of the house: imports run one way, and ringworld runs without Ray, MLflow and OmegaConf."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("flows", "stages", "actors", "infra", "ringworld")
# room -> what it may import of the house and, of the libraries that divide it, which it may not
MAY = {
    "flows": {"flows", "stages", "actors", "infra", "ringworld"},
    "stages": {"stages", "actors", "infra", "ringworld"},
    "actors": {"actors", "infra"},
    "infra": {"infra"},
    "ringworld": {"ringworld"},
}
MUST_NOT = {
    "ringworld": {"ray", "mlflow", "omegaconf"},
    "infra": {"ray", "jax", "flax"},
    "actors": {"jax", "flax"},
    "stages": {"mlflow", "omegaconf"},
    "flows": {"jax", "mlflow", "omegaconf"},
}


def imports(file: Path) -> set[str]:
    """First names of everything a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.add(str(node.module).partition(".")[0])
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for file in files:
        found = imports(file)
        assert found & set(ROOMS) <= MAY[room], f"{file.relative_to(ROOT)} imports {found & set(ROOMS) - MAY[room]}"
        assert not found & MUST_NOT[room], f"{file.relative_to(ROOT)} imports {found & MUST_NOT[room]}"


def test_ringworld_runs_where_ray_mlflow_and_omegaconf_are_not_installed():
    code = """
import importlib, pkgutil, sys
for name in ("ray", "mlflow", "omegaconf", "flows", "stages", "actors", "infra"):
    sys.modules[name] = None  # an import of it raises ImportError
import ringworld
for module in pkgutil.walk_packages(ringworld.__path__, "ringworld."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
    bare = {"JAX_PLATFORMS": "cpu", "PATH": ""}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120, env=bare)
