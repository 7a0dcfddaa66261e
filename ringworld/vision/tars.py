"""WebDataset tars: the members of one name before the first dot are a sample, an image or video and what is said of it.

- A tar is read once, from front to back, without ever being unpacked; memory is that of one sample.
- What is no file inside the archive is refused by name, as in every archive (`ringworld.data.archives`).
- Text is that of .txt or .caption, or of a .json with the fields of a row.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from ringworld.data.archives import BROKEN, tar_members
from ringworld.data.encoding import decode
from ringworld.data.files import open_to_read
from ringworld.vision.clips import Clip, Missed, SourceOptions, kind_by_name
from ringworld.vision.pixels import Refused
from ringworld.vision.rows import Said, caption_of, said

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst")

_TEXT = (".txt", ".caption")
_TEXT_BYTES = 1 << 20
_BUFFER_BYTES = 1 << 20
_FAILURES = (OSError, EOFError, pa.ArrowException, *BROKEN)


@dataclass
class _Sample:
    key: str
    media: dict[str, bytes] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)
    missed: int = 0


def tar_clips(place: str, options: SourceOptions) -> Iterator[tuple[Clip, bytes] | Missed]:
    """Every sample's image or video, in order. Raises nothing for any content of the file."""
    sample = _Sample("")
    found, seen = 0, set()
    try:
        with _opened(place) as stream:
            for member in tar_members(stream):
                found += 1
                name = f"{place}!{member.name}"
                key, suffix = _key(member.name)
                if key != sample.key:
                    yield from _clips(place, sample, options)
                    sample = _Sample(key)
                media = kind_by_name(member.name) is not None
                limit = options.max_bytes if media else _TEXT_BYTES
                if member.reason is not None:
                    sample.missed += 1
                    yield Missed(name, member.reason, member.detail)
                elif media and member.name in seen:
                    sample.missed += 1
                    yield Missed(name, "repeated name", "a member of this name came before")
                elif not media and suffix not in (*_TEXT, ".json"):
                    continue  # data sets keep more beside a clip than is used
                elif member.bytes > limit:
                    sample.missed += 1
                    yield Missed(name, "too large", f"{member.bytes} bytes, at most {limit}")
                else:
                    (sample.media if media else sample.texts)[member.name] = member.stream.read()
                    seen.update([member.name] if media else [])
        yield from _clips(place, sample, options)
    except _FAILURES as wrong:
        yield Missed(place, "broken file", f"after {found} members: {type(wrong).__name__}: {wrong}"[:300])
        return
    if not found:
        yield Missed(place, "empty", "no files in it")


def tar_contents(place: str, members: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of the members asked for, in the order of the archive. Raises what a broken archive raises."""
    wanted = set(members)
    with _opened(place) as stream:
        for member in tar_members(stream):
            if member.name in wanted and member.reason is None:
                wanted.discard(member.name)
                yield member.name, member.stream.read()
            if not wanted:
                return


@contextmanager
def _opened(place: str) -> Iterator[Any]:
    compression = {".gz": "gzip", ".tgz": "gzip", ".zst": "zstd"}.get(PurePosixPath(place.lower()).suffix)
    with open_to_read(place) as file:
        if compression is None:
            yield file
        else:
            stream: Any = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), compression)
            with io.BufferedReader(stream, _BUFFER_BYTES) as unpacked:
                yield unpacked


def _key(name: str) -> tuple[str, str]:
    """(what a sample's members share, the last suffix): folder and name up to the first dot."""
    folder, _, base = name.rpartition("/")
    stem = base.partition(".")[0]
    return f"{folder}/{stem}", PurePosixPath(base.lower()).suffix


def _clips(place: str, sample: _Sample, options: SourceOptions) -> Iterator[tuple[Clip, bytes] | Missed]:
    if not sample.media:
        if sample.texts and not sample.missed:
            yield Missed(f"{place}!{min(sample.texts)}", "no media", "a text without an image or a video")
        return
    for member, data in sample.media.items():
        name, kind = f"{place}!{member}", kind_by_name(member)
        assert kind is not None
        text = _said(sample.texts, kind, options)
        if isinstance(text, Refused):
            yield Missed(name, text.reason, text.detail)
        else:
            yield (
                Clip(name, kind, place, member, text.caption, text.conversation, text.license, text.split_key),
                data,
            )


def _said(texts: dict[str, bytes], kind: Any, options: SourceOptions) -> Said | Refused:
    """A .json's conversation, else the text, else the .json's caption."""
    row: Any = {}
    for name, data in texts.items():
        if name.lower().endswith(".json"):
            try:
                row = json.loads(data)
            except (ValueError, RecursionError) as wrong:
                return Refused("broken row", f"{name}: {wrong}"[:300])
            if not isinstance(row, dict):
                return Refused("broken row", f"{name} holds {type(row).__name__}, not an object")
    found = said(row, kind, options)
    for name, data in texts.items():
        if name.lower().endswith(_TEXT) and isinstance(found, Said) and not found.conversation:
            text = decode(data)
            if text is None:
                return Refused("not text", f"{name} is in no known encoding")
            return Said(caption_of(text), (), found.license, found.split_key)
    return found
