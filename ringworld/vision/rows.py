"""What a row of a data set says about its image or video: a caption or a conversation, a licence, a key for the split.

- A row is an object: a line of captions.jsonl or metadata.jsonl, the .json of a WebDataset's sample, a row of a table.
- A conversation stands in one of the shapes of `ringworld.data.conversations`; contents in parts (`{"type": "image"}`,
  `{"type": "text", "text": ...}`) become a text. Where the picture belongs is marked by `<image>` or `<video>` in a
  turn of the user's, once; a conversation without a mark gets one before its first question, as LLaVA's have it.
- A caption is brought into form: Unicode as everywhere, white space as single spaces.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import Any

from ringworld.data.clean import normalize
from ringworld.data.conversations import FIELDS, Turn, parse
from ringworld.data.conversations import Refused as NoConversation
from ringworld.vision.clips import Kind, SourceOptions
from ringworld.vision.pixels import Refused

MARKS: Mapping[Kind, str] = {"image": "<image>", "video": "<video>"}
EXTRA = ("license", "split_key")
_LICENSE_CHARACTERS = 200


@dataclass(frozen=True)
class Said:
    caption: str | None = None
    conversation: tuple[Turn, ...] = ()
    license: str | None = None
    split_key: str | None = None


def said(row: Mapping[str, Any], kind: Kind, options: SourceOptions) -> Said | Refused:
    """Refused for a conversation that is none, and for a caption that is no text."""
    license, key = (_short(row.get(name)) for name in EXTRA)
    if any(row.get(name) is not None for name in FIELDS):
        turns = parse(_in_text(row))
        if isinstance(turns, NoConversation):
            return Refused(turns.reason, turns.detail)
        marked = _marked(turns, kind)
        return marked if isinstance(marked, Refused) else Said(None, marked, license, key)
    text = next((row[name] for name in options.caption if row.get(name) is not None), None)
    if text is not None and not isinstance(text, str):
        return Refused("not text", f"the caption is {type(text).__name__}")
    return Said(None if text is None else caption_of(text), (), license, key)


def caption_of(text: str) -> str:
    return " ".join(normalize(text).split())


def place_of(row: Mapping[str, Any], folder: str, options: SourceOptions) -> str | Refused:
    """Where the file lies that a row names, relative to `folder` or `options.root`."""
    name = next((row[name] for name in options.media if row.get(name) is not None), None)
    if name is None:
        return Refused("no such field", f"none of {', '.join(options.media)}; has: {', '.join(map(str, row))}"[:300])
    if isinstance(name, list) and len(name) == 1:
        [name] = name
    if isinstance(name, list):
        return Refused("several files", f"a row names {len(name)}; one is needed")
    if isinstance(name, Mapping):
        name = name.get("path") or name.get("file_name")
    if not isinstance(name, str) or not name:
        return Refused("not text", f"the file's name is {name!r:.100}")
    return inside(options.root or folder, name)


def inside(folder: str, name: str) -> str | Refused:
    """The place of a file below a folder. Refused for what leaves it: `..`, absolute paths, addresses."""
    path = PureWindowsPath(name)  # has both kinds of slashes, and drives
    if "://" in name:
        return Refused("not stored", f"{name:.200} is an address; download the files and name them by their paths")
    if path.root or path.drive or ".." in path.parts or "\0" in name:
        return Refused("unsafe path", f"{name:.200} leaves the folder; set root to the folder that it is relative to")
    return f"{folder.rstrip('/')}/{name}"


def _short(value: Any) -> str | None:
    text = str(value).strip() if isinstance(value, str | int) else ""
    return text if 0 < len(text) <= _LICENSE_CHARACTERS else None


def _in_text(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row, its contents in parts as texts; what has another form stays, and is refused with its turn."""
    changed = dict(row)
    for name, key in (("messages", "content"), ("conversations", "value")):
        turns = row.get(name)
        if isinstance(turns, list):
            changed[name] = [
                {**turn, key: _joined(turn[key])} if isinstance(turn, Mapping) and key in turn else turn
                for turn in turns
            ]
    return changed


def _joined(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    marks: Mapping[Any, str] = MARKS
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            parts.append(part["text"])
        elif kind in marks:
            parts.append(marks[kind])
        else:
            return content
    return "\n".join(parts)


def _marked(turns: tuple[Turn, ...], kind: Kind) -> tuple[Turn, ...] | Refused:
    marks = [(turn.role, turn.text.count(mark)) for turn in turns for mark in MARKS.values()]
    total = sum(count for _, count in marks)
    if total == 0:
        first = next(number for number, turn in enumerate(turns) if turn.role == "user")
        asked = Turn("user", f"{MARKS[kind]}\n{turns[first].text}")
        return (*turns[:first], asked, *turns[first + 1 :])
    if total > 1:
        return Refused("several files", f"{total} marks of images or videos; one is needed")
    if any(count and role != "user" for role, count in marks):
        return Refused("misplaced mark", "the image or video is marked in a turn that is not the user's")
    return turns
