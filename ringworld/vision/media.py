"""Sources of images and videos to clips: what specs name, and what each of them holds. Reads no pixels.

- A spec is a path, a glob or a folder (taken recursively), local or on gs://, or the word `installed`.
- A folder may hold loose files, each with a caption in a .txt, .caption or .json of its name beside it; files of rows
  (captions.jsonl, metadata.jsonl, any .jsonl) that name files and what is said of them; WebDataset tars; Parquet
  tables. A file that rows name is a clip for each of these rows, and once more by itself only with a text beside it.
- `find` lists: loose clips, and the files that hold many (tars, tables) for `read` to open, each wherever it runs.
- `contents` gives the bytes of clips again, for whoever has only their records.
- Whatever is no clip is a `Missed`, with a reason.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from ringworld.data.conversations import FIELDS
from ringworld.data.encoding import decode
from ringworld.data.files import open_to_read
from ringworld.data.readers import read_rows
from ringworld.data.sources import INSTALLED, SourceFile, expand
from ringworld.errors import UserError
from ringworld.vision.clips import Clip, Content, Missed, SourceOptions, kind_by_name
from ringworld.vision.installed import installed_clips
from ringworld.vision.pixels import Refused
from ringworld.vision.rows import EXTRA, Said, caption_of, place_of, said
from ringworld.vision.tables import SUFFIX as TABLE
from ringworld.vision.tables import table_clips, table_contents
from ringworld.vision.tars import SUFFIXES as TARS
from ringworld.vision.tars import tar_clips, tar_contents

_ROWS = (".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zst", ".ndjson.gz", ".ndjson.zst")
_BESIDE = (".txt", ".caption", ".json")
_BESIDE_BYTES = 1 << 20

Item = Clip | SourceFile


def find(specs: Iterable[str], options: SourceOptions) -> tuple[list[Item], list[Missed]]:
    """Loose clips sorted by name, then files that hold many; and what is named and is neither.

    Files of rows are read here: their rows are held, without any media. Raises UserError for a path that does not
    exist, an empty folder, a glob that matches nothing, or no specs.
    """
    specs = list(specs)
    if not specs:
        raise UserError(
            f"sources=[]: name paths, globs, folders, or {INSTALLED!r} for what Python packages bring along"
        )
    clips: list[Clip] = []
    missed: list[Missed] = []
    holders: list[SourceFile] = []
    loose: list[SourceFile] = []
    texts: list[str] = []
    if INSTALLED in specs:
        for found in installed_clips():
            clips.append(found) if isinstance(found, Clip) else missed.append(found)
    paths = [spec for spec in specs if spec != INSTALLED]
    for item in expand(paths, 0) if paths else []:
        assert isinstance(item, SourceFile)
        name = item.name.lower()
        if name.endswith(_ROWS):
            for found in _of_rows(item, options):
                clips.append(found) if isinstance(found, Clip) else missed.append(found)
        elif name.endswith((*TARS, TABLE)):
            holders.append(item)
        elif kind_by_name(name) is not None:
            loose.append(item)
        elif name.endswith(_BESIDE):
            texts.append(item.name)
        else:
            missed.append(Missed(item.name, "no media", "neither an image, a video, a tar, Parquet nor JSON lines"))
    named, beside = {clip.place for clip in clips}, {_stem(text) for text in texts}
    stems = {_stem(item.name) for item in loose}
    for text in texts:
        if _stem(text) not in stems:
            missed.append(
                Missed(text, "no media", "a text beside no image or video; rows go into .jsonl, one to a line")
            )
    for item in loose:
        kind = kind_by_name(item.name)
        if kind is not None and (item.name not in named or _stem(item.name) in beside):
            clips.append(Clip(item.name, kind, item.name))
    return [*sorted(clips, key=lambda clip: clip.name), *sorted(holders)], missed


def read(item: Item, options: SourceOptions) -> Iterator[tuple[Clip, Content] | Missed]:
    """The clips of an item with their contents, in order. Raises nothing for any content of a file."""
    if isinstance(item, Clip):
        yield _with_text(item, options)
    elif item.name.lower().endswith(TABLE):
        yield from table_clips(item.name, options)
    else:
        yield from tar_clips(item.name, options)


def contents(clips: Iterable[Clip]) -> Iterator[tuple[Clip, Content]]:
    """Each clip with its content, those of one file together; a tar is read once, of a table what is needed.

    Raises OSError, or what a broken archive raises, for a file that is no longer what it was.
    """
    for place, members in groupby(sorted(clips, key=lambda clip: clip.place), key=lambda clip: clip.place):
        inside: dict[str, list[Clip]] = {}
        for clip in members:
            if clip.member is None:
                yield clip, place
            else:
                inside.setdefault(clip.member, []).append(clip)
        if not inside:
            continue
        found = table_contents if place.lower().endswith(TABLE) else tar_contents
        for member, data in found(place, inside):
            for clip in inside.pop(member):
                yield clip, data
        if inside:
            raise OSError(f"{place} no longer holds {next(iter(inside))!r}: make the stage that lists it again")


def _of_rows(item: SourceFile, options: SourceOptions) -> Iterator[Clip | Missed]:
    folder = item.name.rpartition("/")[0]
    columns = (*options.media, *options.caption, *FIELDS, *EXTRA)
    for raw in read_rows(item, columns, options.max_bytes):
        if raw.reason is not None:
            yield Missed(raw.source, raw.reason, raw.detail)
            continue
        if not isinstance(raw.value, dict):
            yield Missed(raw.source, "broken row", f"a row is an object, not {type(raw.value).__name__}")
            continue
        place = place_of(raw.value, folder, options)
        if isinstance(place, Refused):
            yield Missed(raw.source, place.reason, place.detail)
            continue
        kind = kind_by_name(place)
        if kind is None:
            yield Missed(raw.source, "no media", f"{place}: neither an image nor a video by its name")
            continue
        text = said(raw.value, kind, options)
        if isinstance(text, Refused):
            yield Missed(raw.source, text.reason, text.detail)
        else:
            yield Clip(raw.source, kind, place, None, text.caption, text.conversation, text.license, text.split_key)


def _with_text(clip: Clip, options: SourceOptions) -> tuple[Clip, Content] | Missed:
    """A loose clip with what is said beside its file, where its row or package says nothing."""
    if clip.caption is None and not clip.conversation:
        text = _beside(clip, options)
        if isinstance(text, Refused):
            return Missed(clip.name, text.reason, text.detail)
        if text is not None:
            clip = dataclasses.replace(clip, **_fields(text))
    return clip, clip.place


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _fields(text: Said) -> dict[str, Any]:
    return {field.name: getattr(text, field.name) for field in dataclasses.fields(Said)}


def _beside(clip: Clip, options: SourceOptions) -> Said | Refused | None:
    stem = _stem(clip.place)
    for suffix in _BESIDE:
        try:
            with open_to_read(stem + suffix) as file:
                data = file.read(_BESIDE_BYTES + 1)
        except FileNotFoundError:
            continue
        except OSError as wrong:
            return Refused("unreadable", f"{stem}{suffix}: {wrong}"[:300])
        if len(data) > _BESIDE_BYTES:
            return Refused("too large", f"{stem}{suffix} is no caption: over {_BESIDE_BYTES} bytes")
        if suffix == ".json":
            try:
                row = json.loads(data)
            except (ValueError, RecursionError) as wrong:
                return Refused("broken row", f"{stem}{suffix}: {wrong}"[:300])
            return said(row, clip.kind, options) if isinstance(row, dict) else Refused("broken row", stem + suffix)
        text = decode(data)
        return Refused("not text", stem + suffix) if text is None else Said(caption_of(text))
    return None


def load(content: Content, max_bytes: int) -> bytes | Refused:
    """The bytes of a content, where all of them are needed at once: an image."""
    if isinstance(content, bytes):
        return content
    try:
        with open_to_read(content) as file:
            if (size := file.seek(0, 2)) > max_bytes:
                return Refused("too large", f"{size} bytes, max_bytes={max_bytes}")
            file.seek(0)
            return file.read()
    except FileNotFoundError:
        return Refused("no such file", content)
    except OSError as wrong:
        return Refused("unreadable", f"{type(wrong).__name__}: {wrong}"[:300])
