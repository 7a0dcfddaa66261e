"""A table of clips for tests: pictures and a film in a folder, as the media stage lists them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
from PIL import Image

from ringworld.vision.clip_table import table_of
from ringworld.vision.clips import Clip, kind_by_name
from tests.ringworld.vision.films import film
from tests.ringworld.vision.vqgans import pictures

HELD_OUT = ("p1.png", "p4.png")


def write_clips(folder: Path) -> pa.Table:
    """Six pictures of 24 x 32, a copy of one of them, a broken file and a film of 12 frames of 64 x 48."""
    folder.mkdir(exist_ok=True)
    for number, picture in enumerate(pictures(6, 32)):
        Image.fromarray(picture[:24]).save(folder / f"p{number}.png")
    (folder / "copy.png").write_bytes((folder / "p0.png").read_bytes())
    (folder / "cut.png").write_bytes((folder / "p0.png").read_bytes()[:60])
    film(folder / "film.mp4", frames=12)
    clips, digests = [], []
    for path in sorted(folder.iterdir()):
        clips.append(Clip(path.name, kind_by_name(path.name) or "image", str(path), caption="A thing"))
        digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
    split = ["held_out" if clip.name in HELD_OUT else "train" for clip in clips]
    return table_of(clips).append_column("sha256", pa.array(digests)).append_column("split", pa.array(split))
