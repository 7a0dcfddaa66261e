"""One calm run of the micro curriculum, that every test of this folder compares with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ringworld.corpus import prose
from tests.system import flow


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of documents with something to learn in them."""
    folder = tmp_path_factory.mktemp("documents")
    for number in range(10):
        (folder / f"{number}.txt").write_text(prose(number, 60))
    return f"sources.text={folder}"


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory, sources: str) -> Path:
    """The root of a run that nobody disturbed."""
    root = tmp_path_factory.mktemp("calm")
    ended = flow.run(root, sources)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (root / "flow.log").write_text(ended.stdout + ended.stderr)
    return root


@pytest.fixture
def prepared(calm: Path, tmp_path: Path) -> Callable[..., Path]:
    """A fresh root in which everything but the named stages (and what depends on them) is done already."""

    def make(*missing: str) -> Path:
        skip = {*missing, *(f"evaluate-{stage}" for stage in missing)}
        root = tmp_path / "root"
        for stage in (calm / flow.RUN).iterdir():
            if stage.is_dir() and stage.name not in skip:
                shutil.copytree(stage, root / flow.RUN / stage.name)
        return root

    return make
