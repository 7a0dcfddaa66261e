"""Images and videos to a table of clips that are worth training on, with a ledger of all that were seen and why not.

- Sources are listed here; contents are looked at on Ray Data, a few clips or one file of many to a task, which returns
  rows of the ledger and never pixels, but for small pictures of a dozen clips.
- Captions that many clips share, copies and near duplicates are decided on the ledger. What is held out is drawn by the
  content of a clip, or by its key where the source names one, within images and within videos.
- Outputs: `clips.parquet` (those kept; `CLIP_SCHEMA` and sizes, lengths, sha256, split), `ledger.parquet` (all of them,
  with reason and detail) and `contact.png`, a dozen of the clips.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from infra.stage import Result, StageContext
from ringworld.data.files import join, write_bytes, write_table
from ringworld.data.packing import length_histogram
from ringworld.data.sources import INSTALLED, SourceFile
from ringworld.data.split import held_out
from ringworld.errors import UserError
from ringworld.vision.clip_table import CLIP_SCHEMA, clips_of, row_of, table_of
from ringworld.vision.clips import Clip, Content, Missed, SourceOptions
from ringworld.vision.contact import contact_sheet, png
from ringworld.vision.filters import Filters, duplicates, judge, repeated, text_of
from ringworld.vision.inspection import InspectOptions, Seen, inspect
from ringworld.vision.media import find, read
from ringworld.vision.pixels import Refused
from ringworld.vision.video_reader import VideoOptions
from stages.blocks import map_blocks
from stages.tallies import in_words, tally

_NAMED = 20
_SAMPLES = 12
_HELD = 4 * _SAMPLES  # pictures of a kind that are held: some will turn out to be copies
_COLUMNS = 4
_CLIPS_OF_A_BLOCK = 64
_KEPT = pc.field("reason").is_null()

_SIZES = [
    ("width", pa.int32()),  # as shown, of the whole file
    ("height", pa.int32()),
    ("frames", pa.int64()),  # 1 for an image
    ("seconds", pa.float64()),  # null for an image, as is the rate
    ("rate", pa.float64()),
    ("bytes", pa.int64()),
    ("sha256", pa.string()),  # of the content
]
_LEDGER = pa.schema([*CLIP_SCHEMA, *_SIZES, ("reason", pa.string()), ("detail", pa.string())])
_SEEN = pa.schema([*_LEDGER, ("looks", pa.list_(pa.uint64()))])
_BLOCK = pa.schema([*CLIP_SCHEMA, ("holder", pa.string()), ("bytes", pa.int64())])


@dataclass(frozen=True)
class MediaRecipe:
    """sources: paths, globs, folders (local or gs://), or `installed` for what Python packages bring along.

    options: how rows name files and captions. held_out: the fraction of images, and of videos, kept from training,
    drawn with seed. max_image_pixels, max_frame_pixels: larger ones are refused undecoded; max_seconds: so are longer
    videos. same: levels of 255 that two frames of a static video differ by at most.
    """

    kind: ClassVar[str] = "media"
    sources: tuple[str, ...] = (INSTALLED,)
    options: SourceOptions = field(default_factory=SourceOptions)
    filters: Filters = field(default_factory=Filters)
    held_out: float = 0.1
    seed: int = 0
    max_image_pixels: int = 1 << 26
    max_frame_pixels: int = 1 << 25
    max_seconds: float = 4 * 3600.0
    same: float = 1.0

    @property
    def inspection(self) -> InspectOptions:
        video = VideoOptions(self.max_frame_pixels, self.max_seconds)
        return InspectOptions(self.max_image_pixels, video, self.same)


def run(context: StageContext, recipe: MediaRecipe) -> Result:
    """Raises UserError when the sources name nothing, or fewer than two usable clips."""
    items, missed = find(recipe.sources, recipe.options)
    seen, pictures = _look_at_all(context, recipe, items)
    rows = pa.concat_tables([seen, _missed_rows(missed)]).sort_by("name")
    rows = leave_out(rows, recipe.filters)
    kept = rows.filter(_KEPT)
    _check_usable(recipe, rows, kept)
    split = _split(recipe, kept)
    ledger = rows.select(_LEDGER.names)
    write_table(join(context.attempt_dir, "ledger.parquet"), ledger)
    clips = kept.select([*CLIP_SCHEMA.names, *(name for name, _ in _SIZES)]).append_column("split", split)
    write_table(join(context.attempt_dir, "clips.parquet"), clips)
    sampled = _sampled(kept, pictures)
    small = [np.array(Image.open(io.BytesIO(pictures[digest]))) for digest in sampled["sha256"].to_pylist()]
    files = ["clips.parquet", "ledger.parquet"]
    if small:  # else all whose pictures were held turned out to be copies
        write_bytes(join(context.attempt_dir, "contact.png"), png(contact_sheet(small, _COLUMNS)))
        files.append("contact.png")
    return Result(tuple(files), _figures(rows, clips, sampled))


def leave_out(rows: pa.Table, filters: Filters) -> pa.Table:
    """The rows with the reasons that only all of them together give: repeated captions and duplicates. Pure."""
    reason, detail = rows["reason"].to_pylist(), rows["detail"].to_pylist()
    usable = rows.filter(_KEPT)
    clips, place = clips_of(usable), np.flatnonzero([given is None for given in reason])
    digests = usable["sha256"].to_pylist()
    often = repeated([clip.caption for clip in clips], digests, filters.caption.repeated)
    for at in np.flatnonzero(often):
        reason[place[at]], detail[place[at]] = "caption repeated", f"over {filters.caption.repeated} share it"
    alone = np.flatnonzero(~often)
    looks = usable["looks"].to_pylist()
    # Of equal pictures of one size the larger file has lost less.
    columns = (usable[name].to_pylist() for name in ("width", "height", "bytes"))
    sizes = [(width * height << 40) + size for width, height, size in zip(*columns, strict=True)]
    found = duplicates(
        [clips[at].name for at in alone],
        [digests[at] for at in alone],
        [text_of(clips[at].caption, clips[at].conversation) for at in alone],
        [tuple(looks[at]) for at in alone],
        [sizes[at] for at in alone],
        filters.distance,
    )
    for at, (other, equal) in enumerate(zip(found.of.tolist(), found.equal.tolist(), strict=True)):
        if other != at:
            row = place[alone[at]]
            reason[row] = "duplicate" if equal else "near duplicate"
            detail[row] = f"of {clips[alone[other]].name}"
    for name, values in (("reason", reason), ("detail", detail)):
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(values, pa.string()))
    return rows


def _look_at_all(
    context: StageContext, recipe: MediaRecipe, items: Sequence[Clip | SourceFile]
) -> tuple[pa.Table, dict[str, bytes]]:
    """The ledger's rows, and the small pictures of a few by sha256: those of the smallest, chosen by nobody."""
    blocks, tables, done = _blocks(items), [_SEEN.empty_table()], 0
    pictures: dict[str, dict[str, bytes]] = {"image": {}, "video": {}}
    for seen in map_blocks(context, blocks, _look_at_block, {"recipe": recipe}):
        tables.append(seen.drop_columns("picture"))
        for row in seen.filter(pc.field("picture").is_valid()).select(["kind", "sha256", "picture"]).to_pylist():
            pictures[row["kind"]][row["sha256"]] = row["picture"]
        pictures = {kind: dict(sorted(held.items())[:_HELD]) for kind, held in pictures.items()}
        done += seen.num_rows
        context.report(step=len(tables) - 1, of=len(blocks), note=f"{done} clips seen")
    return pa.concat_tables(tables), pictures["image"] | pictures["video"]


def _blocks(items: Sequence[Clip | SourceFile]) -> list[pa.Table]:
    """Loose clips a few to a block, a file of many to each; decided by the items alone."""
    loose = [item for item in items if isinstance(item, Clip)]
    blocks = [
        _described(table_of(loose[at : at + _CLIPS_OF_A_BLOCK]), None, 0)
        for at in range(0, len(loose), _CLIPS_OF_A_BLOCK)
    ]
    for item in items:
        if isinstance(item, SourceFile):
            empty = pa.Table.from_pylist([{"name": item.name, "conversation": []}], CLIP_SCHEMA)
            blocks.append(_described(empty, item.name, item.bytes))
    return blocks


def _described(table: pa.Table, holder: str | None, size: int) -> pa.Table:
    table = table.append_column("holder", pa.array([holder] * table.num_rows, pa.string()))
    return table.append_column("bytes", pa.array([size] * table.num_rows, pa.int64()))


def _look_at_block(block: pa.Table, recipe: MediaRecipe) -> pa.Table:
    """Rows of the ledger for the clips of a block. Runs in a Ray task."""
    rows: list[dict[str, Any]] = []
    for found in _clips(block, recipe.options):
        if isinstance(found, Missed):
            rows.append(_missed_row(found))
        else:
            rows.append(_row(*found, recipe))
    _drop_pictures(rows)
    return pa.Table.from_pylist(rows, _SEEN.append(pa.field("picture", pa.binary())))


def _clips(block: pa.Table, options: SourceOptions) -> Iterator[tuple[Clip, Content] | Missed]:
    holder = block["holder"][0].as_py()
    items = clips_of(block) if holder is None else [SourceFile(holder, block["bytes"][0].as_py())]
    for item in items:
        yield from read(item, options)


def _row(clip: Clip, content: Content, recipe: MediaRecipe) -> dict[str, Any]:
    seen = inspect(content, recipe.options, recipe.inspection)
    if isinstance(seen, Refused):
        return {**row_of(clip), "reason": seen.reason, "detail": seen.detail}
    row = {**row_of(dataclasses.replace(clip, kind=seen.kind)), **_sizes(seen)}
    if (refused := judge(clip, seen, recipe.filters)) is not None:
        return {**row, "reason": refused.reason, "detail": refused.detail}
    return {**row, "looks": seen.looks, "picture": png(seen.picture)}


def _sizes(seen: Seen) -> dict[str, Any]:
    return {name: getattr(seen, name) for name, _ in _SIZES}


def _missed_row(missed: Missed) -> dict[str, Any]:
    return {"name": missed.name, "conversation": [], "reason": missed.reason, "detail": missed.detail}


def _missed_rows(missed: Sequence[Missed]) -> pa.Table:
    return pa.Table.from_pylist([_missed_row(one) for one in missed], _SEEN)


def _drop_pictures(rows: Sequence[dict[str, Any]]) -> None:
    """Keep those of the smallest hashes of each kind: whatever other tasks found, the smallest of all are among
    them."""
    for kind in ("image", "video"):
        of_kind = sorted({row["sha256"] for row in rows if row.get("picture") and row["kind"] == kind})
        for row in rows:
            if row.get("picture") and row["kind"] == kind and row["sha256"] not in of_kind[:_HELD]:
                row["picture"] = None


def _sampled(kept: pa.Table, pictures: Mapping[str, bytes]) -> pa.Table:
    """A dozen rows with pictures, up to half of them videos, each picture once: the same every time."""
    first = kept.group_by("sha256", use_threads=False).aggregate([("name", "min")])["name_min"]
    ordered = kept.filter(pc.field("name").isin(first) & pc.field("sha256").isin(list(pictures))).sort_by("sha256")
    videos, images = (ordered.filter(pc.field("kind") == kind) for kind in ("video", "image"))
    few = min(videos.num_rows, max(_SAMPLES // 2, _SAMPLES - images.num_rows))
    return pa.concat_tables([videos.slice(0, few), images.slice(0, _SAMPLES - few)])


def _split(recipe: MediaRecipe, kept: pa.Table) -> pa.Array:
    """`train` or `held_out` for each row, drawn by key within each kind; a kind with one key is trained on."""
    keys = [
        key or digest for key, digest in zip(kept["split_key"].to_pylist(), kept["sha256"].to_pylist(), strict=True)
    ]
    kinds = kept["kind"].to_pylist()
    out: set[str] = set()
    for kind in ("image", "video"):
        of_kind = sorted({key for key, this in zip(keys, kinds, strict=True) if this == kind} - out)
        if len(of_kind) > 1:
            chosen = held_out(of_kind, np.zeros(len(of_kind)), recipe.held_out, recipe.seed, longest=1)
            out.update(key for key, drawn in zip(of_kind, chosen, strict=True) if drawn)
    return pa.array(["held_out" if key in out else "train" for key in keys], pa.string())


def _check_usable(recipe: MediaRecipe, rows: pa.Table, kept: pa.Table) -> None:
    if len(set(kept["sha256"].to_pylist())) >= 2:
        return
    counts = in_words(tally(rows["reason"])) or "none left out"
    for row in rows.filter(~_KEPT).slice(0, 1).to_pylist():
        counts += f"; {row['name']}: {row['reason']} {row['detail'] or ''}".rstrip()
    raise UserError(
        f"sources {', '.join(recipe.sources)}: {kept.num_rows} usable clips among {rows.num_rows}, and training and "
        f"evaluation need two ({counts}); give other sources, or other bounds in filters"
    )


def _figures(rows: pa.Table, clips: pa.Table, sampled: pa.Table) -> dict[str, object]:
    left_out = rows.filter(~_KEPT)
    shortest = np.minimum(clips["width"].to_numpy(), clips["height"].to_numpy())
    videos = clips.filter(pc.field("kind") == "video")
    return {
        "seen": rows.num_rows,
        "clips": clips.num_rows,
        "kinds": tally(clips["kind"]),
        "splits": tally(clips["split"]),
        "conversations": sum(bool(turns) for turns in clips["conversation"].to_pylist()),
        "frames": int(clips["frames"].to_numpy().sum()),
        "seconds": float(videos["seconds"].to_numpy().sum()),
        "bytes": int(clips["bytes"].to_numpy().sum()),
        "reasons": tally(left_out["reason"]),
        "refused": left_out.select(["name", "reason", "detail"]).slice(0, _NAMED).to_pylist(),
        "licenses": tally(clips["license"]),
        "shortest_sides": length_histogram(shortest),
        "samples": sampled.select(["name", "kind", "caption"]).to_pylist(),
    }
