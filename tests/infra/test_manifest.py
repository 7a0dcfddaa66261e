"""The manifest: strict reading, and a commit that happens once and only over complete files."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra import manifest as manifests
from infra.errors import UserError
from infra.manifest import FileEntry, InputRef, Manifest, Provenance
from infra.storage import Store

ORIGIN = Provenance(
    "abc", {"jax": "1"}, "host", "2026-01-01T00:00:00.000+00:00", "2026-01-01T00:00:01.000+00:00", 1.0, 2
)
EXAMPLE = Manifest(
    stage="a",
    kind="number",
    code_version=1,
    fingerprint="f" * 64,
    recipe={"value": 1, "rope": {"theta": 1e4}},
    inputs={"source": InputRef("p", "0" * 64)},
    files=(FileEntry("out.bin", 3), FileEntry("deep/er.bin", 0)),
    values={"loss": 5.5, "table": [[1, 2]]},
    attempt=1,
    series=1,
    provenance=ORIGIN,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path), "tiny")
    folder = Path(store.attempt_url("a", 1))
    (folder / "deep").mkdir(parents=True)
    (folder / "out.bin").write_bytes(b"abc")
    (folder / "deep" / "er.bin").write_bytes(b"")
    return store


def test_what_is_written_reads_back_equal(store: Store):
    manifests.commit(store, EXAMPLE)
    found = manifests.load(store, "a")
    assert found is not None
    assert found[0] == EXAMPLE
    assert manifests.load(store, "b") is None


def test_every_truncation_is_an_error_that_names_the_file():
    text = EXAMPLE.to_json().rstrip()
    for length in range(len(text)):
        with pytest.raises(UserError, match=r"/x/manifest\.json"):
            Manifest.from_json(text[:length], "/x/manifest.json")


def _without_seconds(data: dict[str, Any]) -> None:
    del data["provenance"]["seconds"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: data.update(schema=2), "schema 2"),
        (lambda data: data.update(extra=1), "extra"),
        (lambda data: data.pop("files"), "lacks files"),
        (lambda data: data.update(attempt="1"), "attempt"),
        (lambda data: data.update(attempt=True), "attempt"),
        (lambda data: data.update(files=[{"path": "x"}]), "lacks bytes"),
        (lambda data: data.update(inputs={"p": "x"}), "inputs.p"),
        (_without_seconds, "seconds"),
    ],
)
def test_a_foreign_file_is_an_error_that_says_what_is_wrong(spoil: Any, said: str):
    data = json.loads(EXAMPLE.to_json())
    spoil(data)
    with pytest.raises(UserError, match=said):
        Manifest.from_json(json.dumps(data), "m")


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"\xff\xfe", b"{}"])
def test_what_is_no_manifest_at_all_is_an_error(text: bytes):
    with pytest.raises(UserError, match="not a manifest"):
        Manifest.from_json(text, "m")


@pytest.mark.parametrize(
    ("entry", "said"), [(FileEntry("gone.bin", 1), "is missing"), (FileEntry("out.bin", 4), "has 3 bytes")]
)
def test_nothing_is_committed_over_a_missing_or_short_file(store: Store, entry: FileEntry, said: str):
    with pytest.raises(UserError, match=said):
        manifests.commit(store, replace(EXAMPLE, files=(entry,)))
    assert manifests.load(store, "a") is None


@pytest.mark.parametrize("path", ["/etc/passwd", "../1/x", "deep/../out.bin", "./out.bin", "deep//er.bin", "gone"])
def test_only_files_inside_the_attempt_can_be_listed(store: Store, path: str):
    with pytest.raises(UserError, match="lists"):
        manifests.describe(store, "a", 1, [path])


def test_of_many_commits_at_once_exactly_one_wins(store: Store):
    barrier, won, lost = threading.Barrier(8), [], []

    def attempt(number: int) -> None:
        barrier.wait()
        try:
            manifests.commit(store, replace(EXAMPLE, values={"by": number}))
            won.append(number)
        except UserError:
            lost.append(number)

    threads = [threading.Thread(target=attempt, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(lost) == 7
    found = manifests.load(store, "a")
    assert found is not None
    assert found[0].values == {"by": won[0]}


def test_a_forced_commit_replaces_only_the_manifest_that_was_read(store: Store):
    manifests.commit(store, EXAMPLE)
    found = manifests.load(store, "a")
    assert found is not None
    manifests.commit(store, replace(EXAMPLE, values={"second": 1}), replacing=found[1])
    with pytest.raises(UserError, match="another driver"):
        manifests.commit(store, replace(EXAMPLE, values={"third": 1}), replacing=found[1])
    now = manifests.load(store, "a")
    assert now is not None
    assert now[0].values == {"second": 1}


def test_a_manifest_in_the_wrong_folder_is_an_error(store: Store):
    store.create("b/manifest.json", EXAMPLE.to_json().encode())
    with pytest.raises(UserError, match="manifest of stage 'a'"):
        manifests.load(store, "b")
