"""Places that are no local folder: what fails there is said for what it is, and files that grow are whole."""

from __future__ import annotations

import time
from typing import Any

import fsspec
import pytest

from ringworld.data import files, lines
from ringworld.data.files import StorageSilent, exists, list_folder, open_to_read, read_if_there, write_bytes
from ringworld.data.lines import LineFile
from ringworld.data.readers import ReadOptions, read
from ringworld.data.sources import SourceFile


@pytest.fixture
def bucket() -> str:
    fsspec.filesystem("memory").store.clear()
    return "memory://bucket"


class Silent:
    """A file system whose server is away."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def open(self, path: str, mode: str) -> Any:
        raise self._error

    def info(self, path: str) -> Any:
        raise self._error


def test_a_server_that_is_away_is_no_damaged_document_and_no_missing_file(monkeypatch: pytest.MonkeyPatch):
    for error in (TimeoutError("no answer"), ConnectionResetError("reset")):
        monkeypatch.setattr(files, "url_to_fs", lambda place, error=error: (Silent(error), place))
        with pytest.raises(StorageSilent, match=r"gs://bucket/a\.txt"):
            list(read(SourceFile("gs://bucket/a.txt", 5), ReadOptions()))
        with pytest.raises(StorageSilent):
            exists("gs://bucket/a.txt")
    monkeypatch.setattr(files, "url_to_fs", lambda place: (Silent(OSError("Forbidden: gs://bucket/a.txt")), place))
    with pytest.raises(OSError, match="Forbidden"):
        open_to_read("gs://bucket/a.txt")


def test_a_file_of_lines_in_a_bucket_is_rewritten_by_itself_and_whole_after_flush(
    bucket: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lines, "REWRITE_SECONDS", 0.01)
    file = LineFile(f"{bucket}/progress.jsonl", ["1\n"])
    assert read_if_there(f"{bucket}/progress.jsonl") == b"1\n"
    file.append("2\n")
    end = time.monotonic() + 20
    while read_if_there(f"{bucket}/progress.jsonl") != b"1\n2\n":
        assert time.monotonic() < end
        time.sleep(0.01)
    monkeypatch.setattr(lines, "REWRITE_SECONDS", 3600.0)
    for number in range(3, 6):
        file.append(f"{number}\n")
    file.flush()
    assert read_if_there(f"{bucket}/progress.jsonl") == b"1\n2\n3\n4\n5\n"


def test_storage_that_fails_holds_up_nobody_until_the_lines_must_be_there(
    bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    file = LineFile(f"{bucket}/progress.jsonl", [])

    def refuse(place: str, data: bytes) -> None:
        raise TimeoutError("away")

    monkeypatch.setattr(lines, "write_whole", refuse)
    file.append("1\n")
    with pytest.raises(TimeoutError):
        file.flush()
    monkeypatch.undo()
    file.flush()
    assert read_if_there(f"{bucket}/progress.jsonl") == b"1\n"


def test_a_folder_of_a_bucket_lists_what_lies_in_it(bucket: str):
    write_bytes(f"{bucket}/a/1/x", b"1")
    write_bytes(f"{bucket}/a/y", b"2")
    assert list_folder(f"{bucket}/a") == ["1", "y"]
    assert list_folder(f"{bucket}/none") == []
    assert exists(f"{bucket}/a/y")
    assert not exists(f"{bucket}/a/z")
