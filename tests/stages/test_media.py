"""The media stage on a local Ray: sources of every kind to clips, a ledger with every reason, the same twice."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from infra.stage import Artifact, canonical
from ringworld.data.files import read_table
from ringworld.errors import UserError
from ringworld.vision.clip_table import clips_of
from ringworld.vision.filters import CaptionRules, Filters
from ringworld.vision.media import contents
from stages import media
from stages.media import MediaRecipe
from tests.ringworld.vision.films import film, noise
from tests.ringworld.vision.test_filters import scene
from tests.ringworld.vision.test_pixels import png

pytestmark = pytest.mark.usefixtures("cluster")

FILTERS = Filters(minimum_side=40, seconds=0.2, caption=CaptionRules(repeated=2))


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def ledger_of(made: Artifact) -> dict[str, dict[str, Any]]:
    rows = read_table(made.path("ledger.parquet")).to_pylist()
    return {row["name"].rpartition("/")[2]: row for row in rows}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder with rows, a tar and a table: good clips, and one of everything that is wrong."""
    folder = tmp_path / "sources"
    (folder / "loose").mkdir(parents=True)
    loose = folder / "loose"
    for number in range(4):
        (loose / f"good{number}.png").write_bytes(encoded(scene(number)))
        (loose / f"good{number}.txt").write_text(f"Scene number {number}")
    (loose / "other.png").write_bytes(encoded(scene(0)))
    (loose / "other.txt").write_text("Scene number 0")
    (loose / "near.jpg").write_bytes(encoded(scene(1, 120, 160), "JPEG"))
    (loose / "near.txt").write_text("Scene one, smaller")
    (loose / "small.png").write_bytes(encoded(scene(9, 39, 60)))
    (loose / "tiny.png").write_bytes(encoded(scene(9, 1, 1)))
    (loose / "long.png").write_bytes(encoded(scene(9, 40, 121)))
    (loose / "bomb.png").write_bytes(png(30_000, 30_000, rows=b"\0" * 100))
    (loose / "cut.png").write_bytes(encoded(scene(8))[:500])
    (loose / "silent.png").write_bytes(encoded(scene(7)))
    (loose / "empty.png").write_bytes(encoded(scene(6)))
    (loose / "empty.txt").write_text(" \n")
    for name, more in (("film.mp4", {}), ("film.webm", {}), ("still.mp4", {"paint": lambda _: noise(3)})):
        film(loose / name, frames=12, **{"paint": lambda k, n=name: noise(k + 50 * len(n)), **more})
        (loose / name).with_suffix(".json").write_text(json.dumps({"text": f"The film {Path(name).stem}"}))
    (loose / "cut.mp4").write_bytes((loose / "film.mp4").read_bytes()[:-2000])
    for number in range(3):
        (loose / f"page{number}.png").write_bytes(encoded(scene(20 + number)))
        (loose / f"page{number}.txt").write_text("Click to enlarge")
    asked = [{"from": "human", "value": "<image>\nWhat is shown?"}, {"from": "gpt", "value": "A scene."}]
    rows = [{"image": "loose/good0.png", "conversations": asked}, {"image": "loose/none.png", "text": "Not there"}]
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with tarfile.open(folder / "a.tar", "w") as archive:
        for name, data in (("t.jpg", encoded(scene(30), "JPEG")), ("t.txt", b"In a tar"), ("../u.jpg", b"out")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    cells = [{"bytes": encoded(scene(40 + number)), "path": None} for number in range(3)]
    pq.write_table(pa.table({"image": cells, "caption": ["Row A", "a/b/c.png", "Row C"]}), folder / "p.parquet")
    return folder


def test_every_clip_is_kept_or_left_out_by_a_reason_that_is_counted(sources: Path, run_stage: Any) -> None:
    recipe = MediaRecipe((str(sources),), filters=FILTERS, held_out=0.3)
    canonical(recipe)
    made = run_stage(media, recipe)
    ledger = ledger_of(made)
    reasons = {name: row["reason"] for name, row in ledger.items() if row["reason"]}
    assert reasons == {
        "other.png": "duplicate", "near.jpg": "near duplicate", "small.png": "too small", "tiny.png": "too small",
        "long.png": "aspect", "bomb.png": "too many pixels", "cut.png": "broken image",
        "silent.png": "caption missing", "empty.png": "caption empty", "still.mp4": "static", "cut.mp4": "truncated",
        "page0.png": "caption repeated", "page1.png": "caption repeated", "page2.png": "caption repeated",
        "chat.jsonl#2": "no such file", "u.jpg": "unsafe path", "p.parquet#2": "caption is a file name",
    }  # fmt: skip
    assert (ledger["near.jpg"]["detail"] or "").endswith("good1.png")
    assert ledger["good1.png"]["reason"] is None

    clips = read_table(made.path("clips.parquet"))
    kept = {row["name"].rpartition("/")[2]: row for row in clips.to_pylist()}
    assert set(kept) == set(ledger) - set(reasons)
    assert kept["chat.jsonl#1"]["conversation"][0] == {"role": "user", "text": "<image>\nWhat is shown?"}
    assert kept["chat.jsonl#1"]["split"] == kept["good0.png"]["split"]  # one picture
    moving = kept["film.mp4"]
    assert (moving["kind"], moving["frames"], moving["caption"]) == ("video", 12, "The film film")
    assert moving["seconds"] == pytest.approx(12 / 25)
    assert (kept["good2.png"]["width"], kept["good2.png"]["height"], kept["good2.png"]["seconds"]) == (320, 240, None)
    for kind in ("image", "video"):
        assert {row["split"] for row in kept.values() if row["kind"] == kind} == {"train", "held_out"}
    # The records alone lead back to the bytes.
    assert {clip.name for clip, _ in contents(clips_of(clips))} == set(clips["name"].to_pylist())

    values = made.values
    assert values["reasons"] == dict(sorted(Counter(reasons.values()).items()))
    assert (values["seen"], values["clips"]) == (len(ledger), len(kept))
    assert values["kinds"] == dict(sorted(Counter(row["kind"] for row in kept.values()).items()))
    assert values["conversations"] == 1
    assert values["shortest_sides"]["32"] == 2  # the films' 48 pixels
    assert len(values["samples"]) == min(12, len({row["sha256"] for row in kept.values()}))
    with Image.open(made.path("contact.png")) as sheet:
        assert sheet.size == (4 * 132 - 4, -(-len(values["samples"]) // 4) * 132 - 4)

    again = run_stage(media, recipe)
    assert again.values == values
    for name in ("clips.parquet", "ledger.parquet"):
        assert read_table(again.path(name)).equals(read_table(made.path(name)))


def test_what_packages_bring_along_is_enough_for_training_and_evaluation(run_stage: Any) -> None:
    made = run_stage(media, MediaRecipe())
    values = made.values
    assert values["kinds"] == {"image": 21, "video": 2}
    assert values["reasons"] == {"too small": 6}
    clips = read_table(made.path("clips.parquet")).to_pylist()
    assert all(row["caption"] and row["license"] for row in clips)
    assert Counter((row["kind"], row["split"]) for row in clips)["video", "held_out"] == 1


def test_sources_without_two_usable_clips_are_an_error_that_says_why(tmp_path: Path, run_stage: Any) -> None:
    (tmp_path / "a.png").write_bytes(encoded(scene(1)))
    (tmp_path / "a.txt").write_text("One good scene")
    (tmp_path / "b.png").write_bytes(encoded(scene(2, 30, 30)))
    recipe = MediaRecipe((str(tmp_path),), filters=FILTERS)
    with pytest.raises(UserError, match=r"1 usable clips among 2, .* need two \(1 too small; .*b\.png: too small 30 x"):
        run_stage(media, recipe)
