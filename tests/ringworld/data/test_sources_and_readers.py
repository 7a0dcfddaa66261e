"""Any file ends as documents or as a named reason."""

from __future__ import annotations

import gzip
import json
import random
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from ringworld.data.encoding import decode
from ringworld.data.readers import RawDocument, ReadOptions, read
from ringworld.data.sources import Distribution, SourceFile, distribution_files, expand
from ringworld.errors import UserError


def read_file(path: Path, **options: object) -> list[RawDocument]:
    return list(read(SourceFile(str(path), path.stat().st_size), ReadOptions(**options)))  # type: ignore[arg-type]


def one(path: Path, **options: object) -> RawDocument:
    [document] = read_file(path, **options)
    return document


def test_the_same_files_give_the_same_list_whatever_the_order_of_specs(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "sub/c.py", ".git/config", "sub/.hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    folder, glob = str(tmp_path), str(tmp_path / "*.txt")
    names = [Path(item.name).name for item in expand([folder, glob], 100)]
    assert names == ["a.md", "b.txt", "c.py"]
    assert expand([folder, glob], 100) == expand([glob, folder, f"{folder}/b.txt"], 100)


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [item.name for item in expand([str(tmp_path)], 100)].count(str(tmp_path / "a.txt")) == 1


@pytest.mark.parametrize(
    ("spec", "says"), [("", "holds no files"), ("*.txt", "matches no file"), ("none.txt", "does not exist")]
)
def test_a_spec_that_names_nothing_is_an_error_that_quotes_it(tmp_path: Path, spec: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        expand([str(tmp_path / spec)], 100)
    assert str(tmp_path / spec) in str(error.value)


def test_an_installed_distribution_is_one_document_of_whole_files_under_headings() -> None:
    assert Distribution("pytest", 50_000) in expand(["installed"], 50_000)
    [document] = read(Distribution("pytest", 50_000), ReadOptions())
    assert document.source == "installed:pytest"
    assert document.text is not None
    assert len(document.text.encode()) < 52_000
    paths = [path for path, _ in distribution_files("pytest")]
    headings = [line[2:] for line in document.text.splitlines() if line.startswith("# ") and line[2:] in paths]
    assert len(set(headings)) == len(headings)
    assert headings.index("_pytest/_code/source.py") < headings.index("_pytest/_code/__init__.py")  # which imports it
    assert document.detail == f"{len(paths) - len(headings) - _empty('pytest')} of {len(paths)} files left out"


def _empty(name: str) -> int:
    return sum(where.stat().st_size == 0 for _, where in distribution_files(name))


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("latin-1", "Der Fluß führt über größere Höhen, und die Mädchen hören Töne. "),
        ("cp1252", "It\u2019s a “quoted” text — with dashes… and a naïve café. "),
        ("cp1251", "Все счастливые семьи похожи друг на друга. "),  # noqa: RUF001
        ("shift_jis", "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n"),
        ("utf-16", "Call me Ishmael. "),
        ("utf-16-le", "Call me Ishmael. "),
        ("utf-8-sig", "naïve "),
    ],
)
def test_encodings_are_detected(encoding: str, text: str) -> None:
    assert decode((text * 50).encode(encoding)) == text * 50


def test_a_latin_1_word_far_down_a_plain_file_is_found() -> None:
    text = "plain words and more of them. " * 10_000 + "\nThe café is closed.\n" + "plain words. " * 10_000
    assert decode(text.encode("latin-1")) == text


def test_a_few_broken_bytes_do_not_spoil_utf_8() -> None:
    data = ("Příliš žluťoučký kůň. " * 200).encode()
    assert (decode(data[:300] + b"\xff" + data[300:]) or "").count("žluťoučký") >= 199


def test_broken_files_are_reasons(tmp_path: Path) -> None:
    noise = random.Random(0).randbytes(100_000)
    text = json.dumps({"text": "x" * 500}).encode() + b"\n"
    files = {
        "zero.txt": (b"", "empty"),
        "noise.txt": (noise, "binary"),
        "noise": (noise.replace(b"\0", b"\1"), "binary"),
        "page.pdf": (b"%PDF-1.7 text only", "binary"),
        "cut.txt.gz": (gzip.compress(noise)[:-50_000], "broken file"),
        "cut.txt.zst": (zstandard.compress(noise)[:-50_000], "broken file"),
        "fake.jsonl.gz": (text, "broken file"),
        "cut.parquet": (b"PAR1" + noise, "broken file"),
        "numbers.jsonl": (b'{"text": 3}\n', "not text"),
        "other.jsonl": (b'{"body": "x"}\n', "no such field"),
        "line.jsonl": (b'{"text": "x\n', "broken row"),
        "deep.jsonl": (b"[" * 200_000 + b"\n", "broken row"),
        "large.txt": (b"x" * 200_001, "too large"),
        "bomb.txt.gz": (gzip.compress(b"x" * 200_001), "too large"),
    }
    for name, (data, reason) in files.items():
        (tmp_path / name).write_bytes(data)
        document = one(tmp_path / name, max_document_bytes=200_000)
        assert (document.text, document.reason) == (None, reason), (name, document)
        assert document.source.startswith(str(tmp_path / name))
    [gone] = read(SourceFile(str(tmp_path / "gone.txt"), 5), ReadOptions())
    assert gone.reason == "unreadable"


def test_rows_before_the_break_of_a_truncated_file_are_read(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"{row} " + random.Random(row).randbytes(200).hex()}) for row in range(2000)]
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode())[:-100_000])
    documents = read_file(tmp_path / "rows.jsonl.gz")
    good = [document for document in documents if document.reason is None]
    assert 100 < len(good) < 2000
    assert good[99].source.endswith("rows.jsonl.gz#100")
    assert documents[-1].reason in ("broken file", "broken row")
    assert len(documents) == len(good) + 1


def test_one_broken_line_costs_one_document(tmp_path: Path) -> None:
    lines = [b'{"body": "one"}', b'{"body": ', b'{"body": "' + b"x" * 500 + b'"}', b"", b'{"body": "two"}']
    for name, packed in (("a.jsonl", lines), ("a.jsonl.zst", None)):
        data = b"\n".join(lines)
        (tmp_path / name).write_bytes(data if packed else zstandard.compress(data))
        found = read_file(tmp_path / name, field="body", max_document_bytes=100)
        assert [document.text or document.reason for document in found] == ["one", "broken row", "too large", "two"]
        assert found[-1].source.endswith("#5")


def test_parquet_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    strings = pa.array(["one", None, "three"])
    pq.write_table(pa.table({"body": strings, "n": [1, 2, 3], "d": strings.dictionary_encode()}), path)
    for column in ("body", "d"):
        found = read_file(path, column=column)
        assert [document.text or document.reason for document in found] == ["one", "empty", "three"]
    assert one(path, column="n").reason == "not text"
    wrong = one(path, column="text")
    assert (wrong.reason, wrong.detail) == ("no such field", "no column 'text'; has: body, n, d")


def test_html_is_what_a_reader_sees(tmp_path: Path) -> None:
    page = "<html><head><title>t</title><script>no()</script></head>"
    page += "<body><h1>A</h1><p>caf\xe9 <b>b</b>c</p><p>d</p></body>"
    (tmp_path / "p.html").write_bytes(page.replace("<head>", '<head><meta charset="latin-1">').encode("latin-1"))
    assert (one(tmp_path / "p.html").text or "").split("\n") == ["A", "café bc", "d", ""]


def test_fifty_megabytes_in_one_line_take_seconds(tmp_path: Path) -> None:
    (tmp_path / "line.txt").write_bytes(b"caf\xe9 au lait " * (50_000_000 // 13))
    began = time.monotonic()
    text = one(tmp_path / "line.txt").text
    assert text is not None
    assert text.startswith("café au lait")
    assert time.monotonic() - began < 10
