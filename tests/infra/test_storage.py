"""Storage: absolute names, conditional writes, listings."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.storage import Store, Version


def test_a_relative_root_stays_where_it_was_when_the_process_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    store = Store("runs", "tiny")
    monkeypatch.chdir("/")
    assert store.create("a/x.json", b"1") is not None
    assert (tmp_path / "runs/tiny/a/x.json").read_bytes() == b"1"
    assert store.url("a", "x.json") == str(tmp_path / "runs/tiny/a/x.json")


@pytest.mark.parametrize(
    ("root", "url"),
    [
        ("gs://bucket/runs/", "gs://bucket/runs/tiny/a/attempt-2"),
        ("gs://bucket", "gs://bucket/tiny/a/attempt-2"),
        ("file:///x", "/x/tiny/a/attempt-2"),
    ],
)
def test_urls(root: str, url: str):
    assert Store(root, "tiny").attempt_url("a", 2) == url


@pytest.mark.parametrize(("root", "run"), [("s3://b/x", "r"), ("gs://", "r"), ("x", "../y"), ("x", ""), ("x", ".hid")])
def test_a_place_that_cannot_be_used_is_refused(root: str, run: str):
    with pytest.raises(UserError, match=r"root=|run="):
        Store(root, run)


def test_create_writes_once_and_replace_only_over_what_was_read(tmp_path: Path):
    store = Store(str(tmp_path), "r")
    first = store.create("k", b"1")
    assert first is not None
    assert store.create("k", b"2") is None
    second = store.replace("k", b"3", first)
    assert second is not None
    assert second != first
    assert store.replace("k", b"4", first) is None
    found = store.read("k")
    assert found is not None
    assert (found.data, found.version) == (b"3", second)
    assert store.replace("k", b"5", Version(b"nonsense")) is None


def test_claims_of_attempts_at_once_are_all_different(tmp_path: Path):
    store, taken = Store(str(tmp_path), "r"), []
    threads = [threading.Thread(target=lambda: taken.append(store.claim_attempt("a", {"series": 1}))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, 9))
    assert store.attempts("a") == tuple(range(1, 9))
    assert store.attempts_of_series("a", 1) == 8
    assert store.attempts_of_series("a", 2) == 0


def test_series_are_listed_with_their_identities(tmp_path: Path):
    store = Store(str(tmp_path), "r")
    assert store.series("a") == ()
    assert store.claim_series("a", "f1") == 1
    assert store.claim_series("a", "f2") == 2
    store.make_folder(store.url("a", "state", "3"))
    store.make_folder(store.url("a", "state", "other"))
    assert store.series("a") == ((1, "f1"), (2, "f2"))
    assert store.claim_series("a", "f1") == 4


def test_files_are_listed_with_sizes_from_all_depths(tmp_path: Path):
    store = Store(str(tmp_path), "r")
    store.write_text("abc", "a", "attempt-1", "x.txt")
    store.write_text("", "a", "attempt-1", "d", "e", "y.txt")
    assert store.files(store.attempt_url("a", 1)) == {"x.txt": 3, "d/e/y.txt": 0}
    assert store.files(store.attempt_url("a", 2)) == {}
