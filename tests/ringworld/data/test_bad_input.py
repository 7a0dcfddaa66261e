"""What the world puts into folders of sources: broken, hostile and huge files end as documents and named reasons."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from ringworld.data import readers
from ringworld.data.encoding import decode
from ringworld.data.parquet_pages import largest_page
from ringworld.data.readers import RawDocument, ReadOptions, read
from ringworld.data.sources import SourceFile, expand, expand_domains, kind_of
from ringworld.errors import UserError

THREE_BILLION = 3_000_000_000


def read_file(path: Path, **options: Any) -> list[RawDocument]:
    return list(read(SourceFile(str(path), path.stat().st_size), ReadOptions(**options)))


def said(documents: list[RawDocument], root: Path) -> dict[str, str | None]:
    """By the name after the archive's: the text, or the reason."""
    return {document.source.removeprefix(f"{root}!"): document.text or document.reason for document in documents}


MEMBERS = {
    "a.txt": b"one text",
    "deep/b.md": "caf\u00e9".encode() * 20,
    "rows.jsonl.gz": gzip.compress(b'{"text": "row one", "license": "MIT"}\n{"text": 3}\n'),
    "page.html": b"<p>a page</p>",
    "zero.txt": b"",
    "noise.bin": bytes(range(256)) * 8,
    "cut.txt.gz": gzip.compress(b"x" * 10_000)[:20],
    "table.parquet": b"PAR1",
    "inner.zip": b"PK\x03\x04" + bytes(100),
    ".hidden": b"hidden",
    "__MACOSX/a.txt": b"attributes",
}
HOSTILE = ("../../etc/cron.d/x", "/etc/passwd", "a/../../b", "C:\\Windows\\x", "..\\..\\x")


def tar_of(path: Path, mode: Any) -> None:
    with tarfile.open(path, mode) as archive:
        for name, data in [*MEMBERS.items(), *((name, b"hostile") for name in HOSTILE)]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, kind in (("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("pipe", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)


def zip_of(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in [*MEMBERS.items(), *((name, b"hostile") for name in HOSTILE)]:
            archive.writestr(name, data)
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")


@pytest.mark.parametrize("name", ["t.tar", "t.tar.gz", "t.tgz", "t.tar.zst", "t.zip"])
def test_members_of_an_archive_are_documents_and_none_leaves_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "t.zip":
        zip_of(path)
    elif name == "t.tar.zst":
        tar_of(tmp_path / "t.tar", "w")
        path.write_bytes(zstandard.compress((tmp_path / "t.tar").read_bytes()))
    else:
        tar_of(path, "w:gz" if "gz" in name else "w")
    documents = read_file(path)
    found = said(documents, path)
    assert found.pop("deep/b.md") == "caf\u00e9" * 20
    links = ("link",) if name == "t.zip" else ("link", "hard", "pipe")
    assert found == {
        "a.txt": "one text",
        "rows.jsonl.gz#1": "row one",
        "rows.jsonl.gz#2": "not text",
        "page.html": "a page\n",
        "zero.txt": "empty",
        "noise.bin": "binary",
        "cut.txt.gz": "broken file",
        "table.parquet": "unreadable",
        "inner.zip": "binary",
        **dict.fromkeys((*HOSTILE, *links), "unsafe path"),
    }
    by_name = {document.source.rpartition("!")[2]: document for document in documents}
    assert by_name["rows.jsonl.gz#1"].license == "MIT"
    assert by_name["page.html"].kind == "web"


@pytest.mark.parametrize("name", ["t.tar", "t.tar.gz", "t.zip"])
def test_a_truncated_archive_gives_what_is_whole_and_says_that_it_broke(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    texts = [bytes([97 + number]) * 50_000 + json.dumps(list(range(number, 9000))).encode() for number in range(4)]
    if name == "t.zip":
        with zipfile.ZipFile(path, "w") as archive:
            for number, text in enumerate(texts):
                archive.writestr(f"{number}.txt", text)
    else:
        with tarfile.open(path, "w:gz" if name.endswith("gz") else "w") as archive:  # type: ignore[call-overload]
            for number, text in enumerate(texts):
                info = tarfile.TarInfo(f"{number}.txt")
                info.size = len(text)
                archive.addfile(info, io.BytesIO(text))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    documents = read_file(path)
    assert documents[-1].reason == "broken file"
    assert documents[-1].source.startswith(str(path))
    whole = [document for document in documents if document.text]
    assert len(whole) == (0 if name == "t.zip" else 2)  # a .zip's list of members is at its end


def test_a_locked_member_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "t.zip"
    zip_of(path)
    data = bytearray(path.read_bytes())
    for sign, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flags of the first member
        data[data.index(sign) + offset] |= 1
    path.write_bytes(data)
    assert next((found.reason, found.detail) for found in read_file(path)) == ("unreadable", "encrypted")


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["x" * 1000] * 1000}), path)
    path.write_bytes(path.read_bytes()[:-100])
    [document] = read_file(path)
    assert (document.source, document.reason) == (str(path), "broken file")


def test_a_file_in_two_encodings_comes_out_whole(tmp_path: Path) -> None:
    line = "Der Fluß führt über größere Höhen, und die Mädchen hören schöne Töne im Grünen.\n"
    mixed = (line * 20).encode("latin-1") + (line * 20).encode()
    assert decode(mixed) == line * 40


def test_links_that_lead_nowhere_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "self.txt").symlink_to(tmp_path / "self.txt")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "no such file")
    (tmp_path / "loop").symlink_to(tmp_path)
    items = expand([str(tmp_path)], 100)
    found = [document for item in items for document in read(item, ReadOptions())]
    assert [document.text for document in found if document.text] == ["text"]
    assert {document.reason for document in found} <= {None, "unreadable", "empty"}


@pytest.mark.parametrize("name", ["book.txt", "book.txt.gz", "rows.jsonl", "t.zip"])
def test_a_text_of_three_billion_characters_is_refused_by_name_and_never_held(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "book.txt.gz":
        # gzip's members follow one another: a small file that unpacks to all of it.
        path.write_bytes(gzip.compress(b"x" * 10_000_000) * (THREE_BILLION // 10_000_000))
    elif name == "t.zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("book.txt", "w") as member:
            for _ in range(30):
                member.write(b"x" * 1_000_000)
    else:
        path.touch()
        with path.open("r+b") as file:
            # Holes, of which storage holds nothing. A line is read to its end, so that one is shorter.
            file.truncate(THREE_BILLION if name == "book.txt" else 200_000_000)
    tracemalloc.start()
    [document] = read_file(path, max_document_bytes=1 << 22)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert document.reason == "too large"
    assert document.source == {"rows.jsonl": f"{path}#1", "t.zip": f"{path}!book.txt"}.get(name, str(path))
    assert peak < 32 << 20


def test_a_parquet_page_that_is_too_large_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.parquet"
    monkeypatch.setattr(readers, "_PAGE_BYTES", 1 << 20)
    texts = ["small", "x" * (5 << 20), "also small"]
    pq.write_table(pa.table({"n": [1, 2, 3], "text": texts}), path, row_group_size=1, compression="zstd")
    before = pa.total_allocated_bytes()
    found = read_file(path, max_document_bytes=1000)
    assert [(document.source.rpartition("#")[2], document.text or document.reason) for document in found] == [
        ("1", "small"),
        ("2-2", "too large"),
        ("3", "also small"),
    ]
    assert pa.total_allocated_bytes() - before < 1 << 20


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_the_largest_page_is_found_in_the_headers(tmp_path: Path, version: Any) -> None:
    path = tmp_path / "t.parquet"
    texts = ["y" * 1000] * 500 + ["z" * 3_000_000] + [f"{number}" * 100 for number in range(5000)]
    pq.write_table(
        pa.table({"text": texts}), path, data_page_version=version, use_dictionary=False, write_batch_size=10,
        data_page_size=100_000,
    )  # fmt: skip
    with path.open("rb") as file:
        page = largest_page(file, pq.ParquetFile(path).metadata.row_group(0).column(0))
        assert 3_000_000 < page < 3_200_000
        file.seek(0)
        chunk = pq.ParquetFile(path).metadata.row_group(0).column(0)
        garbage = io.BytesIO(b"\xff" * path.stat().st_size)
        with pytest.raises(OSError, match="no page of text at byte"):
            largest_page(garbage, chunk)


def test_licenses_of_rows_are_kept(tmp_path: Path) -> None:
    licenses = ["MIT", None, "CC-BY-4.0"]
    pq.write_table(pa.table({"text": ["a", "b", "c"], "license": licenses}), tmp_path / "t.parquet")
    assert [document.license for document in read_file(tmp_path / "t.parquet")] == licenses
    pq.write_table(pa.table({"text": ["a"], "license": [["MIT", "BSD"]]}), tmp_path / "l.parquet")
    assert [document.license for document in read_file(tmp_path / "l.parquet")] == ["MIT, BSD"]
    rows = [{"text": "a", "license": "x" * 999}, {"text": "b", "license": 3}, {"text": "c", "license": " ISC "}]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [document.license for document in read_file(tmp_path / "r.jsonl")] == [None, None, "ISC"]


def test_domains_keep_their_items_apart(tmp_path: Path) -> None:
    for name in ("b/1.txt", "a/2.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("x")
    folders = {"books": [str(tmp_path / "b")], "code": [str(tmp_path / "a")]}
    items = expand_domains(folders, 100)
    assert [(item.domain, Path(item.name).name) for item in items] == [("books", "1.txt"), ("code", "2.py")]
    with pytest.raises(UserError, match=r"1\.txt is in the domains 'all' and 'books'; a document has one"):
        expand_domains(folders | {"all": [str(tmp_path)]}, 100)
    with pytest.raises(UserError, match=r"domain 'none': sources: .* does not exist"):
        expand_domains({"none": [str(tmp_path / "none")]}, 100)


def test_the_kind_of_a_text_is_told_by_its_name() -> None:
    kinds = {"a.txt": "prose", "a.PY": "code", "b/c.html.gz": "web", "rows.jsonl": "prose", "x": "prose", "m.c": "code"}
    assert {name: kind_of(name) for name in kinds} == kinds
