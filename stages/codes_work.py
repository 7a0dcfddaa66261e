"""Making one shard of codes: clips read, decoded and encoded, a batch of frames at a time, and all of it committed.

This is what a worker of the pool does, in a process of its own, which holds the encoder. Frames of images and videos
follow one another in the same batches, decoded by a thread while the batch before is encoded; so of pixels there is
never more in memory than a few batches, whatever a video's length. The codes of a shard's clips are held until it ends.
Clips of one file, such as a picture with several captions, are encoded once.

A committed shard (`stages.shards`) has a row of `ROWS` for each clip, refused or not, and says what it took.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ringworld.data.files import open_to_read
from ringworld.errors import UserError
from ringworld.vision.ahead import Ahead
from ringworld.vision.clip_table import clips_of
from ringworld.vision.clips import Clip, Content
from ringworld.vision.media import contents, load
from ringworld.vision.pixels import Refused, read_image, to_square
from ringworld.vision.stream import VisionIds, clip_ids
from ringworld.vision.video import Frame, Frames, at_rate
from ringworld.vision.video_reader import VideoOptions
from stages.shards import commit_shard, read_told, told_before

ROWS = pa.schema(
    [
        ("name", pa.string()),
        ("frames", pa.int32()),  # stored; 0 for a clip that is refused
        ("rate", pa.float64()),  # stored frames a second; null for an image
        ("ids", pa.large_binary()),  # the stream, little-endian uint32; null for a clip that is refused
        ("reason", pa.string()),  # null for one that is kept
        ("detail", pa.string()),
    ]
)
_ID = "<u4"


@dataclass(frozen=True)
class ReadLimits:
    """What is not decoded: images and frames of more pixels, longer videos, images of more bytes."""

    max_image_pixels: int = 1 << 26
    max_frame_pixels: int = 1 << 25
    max_seconds: float = 4 * 3600.0
    max_bytes: int = 1 << 29


@dataclass(frozen=True)
class Encoder:
    """A VQGAN's folder as its codes know it. side: pixels; grid: codes of a side. hash: sha256 of its weights."""

    folder: str
    side: int
    grid: int
    codebook: int
    hash: str


@dataclass(frozen=True)
class Job:
    """What workers are told: plain values and places. batch: frames at a time. shards: a folder."""

    encoder: Encoder
    rate: float
    most_frames: int
    limits: ReadLimits
    batch: int
    shards: str


@dataclass(frozen=True, eq=False)
class Shard:
    """clips: rows of the clips' table, in the order in which their files are read."""

    number: int
    clips: pa.Table

    @property
    def name(self) -> str:
        return f"{self.number:06d}"


@dataclass(frozen=True)
class Done:
    """A shard that is through. frames: encoded, also of clips that were refused in the end. tokens: of those kept.

    Seconds of the clock: decoding, by the thread that decodes; encoding; waiting, of the encoder for frames.
    """

    clips: int
    refused: int
    frames: int
    tokens: int
    decoding: float
    encoding: float
    waiting: float


class Worker:
    """Opened once; `encode` is then called for one shard after another."""

    def open(self, job: Job) -> None:
        """Loads the encoder and compiles it. bfloat16 where there is an accelerator, float32 on CPUs."""
        import jax

        from ringworld.vision.codec import Codec
        from ringworld.vision.vqgan_import import read_vqgan

        config, params = read_vqgan(job.encoder.folder)
        self._job = job
        self._codec = Codec(config, params, job.batch, "float32" if jax.default_backend() == "cpu" else "bfloat16")
        self._codec.encode(np.zeros((1, job.encoder.side, job.encoder.side, 3), np.uint8))

    def encode(self, shard: Shard) -> Done:
        """Make a shard and commit it. OSError for a file that is no longer what it was."""
        if (before := told_before(self._job.shards, shard.name)) is not None:
            return Done(**before)
        job, clips = self._job, clips_of(shard.clips)
        frames = _ShardFrames(shard.clips, job)
        codes: list[list[np.ndarray]] = [[] for _ in clips]
        encoding, done = 0.0, 0
        with Ahead(frames, job.batch) as ahead:
            for chunk in ahead:
                began = time.perf_counter()
                found = self._codec.encode(chunk.pixels)
                encoding += time.perf_counter() - began
                owners = frames.owners[done : done + len(found)]
                for at, owner in enumerate(owners):
                    codes[owner].append(found[at])
                done += len(found)
        ids = VisionIds(0, job.encoder.codebook)
        rows = [_row(clip, frames, read, codes[read], ids) for clip, read in zip(clips, frames.same, strict=True)]
        usage = ahead.usage
        told = Done(
            clips=len(rows),
            refused=sum("reason" in row for row in rows),
            frames=done,
            tokens=sum(len(row.get("ids", b"")) for row in rows) // np.dtype(_ID).itemsize,
            decoding=usage.decoding,
            encoding=encoding,
            waiting=usage.no_frames,
        )
        commit_shard(job.shards, shard.name, pa.Table.from_pylist(rows, ROWS), asdict(told))
        return told


def read_encoder(folder: str, side: int) -> Encoder:
    """side: pixels, 0 for those that the VQGAN was trained at. UserError for a side that it cannot encode."""
    from ringworld.vision.vqgan_import import read_vqgan_config, weights_sha256

    config = read_vqgan_config(folder)
    side = side or config.resolution
    if side % config.factor:
        raise UserError(f"side={side}: one code of this VQGAN stands for {config.factor} pixels; give a multiple")
    return Encoder(folder, side, side // config.factor, config.codebook, weights_sha256(folder))


def shards_of(clips: pa.Table, rate: float, most_frames: int, frames: int) -> list[Shard]:
    """Clips in groups of about `frames` stored frames, in the order of their files, so that few are opened twice. Pure.

    clips: with `place`, `member`, `name` and `seconds`.
    """
    ordered = clips.sort_by([(name, "ascending") for name in ("place", "member", "name")])
    groups, held = [[]], 0
    for row, seconds in enumerate(ordered["seconds"].to_pylist()):
        size = 1 if seconds is None else min(most_frames, math.ceil(seconds * rate))
        if groups[-1] and held + size > frames:
            groups.append([])
            held = 0
        groups[-1].append(row)
        held += size
    # Taken and not sliced: a slice travels to a worker with all of the table.
    return [Shard(number, ordered.take(pa.array(rows, pa.int64()))) for number, rows in enumerate(groups) if rows]


def stored_rate(seconds: float, rate: float, most_frames: int) -> float:
    """Frames a second: `rate`, or less, so that a long video is seen to its end in `most_frames`. Pure."""
    return min(rate, most_frames / seconds)


def read_done(folder: str, name: str) -> Done:
    return Done(**read_told(folder, name))


def ids_of(stored: bytes) -> np.ndarray:
    """The stream of a row of `ROWS`, int32."""
    return np.frombuffer(stored, _ID).astype(np.int32)


class _ShardFrames(Frames):
    """The frames of all clips of a shard, one after another, as if they were one video's.

    owners: of each frame so far, the clip's number. same: of each clip, the number of the one that is read for it.
    refused: by number, what turned out to be no whole clip. rates: of videos, by number.
    """

    def __init__(self, clips: pa.Table, job: Job) -> None:
        self._clips, self._job = clips, job
        self.owners: list[int] = []
        files = list(zip(clips["place"].to_pylist(), clips["member"].to_pylist(), strict=True))
        first = {file: number for number, file in reversed(list(enumerate(files)))}
        self.same = [first[file] for file in files]
        self.refused: dict[int, Refused] = {}
        self.rates: dict[int, float] = {}
        limits = job.limits
        video = VideoOptions(limits.max_frame_pixels, limits.max_seconds)
        super().__init__(b"", (), video, job.encoder.side)

    def _run(self) -> Generator[Frame, None, None]:
        clips = clips_of(self._clips)
        number_of = {clip.name: number for number, clip in enumerate(clips)}
        known = self._clips.select(["seconds", "bytes", "sha256"]).to_pylist()
        for clip, content in contents(clips[number] for number in sorted(set(self.same))):
            number = number_of[clip.name]
            found = _changed(content, known[number])
            if found is None and clip.kind == "image":
                found = yield from self._image(number, content)
            elif found is None:
                found = yield from self._video(number, content, known[number]["seconds"])
            if found is not None:
                self.refused[number] = found

    def _image(self, number: int, content: Content) -> Generator[Frame, None, Refused | None]:
        limits, side = self._job.limits, self._job.encoder.side
        data = load(content, limits.max_bytes)
        found = data if isinstance(data, Refused) else read_image(data, limits.max_image_pixels, side)
        if isinstance(found, Refused):
            return found
        self.owners.append(number)
        yield Frame(0.0, to_square(found.pixels, side))
        return None

    def _video(self, number: int, content: Content, seconds: float) -> Generator[Frame, None, Refused | None]:
        job = self._job
        rate = self.rates[number] = stored_rate(seconds, job.rate, job.most_frames)
        frames = at_rate(content, rate, self._options, job.encoder.side)
        given = 0
        try:
            for frame in itertools.islice(frames, job.most_frames):
                given += 1
                self.owners.append(number)
                yield frame
        finally:
            frames.close()
        return frames.broken or (None if given else Refused("no frames", "none can be decoded"))


def _row(clip: Clip, frames: _ShardFrames, number: int, codes: Sequence[np.ndarray], ids: VisionIds) -> dict[str, Any]:
    refused = frames.refused.get(number)
    row: dict[str, Any] = {"name": clip.name, "frames": 0, "rate": frames.rates.get(number)}
    if refused is not None:
        return row | {"reason": refused.reason, "detail": refused.detail}
    return row | {"frames": len(codes), "ids": clip_ids(np.stack(codes), ids).astype(_ID).tobytes()}


def _changed(content: Content, known: Mapping[str, Any]) -> Refused | None:
    """Why this is not the content that was looked at: of a file that lies by itself only the size is compared."""
    if isinstance(content, bytes):
        same = hashlib.sha256(content).hexdigest() == known["sha256"]
        return None if same else Refused("changed", "another content than was listed; make the media stage again")
    try:
        with open_to_read(content) as file:
            size = file.seek(0, 2)
    except FileNotFoundError:
        return Refused("no such file", content)
    if size == known["bytes"]:
        return None
    return Refused("changed", f"{size} bytes, {known['bytes']} when it was listed; make the media stage again")
