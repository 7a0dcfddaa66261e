"""Secrets planted wherever a run could meet them are found nowhere in what it leaves, prints or serves."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.system import flow

# What people and programs read of a run; all of it must have been there to be searched.
READ = (
    r"manifest\.json", r"trainer-0\.log", r"job\.yaml", r"progress\.jsonl", r"mlflow\.db", r"mlflow-artifacts/",
    r"report\.html", r"sessions/", r"gangs/", r"flow\.log",
)  # fmt: skip


def run(root: Path, environment: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        flow.command(root, *words), cwd=flow.REPOSITORY, env={**flow.environment(), **environment},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def files(root: Path) -> Iterator[tuple[str, bytes]]:
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            yield str(path.relative_to(root)), path.read_bytes()


def found(root: Path, canaries: list[str]) -> list[str]:
    """Where any of them is, in the names and in the bytes of files."""
    return [
        f"{name}: {canary}"
        for name, data in files(root)
        for canary in canaries
        if canary.encode() in data or canary in name
    ]


def canaries(environment: Mapping[str, str]) -> list[str]:
    return [word for value in environment.values() for word in re.findall(r"canary\w+", value)]


def test_a_run_leaves_no_secret_of_its_environment_anywhere(calm: Path) -> None:
    names = {name for name, _ in files(calm)}
    for kind in READ:
        assert any(re.search(kind, name) for name in names), f"no {kind} among {sorted(names)}"
    assert len(canaries(flow.PLANTED)) == len(flow.PLANTED)
    assert not found(calm, canaries(flow.PLANTED))


def test_the_password_of_a_tracking_server_that_is_down_is_not_repeated(
    prepared: Callable[..., Path], sources: str
) -> None:
    root = prepared()
    uri = f"http://writer:{flow.canary()}@127.0.0.1:9/ml"
    ended = run(root, {"MLFLOW_TRACKING_URI": uri, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}, sources)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    assert "127.0.0.1:9" in ended.stdout + ended.stderr, "the run said nothing of the server"
    (root / "printed.txt").write_text(ended.stdout + ended.stderr)
    assert not found(root, canaries({"MLFLOW_TRACKING_URI": uri}))


@pytest.mark.parametrize(
    "word",
    ["sources.text=https://reader:{}@host/books.txt", "sources.text='gs://bucket/books.txt?access_token={}'",
     "root=ftp://me:{}@host/runs", "placement.questions.openai.base_url=http://me:{}@host/v1", "hf_token={}"],
)  # fmt: skip
def test_a_command_line_with_a_secret_in_it_is_refused_without_repeating_it(tmp_path: Path, word: str) -> None:
    planted = flow.canary()
    ended = run(tmp_path, {}, word.format(planted))
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert planted not in ended.stdout + ended.stderr
    assert not found(tmp_path, [planted])
