"""Every clip through the encoder once: a store of codes, which the examples of all vision stages are made of.

- Clips are grouped into shards, and each shard is made by a worker and committed to the state folder when it is through
  (`codes_work`). A later attempt takes what is there; a worker that dies costs the shard that it was at.
- A clip that cannot be decoded to its end after all is refused by name, with a reason that is counted.
- A video is stored at a rate in frames a second, `most_frames` at most: of one that is too long for both, frames lie
  further apart, so that it is still seen to its end.
- Outputs: `codes/`, a token store whose documents are clips (the stream of `ringworld.vision.stream`, ids from 0), and
  `clips.parquet`, what is known of each document.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.stage import Result, StageContext, StageFailure
from ringworld.data.files import absolute, join, list_files, read_table, write_table
from ringworld.data.packing import length_histogram
from ringworld.data.token_store import StoreInfo, write_index, write_shard
from ringworld.errors import UserError
from ringworld.strict import from_mapping
from ringworld.vision.clip_table import CLIP_SCHEMA
from ringworld.vision.stream import VisionIds
from stages.blocks import map_blocks
from stages.codes_work import (
    Done,
    Encoder,
    Job,
    ReadLimits,
    Shard,
    Worker,
    ids_of,
    read_done,
    read_encoder,
    shards_of,
)
from stages.shards import committed, read_shard
from stages.tallies import tally

_NAMED = 20
_SHARD_TOKENS = 1 << 25

CODES_SCHEMA = pa.schema(
    [
        ("document", pa.int64()),
        ("name", pa.string()),
        ("kind", pa.string()),
        *(CLIP_SCHEMA.field(name) for name in ("caption", "conversation", "license")),
        ("sha256", pa.string()),  # of the content
        ("split", pa.string()),
        ("frames", pa.int32()),  # stored
        ("rate", pa.float64()),  # stored frames a second; null for an image, as are the seconds
        ("seconds", pa.float64()),
        ("tokens", pa.int64()),
    ]
)


@dataclass(frozen=True)
class CodesRecipe:
    """side: pixels, 0 for those that the VQGAN was trained at. rate: frames a second that are stored of a video, and
    most_frames: of one video. shard_frames: stored frames that a shard has about."""

    kind: ClassVar[str] = "codes"
    side: int = 0
    rate: float = 4.0
    most_frames: int = 4096
    shard_frames: int = 2048
    limits: ReadLimits = field(default_factory=ReadLimits)

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise UserError(f"rate={self.rate}: stored frames a second, more than 0, such as 4")
        for name in ("most_frames", "shard_frames"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: 1 or more")


@dataclass(frozen=True)
class CodesOptions:
    """Execution, never identity. workers: processes that encode, each with the placement's resources. batch: frames
    that an encoder takes at a time. shard_tries: of a shard in one attempt; retry_seconds: before the second."""

    workers: int = 1
    batch: int = 16
    shard_tries: int = 3
    retry_seconds: float = 5.0

    def __post_init__(self) -> None:
        for name in ("workers", "batch", "shard_tries"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: 1 or more")


def run(context: StageContext, recipe: CodesRecipe) -> Result:
    """Input ports `media` and `vqgan`. Raises UserError when a split is left without clips, StageFailure when another
    attempt may bring more."""
    options = from_mapping(CodesOptions, dict(context.stage.placement.options), at="placement.options")
    encoder = read_encoder(context.inputs["vqgan"].path("vqgan"), recipe.side)
    folder = join(absolute(context.state_dir), "shards")
    job = Job(encoder, recipe.rate, recipe.most_frames, recipe.limits, options.batch, folder)
    clips = read_table(context.inputs["media"].path("clips.parquet"))
    shards = shards_of(clips, recipe.rate, recipe.most_frames, recipe.shard_frames)
    _encode(context, options, job, shards)

    info = _info(encoder)
    place = join(absolute(context.attempt_dir), "codes")
    rows = _gather(context, folder, shards, place, info)
    index = _described(clips, rows)
    _check_usable(clips, rows, index)
    write_index(place, info, index.append_column("corpus", index["kind"]).append_column("source", index["name"]))
    write_table(join(context.attempt_dir, "clips.parquet"), index.select(CODES_SCHEMA.names).cast(CODES_SCHEMA))
    done = [read_done(folder, shard.name) for shard in shards]
    values = _figures(recipe, encoder, clips, rows, index, done)
    return Result(("clips.parquet", *(f"codes/{name}" for name in list_files(place))), values)


def _info(encoder: Encoder) -> StoreInfo:
    ids = VisionIds(0, encoder.codebook)
    return StoreInfo(encoder.hash, ids.vocabulary, ids.eov, ids.eov)


def _encode(context: StageContext, options: CodesOptions, job: Job, shards: Sequence[Shard]) -> None:
    """Have made and committed what is not there yet."""
    from actors.pool import GaveUp, Pool, Retries  # with Ray, which a plan of the stages does without

    through = committed(job.shards)
    left = [shard for shard in shards if shard.name not in through]
    if not left:
        return
    progress = _Progress(context, len(shards) - len(left), len(shards))
    retries = Retries(options.shard_tries, options.retry_seconds, again=(OSError,))  # as storage may fail for a while
    place = context.stage.placement
    try:
        with Pool(Worker, (job,), place, workers=options.workers, retries=retries) as pool:
            for _, done in pool.run("encode", left, context.stop, note=progress.waiting):
                progress.add(done)
    except GaveUp as ended:
        finished = len(committed(job.shards))
        raise StageFailure("crashed", f"{ended}", marker=finished or None) from ended


class _Progress:
    """Live figures of the shards that are through."""

    def __init__(self, context: StageContext, before: int, of: int) -> None:
        self._context, self._done, self._of = context, before, of
        self._began, self._frames, self._refused, self._tokens = time.monotonic(), 0, 0, 0

    def add(self, done: Done) -> None:
        self._done += 1
        self._frames += done.frames
        self._refused += done.refused
        self._tokens += done.tokens
        passed = max(1e-9, time.monotonic() - self._began)
        note = f"{self._frames} frames, {self._frames / passed:.1f} a second, {self._refused} clips refused"
        self._context.report(step=self._done, of=self._of, tokens_per_second=self._tokens / passed, note=note)

    def waiting(self, text: str) -> None:
        """Nobody encodes yet; that time is no part of the rate."""
        self._began = time.monotonic()
        self._context.report(step=self._done, of=self._of, note=text)


def _gather(context: StageContext, folder: str, shards: Sequence[Shard], place: str, info: StoreInfo) -> pa.Table:
    """The committed shards as shards of the store; what became of each clip, in order of shards."""
    groups, held = [[]], 0
    for shard in shards:
        if held >= _SHARD_TOKENS:
            groups.append([])
            held = 0
        groups[-1].append(shard.name)
        held += read_done(folder, shard.name).tokens
    blocks = [pa.table({"number": [number] * len(names), "name": names}) for number, names in enumerate(groups)]
    arguments = {"folder": folder, "place": place, "info": info}
    tables = list(map_blocks(context, blocks, _gather_block, arguments))
    return pa.concat_tables(sorted(tables, key=lambda rows: rows["shard"][0].as_py()))


def _gather_block(block: pa.Table, folder: str, place: str, info: StoreInfo) -> pa.Table:
    """Write one shard of the store. Runs in a Ray task."""
    number = block["number"][0].as_py()
    rows = pa.concat_tables([read_shard(folder, name) for name in block["name"].to_pylist()])
    kept = np.asarray(rows["reason"].is_null())
    ids = [ids_of(stored) for stored in rows["ids"].drop_null().to_pylist()]
    offset, tokens = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    offset[kept] = write_shard(place, number, ids, info)
    tokens[kept] = [len(each) for each in ids]
    columns = {"shard": np.full(len(rows), number, np.int32), "offset": offset, "tokens": tokens}
    for name, values in columns.items():
        rows = rows.append_column(name, pa.array(values))
    return rows.drop_columns("ids")


def _described(clips: pa.Table, rows: pa.Table) -> pa.Table:
    """What is known of each clip that is kept, numbered in the order of the shards."""
    kept = rows.filter(pc.field("reason").is_null()).drop_columns(["reason", "detail"])
    kept = kept.append_column("document", pa.array(np.arange(len(kept))))
    known = ["kind", "caption", "conversation", "license", "sha256", "split", "seconds"]
    found = clips.select(known).take(pc.call_function("index_in", [kept["name"]], pc.SetLookupOptions(clips["name"])))
    for name in known:
        kept = kept.append_column(name, found[name])
    return kept


def _check_usable(clips: pa.Table, rows: pa.Table, index: pa.Table) -> None:
    """A split that had clips must have some left: nobody draws another one here."""
    for split in ("train", "held_out"):
        had, left = (table.filter(pc.field("split") == split) for table in (clips, index))
        if had.num_rows and not left.num_rows:
            [first, *_] = rows.filter(pc.field("name").isin(had["name"])).to_pylist()
            raise UserError(
                f"all {had.num_rows} clips of the split {split} are refused ({first['name']}: {first['reason']} "
                f"{first['detail']}); make the media stage again, with files that stay where they are"
            )


def _figures(
    recipe: CodesRecipe, encoder: Encoder, clips: pa.Table, rows: pa.Table, index: pa.Table, done: Sequence[Done]
) -> dict[str, Any]:
    refused = rows.filter(~pc.field("reason").is_null())
    slower = pc.field("rate") < recipe.rate
    return {
        "vqgan": encoder.hash,
        "side": encoder.side,
        "grid": encoder.grid,
        "codebook": encoder.codebook,
        "rate": recipe.rate,
        **_total(index),
        "kinds": _by(index, "kind"),
        "splits": _by(index, "split"),
        "encoded_frames": sum(one.frames for one in done),
        "slowed": index.filter(slower).num_rows,
        "lengths": length_histogram(index["tokens"].to_numpy()),
        "seen": clips.num_rows,
        "reasons": tally(refused["reason"]),
        "refused": refused.select(["name", "reason", "detail"]).slice(0, _NAMED).to_pylist(),
        "seconds": {name: sum(getattr(one, name) for one in done) for name in ("decoding", "encoding", "waiting")},
    }


def _by(index: pa.Table, column: str) -> dict[str, dict[str, int]]:
    return {value: _total(index.filter(pc.field(column) == value)) for value in tally(index[column])}


def _total(index: pa.Table) -> dict[str, int]:
    frames, tokens = (int(index[name].to_numpy().sum()) for name in ("frames", "tokens"))
    return {"clips": index.num_rows, "frames": frames, "codes": tokens - frames, "tokens": tokens}
