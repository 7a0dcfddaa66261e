"""The command line of the status: what it reads, how it ends, and that it starts at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flows.status import Arguments, main, parse
from infra.errors import UserError
from infra.outline import Outline, Outlined, write_outline
from infra.storage import Store

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def root(tmp_path: Path) -> str:
    store = Store(str(tmp_path), "2026")
    stage = Outlined("text-1k", "train", "ab" * 32, steps=10, step_tokens=512, step_flops=1e9, step_seconds=2.0)
    write_outline(store, Outline("2026", "tiny", "python flows/full_curriculum.py", 1.0, (stage,)))
    return f"root={tmp_path}"


def test_words_are_checked():
    assert parse(["run=2026", "watch=true", "every=2"]) == Arguments(run="2026", watch=True, every=2.0)
    for word in ("rum=tiny", "watch=maybe", "every=0", "run"):
        with pytest.raises(UserError, match=word.partition("=")[0]):
            parse([word])


def test_it_ends_as_the_run_stands(root: str, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main([root, "run=2026", f"json={tmp_path / 'status.json'}"]) == 0
    assert "text-1k" in capsys.readouterr().out
    assert json.loads((tmp_path / "status.json").read_text())["seconds_left"] == 20.0
    store = Store(root.partition("=")[2], "2026")
    store.claim_series("text-1k", "ab" * 32)
    store.claim_attempt("text-1k", {"series": 1})
    store.write_text("user: step 3: loss=nan, gradient norm=nan\n", "text-1k", "attempt-1", "error.txt")
    assert main([root, "run=2026", "failures=true"]) == 1
    assert "lower learning_rate" in capsys.readouterr().out
    assert main([root, "run=2027"]) == 2
    assert "run=" in capsys.readouterr().err


def test_it_needs_neither_jax_nor_ray_and_starts_at_once(root: str):
    code = (
        "import runpy, sys; sys.argv = ['status.py', *sys.argv[1:]]\n"
        "try: runpy.run_path('flows/status.py', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "assert not {'jax', 'ray', 'mlflow', 'stages'} & set(sys.modules)\n"
        "import resource; assert resource.getrusage(resource.RUSAGE_SELF).ru_utime < 3"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, root, "run=2026", "json=-"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["stages"][0]["state"] == "waiting"
