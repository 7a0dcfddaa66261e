"""Clips to codes to examples on a local Ray: frames as the codec has them, shards that survive, every count exact."""

from __future__ import annotations

import os
import re
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from actors.local import RayCluster
from infra.placement import Placement
from infra.stage import Result, Stage, StageContext, canonical
from ringworld.data.files import list_files, read_table, write_table
from ringworld.data.token_store import StoreInfo, TokenStore, write_index, write_shard
from ringworld.data.tokenizers import ByteTokenizer
from ringworld.errors import UserError
from ringworld.vision.codec import Codec
from ringworld.vision.examples import ExampleOptions
from ringworld.vision.pixels import Picture, read_image, to_square
from ringworld.vision.stream import VisionIds, clip_ids, frames_of, spans_of
from ringworld.vision.video import at_rate
from ringworld.vision.vqgan import init_params
from ringworld.vision.vqgan_import import weights_sha256, write_vqgan
from stages import pack_vision, vision_examples
from stages.codes import CODES_SCHEMA, CodesRecipe
from stages.codes_work import Job, ReadLimits, Shard, Worker, read_done, read_encoder, shards_of
from stages.pack_vision import PackVisionRecipe
from stages.shards import committed, read_shard
from stages.vision_examples import VisionExamplesRecipe
from tests.infra.tiny import Number
from tests.ringworld.vision.films import film, noise
from tests.stages.coded import GRID, IMAGES, VQGAN, Run
from tests.stages.killing import none_left, one_worker_killed

IDS = VisionIds(0, VQGAN.codebook)
OFFSET, BYTES = 300, ByteTokenizer()
SHORT: dict[str, Any] = {"rate": 2.0, "most_frames": 6, "shard_frames": 10}


@pytest.fixture(scope="module")
def prepared(cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("coded"))


def codec() -> Codec:
    return Codec(VQGAN, init_params(VQGAN, 1))


def in_order(made: Any) -> dict[str, np.ndarray]:
    """The stream of each clip, by the last part of its name."""
    store = TokenStore.open(made.path("codes"))
    names = read_table(made.path("clips.parquet"))["name"].to_pylist()
    return {name.rpartition("/")[2]: store.read(document) for document, name in enumerate(names)}


def test_every_clip_is_stored_as_the_codec_sees_its_frames(prepared: Run) -> None:
    made = prepared.made(prepared.codes(**SHORT))
    store = TokenStore.open(made.path("codes"))
    rows = read_table(made.path("clips.parquet")).to_pylist()
    listed = {row["name"]: row for row in read_table(prepared.made(prepared.media).path("clips.parquet")).to_pylist()}
    assert {row["name"] for row in rows} == set(listed)
    assert len(rows) == IMAGES + 1 + 5
    reference = codec()
    for document, row in enumerate(rows):
        clip = listed[row["name"]]
        assert row["document"] == document
        for name in ("kind", "caption", "conversation", "sha256", "split", "seconds"):
            assert row[name] == clip[name]
        if row["kind"] == "image":
            found = read_image(Path(clip["place"]).read_bytes(), at_least=16)
            assert isinstance(found, Picture)
            pixels, rate = to_square(found.pixels, 16)[None], None
        else:
            rate = min(2.0, 6 / clip["seconds"])
            pixels = np.stack([frame.pixels for frame in at_rate(clip["place"], rate, side=16)])
        assert row["rate"] == rate
        assert row["frames"] == len(pixels) <= 6
        stored = store.read(document)
        assert row["tokens"] == len(stored) == len(pixels) * (GRID * GRID + 1)
        np.testing.assert_array_equal(frames_of(stored, IDS, GRID), reference.encode(pixels))
        assert store.index.held_out[document] == (clip["split"] == "held_out")
        assert store.index.corpus is not None
        assert store.index.corpus[document] == clip["kind"]
    provenance = store.provenance().to_pylist()
    assert [row["source"] for row in provenance] == [row["name"] for row in rows]

    told = made.values
    assert (store.info.vocabulary_size, store.info.eos_id) == (VQGAN.codebook + 2, IDS.eov)
    vqgan = prepared.made(prepared.vqgan).path("vqgan")
    assert store.info.tokenizer_hash == told["vqgan"] == weights_sha256(vqgan)
    assert (told["grid"], told["side"], told["codebook"]) == (GRID, 16, 64)
    assert (told["clips"], told["seen"], told["reasons"], told["refused"]) == (15, 15, {}, [])
    assert told["frames"] == sum(row["frames"] for row in rows)
    assert told["codes"] == told["frames"] * GRID * GRID == told["tokens"] - told["frames"]
    assert told["kinds"]["image"]["clips"] == IMAGES + 1
    assert sum(kind["frames"] for kind in told["kinds"].values()) == told["frames"]
    assert sum(split["clips"] for split in told["splits"].values()) == 15
    assert told["slowed"] == 1  # ten seconds in six frames; the others are stored at the rate
    assert all(seconds > 0 for seconds in told["seconds"].values())
    # A picture with a caption and a conversation is two clips, and is encoded once.
    streams = in_order(made)
    assert len({stream.tobytes() for stream in streams.values()}) == 14
    np.testing.assert_array_equal(streams["scene0.png"], streams["chat.jsonl#1"])
    assert told["encoded_frames"] == told["frames"] - 1


def test_a_stop_costs_the_shards_under_way_and_a_killed_worker_one(prepared: Run) -> None:
    """By counting: what was committed before stays as it is, file by file, and nothing is lost or there twice."""
    # A batch that is nearly empty takes its time: there are moments between one shard and the next.
    stage = prepared.codes("codes-killed", {"batch": 2048}, **{**SHORT, "shard_frames": 1})
    folder = prepared.store.url("codes-killed", "state", "1", "shards")

    def through() -> dict[str, int]:
        names = committed(folder) if os.path.isdir(folder) else set()
        return {name: os.stat(os.path.join(folder, f"{name}.parquet")).st_ino for name in names}

    stop, done = threading.Event(), threading.Event()

    def stop_after_two() -> None:
        while not done.wait(0.005) and not stop.is_set():
            stop.set() if len(through()) >= 2 else None

    watcher = threading.Thread(target=stop_after_two)
    watcher.start()
    try:
        outcome = prepared.run(stage, stop=stop)
    finally:
        done.set()
        watcher.join()
    assert outcome.stopped
    assert none_left("Worker.")
    first = through()
    assert 2 <= len(first) < 12

    second: dict[str, int] = {}

    def when() -> bool:
        second.update(through())
        return len(second) > len(first)

    with one_worker_killed("Worker.", when):
        made = prepared.made(stage)
    assert len(prepared.store.attempts("codes-killed")) == 2
    after = through()
    assert len(after) == 15
    assert first.items() <= second.items() <= after.items()
    assert len(second) < 15
    found, whole = (in_order(one) for one in (made, prepared.made(prepared.codes(**SHORT))))
    assert found.keys() == whole.keys()
    for name, stream in whole.items():
        np.testing.assert_array_equal(found[name], stream)


def test_what_is_no_longer_whole_is_refused_by_name(cluster: RayCluster, tmp_path: Path) -> None:
    run = Run(tmp_path)
    listed = read_table(run.made(run.media).path("clips.parquet")).to_pylist()
    train = {row["place"].rpartition("/")[2] for row in listed if row["split"] == "train"}
    broken = run.sources / sorted(name for name in train if name.endswith(".mp4"))[0]
    changed, gone = (run.sources / name for name in sorted(name for name in train if name.startswith("scene"))[-2:])
    data = bytearray(broken.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    broken.write_bytes(data)  # of the same size: only decoding tells
    changed.write_bytes(changed.read_bytes() + b"more")
    gone.unlink()
    made = run.made(run.codes())
    told = made.values
    assert {Path(row["name"]).name: row["reason"] for row in told["refused"]} == {
        broken.name: "broken video", changed.name: "changed", gone.name: "no such file",
    }  # fmt: skip
    assert told["reasons"] == {"broken video": 1, "changed": 1, "no such file": 1}
    assert (told["clips"], told["seen"]) == (12, 15)
    assert not {broken.name, changed.name, gone.name} & in_order(made).keys()

    for name in train:
        (run.sources / name).unlink(missing_ok=True)
    failure = run.run(run.codes("codes-nothing")).failures["codes-nothing"]
    assert failure.kind == "user"
    assert f"all {len(train)} clips of the split train are refused" in failure.message
    failure = run.run(run.codes("codes-odd", side=30)).failures["codes-odd"]
    assert "side=30: one code of this VQGAN stands for 4 pixels" in failure.message


def test_memory_is_that_of_a_few_batches_whatever_the_length(tmp_path: Path) -> None:
    """In this process, at a side that makes pixels the most of it."""
    side, batch = 64, 4
    write_vqgan(str(tmp_path / "vqgan"), VQGAN, init_params(VQGAN, 1))
    encoder = read_encoder(str(tmp_path / "vqgan"), side)
    job = Job(encoder, 25.0, 4096, ReadLimits(), batch, str(tmp_path / "shards"))
    worker = Worker()
    worker.open(job)
    peaks = []
    for number, frames in enumerate((20, 400)):
        place = film(tmp_path / f"{frames}.mp4", frames, paint=lambda k: noise(k % 9))
        row = {"name": str(frames), "kind": "video", "place": str(place), "conversation": [], "sha256": "", "bytes": 0}
        row |= {"seconds": frames / 25, "bytes": place.stat().st_size, "member": None, "caption": None}
        clips = pa.Table.from_pylist([row | {"license": None, "split_key": None}])
        tracemalloc.start()
        done = worker.encode(Shard(number, clips))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert done == read_done(job.shards, f"{number:06d}")
        assert (done.frames, done.refused) == (frames, 0)
        assert read_shard(job.shards, f"{number:06d}")["frames"].to_pylist() == [frames]
    codes = 400 * (side // 4) ** 2 * 4
    assert peaks[1] - peaks[0] < 4 * codes < 400 * side * side * 3


def test_shards_follow_the_files_and_hold_about_as_many_frames() -> None:
    rows = [
        *({"name": f"b{k}", "place": "b.tar", "member": f"{k}.png", "seconds": None} for k in range(5)),
        *({"name": f"a{k}", "place": f"a{k}.mp4", "member": None, "seconds": 10.0 * k} for k in (1, 2, 30)),
    ]
    found = shards_of(pa.Table.from_pylist(rows), 2.0, 100, 64)
    assert [shard.clips["name"].to_pylist() for shard in found] == [["a1", "a2"], ["a30"], [f"b{k}" for k in range(5)]]
    assert [shard.name for shard in found] == ["000000", "000001", "000002"]
    canonical(CodesRecipe())
    for name in ("rate", "most_frames", "shard_frames"):
        with pytest.raises(UserError, match=f"{name}=0"):
            replace(CodesRecipe(), **{name: 0})


def examples_of(run: Run, name: str, codes: Stage, how: ExampleOptions, vision_vocabulary: int = 80) -> Stage:
    """Of a model whose text vocabulary is larger than the tokenizer's, and whose vision vocabulary than the codes."""
    recipe = VisionExamplesRecipe(OFFSET, vision_vocabulary, how)
    return Stage(name, recipe, vision_examples.run, {"codes": codes, "tokenizer": run.tokenizer}, Placement())


def test_pairs_are_a_store_of_mixed_ids_that_a_plan_can_be_made_of(prepared: Run) -> None:
    codes = prepared.codes(**SHORT)
    how = ExampleOptions("pairs", 90, rate=1.0)
    made = prepared.made(examples_of(prepared, "examples-pairs", codes, how))
    clips = read_table(prepared.made(codes).path("clips.parquet")).to_pylist()
    streams = TokenStore.open(prepared.made(codes).path("codes"))
    store = TokenStore.open(made.path("tokens"))
    info, index = store.info, store.index
    assert (info.answers, info.vision_offset, info.vision_vocabulary, info.dtype) == (False, OFFSET, 80, "uint16")
    assert info.tokenizer_hash == BYTES.hash
    assert index.corpus is not None
    assert index.seen is not None
    captioned = [clip for clip in clips if clip["caption"]]
    # Of what is held out both orders are there.
    expected = [clip for clip in captioned for _ in range(1 + (clip["split"] == "held_out"))]
    provenance = store.provenance().to_pylist()
    assert [row["source"] for row in provenance] == [clip["name"] for clip in expected]
    ids = VisionIds(OFFSET, VQGAN.codebook)
    for document, clip in enumerate(expected):
        tokens = store.read(document)
        [(begin, end)] = spans_of(tokens, ids)
        frames = frames_of(tokens[begin:end], ids, GRID)
        all_frames = frames_of(streams.read(clip["document"]), IDS, GRID)
        text = BYTES.decode([*tokens[:begin], *tokens[end:]])
        assert text in (f"{clip['caption']}<vision></vision>", f"<vision></vision>{clip['caption']}")
        assert tokens[-1] == BYTES.eos_id
        assert len(tokens) <= 91
        step = 2 if clip["kind"] == "video" and clip["rate"] == 2.0 else 1
        np.testing.assert_array_equal(frames, all_frames[::step][: len(frames)])
        assert index.seen[document] == len(frames) * (GRID**2 + 1) == (tokens[1:] >= OFFSET).sum()
        assert index.corpus[document] == clip["kind"]
        assert index.held_out[document] == (clip["split"] == "held_out")
    told = made.values
    assert (told["examples"], told["form"]) == (len(expected), "pairs")
    assert told["corpora"]["image"]["left"] == {"no caption": 1}
    assert told["seen"] == index.seen.sum()
    assert told["tokens"] == index.tokens.sum()
    assert sum(told["how"].values()) == told["examples"]
    assert set(told["how"]) == {"text first", "vision first"}
    assert {told["held_out"]["how"][order] for order in told["how"]} == {told["held_out"]["examples"] / 2}
    # Only the film of ten seconds has more frames, at one a second, than fit beside its caption.
    films = [clip["name"][-5] for clip in expected if clip["kind"] == "video"]
    assert told["corpora"]["image"]["shortened"] == 0
    assert told["corpora"]["video"]["shortened"] == films.count("4")
    assert told["corpora"]["video"]["frames"] == sum((2, 3, 3, 2, 3)[int(number)] for number in films)
    assert told["train"]["examples"] + told["held_out"]["examples"] == told["examples"]
    assert len(told["samples"]) == 10
    for sample in told["samples"]:
        assert re.search(r"<vision>\[\d frames?, \d+ ids\]</vision>", sample["text"])
        assert index.tokens[sample["document"]] == sample["tokens"]

    recipe = PackVisionRecipe(90, {"image": 0.5, "video": 0.5})
    ports = {"vision": examples_of(prepared, "examples-pairs", codes, how)}
    planned = prepared.made(Stage("pack-pairs", recipe, pack_vision.run, ports, Placement())).values
    assert (planned["documents"], planned["vision_tokens"]) == (told["train"]["examples"], told["train"]["seen"])

    again = prepared.made(examples_of(prepared, "examples-again", codes, how))
    assert again.values == told
    assert TokenStore.open(again.path("tokens")).provenance().equals(store.provenance())
    other = prepared.made(examples_of(prepared, "examples-other", codes, replace(how, seed=1, kinds=("image",))))
    assert set(other.values["corpora"]) == {"image"}


def test_of_chat_answers_alone_count_and_every_count_is_exact(prepared: Run) -> None:
    codes = prepared.codes(**SHORT)
    made = prepared.made(examples_of(prepared, "examples-chat", codes, ExampleOptions("chat", 400, frames=0)))
    clips = {row["name"]: row for row in read_table(prepared.made(codes).path("clips.parquet")).to_pylist()}
    store = TokenStore.open(made.path("tokens"))
    index = store.index
    assert index.answers is not None
    assert index.seen is not None
    assert index.corpus is not None
    ids, frame = VisionIds(OFFSET, VQGAN.codebook), GRID**2 + 1
    provenance = store.provenance().to_pylist()
    asked = 0
    for document, row in enumerate(provenance):
        clip, tokens = clips[row["source"]], store.read(document)
        [marks] = store.read_answers([document], [0], [len(tokens)])
        [(begin, end)] = spans_of(tokens, ids)
        frames_of(tokens[begin:end], ids, GRID)
        answered = tokens[marks]
        said = BYTES.decode(answered[answered < OFFSET])
        assert row["corpus"].startswith(f"{clip['kind']}-")
        if row["corpus"].endswith("generation"):
            assert said == " <vision></vision>"
            assert index.seen[document] == end - begin == frame * clip["frames"]
        else:
            asked += bool(clip["conversation"])
            assert said == (" It is a scene. Many." if clip["conversation"] else f" {clip['caption']}")
            assert index.seen[document] == 0
        assert index.answers[document] == marks[1:].sum() == len(answered)
        assert index.held_out[document] == (clip["split"] == "held_out")
    assert asked == 1
    told = made.values
    tasks = {f"{kind}-{task}" for kind in ("image", "video") for task in ("question", "generation")}
    assert set(told["corpora"]) == set(index.corpus) == tasks
    assert (told["examples"], told["answers"], told["seen"]) == (
        len(provenance), index.answers.sum(), index.seen.sum(),
    )  # fmt: skip
    assert told["corpora"]["image-question"]["how"] == {"conversation": 1, "wording": IMAGES}
    assert told["corpora"]["image-generation"]["left"] == {"no caption": 1}
    assert told["written_by_model"] is False
    assert {sample["corpus"] for sample in told["samples"]} == tasks


def test_codes_of_another_vqgan_are_refused_by_name(prepared: Run) -> None:
    other = VisionIds(0, 128)

    def write(context: StageContext, recipe: Number) -> Result:
        """Two frames of 4 x 4 codes; of value 2 the manifest tells of other codes, of 3 of another grid."""
        folder = os.path.join(context.attempt_dir, "codes")
        stream = clip_ids(np.full((2, 4, 4), 100), other)
        info = StoreInfo("a" * 64, other.vocabulary, other.eov, other.eov)
        row = {"document": 0, "sha256": "b" * 64, "source": "odd", "shard": 0, "tokens": 34, "split": "train"}
        table = pa.Table.from_pylist([row | {"offset": int(write_shard(folder, 0, [stream], info)[0])}])
        write_index(folder, info, table)
        known = row | {"name": "odd", "kind": "image", "caption": "Odd", "conversation": [], "frames": 2}
        write_table(os.path.join(context.attempt_dir, "clips.parquet"), pa.Table.from_pylist([known], CODES_SCHEMA))
        codebook, grid = (64 if recipe.value == 2 else 128), (5 if recipe.value == 3 else 4)
        files = ("clips.parquet", *(f"codes/{name}" for name in list_files(folder)))
        return Result(files, {"codebook": codebook, "grid": grid, "vqgan": "a" * 64})

    how = ExampleOptions("pairs", 100)
    told = {
        1: "codes of stage other-1: vision_vocabulary=80: 128 codes, eof and eov need 130; raise model.vision_vocab",
        2: "codes of stage other-2: the store holds 130 ids of VQGAN aaaaaaaaaaaa, its manifest says 66",
        3: "clip odd: a clip of [34] ids: expected a multiple of 26, 5 x 5 codes and an end each; make the stage again",
    }
    for value, message in told.items():
        codes = Stage(f"other-{value}", Number(value), write, {}, Placement())
        name = f"examples-other-{value}"
        stage = examples_of(prepared, name, codes, how, vision_vocabulary=130 if value == 3 else 80)
        failure = prepared.run(stage).failures[name]
        assert failure.kind == "user"
        assert message in failure.message
    short = examples_of(prepared, "examples-short", prepared.codes(**SHORT), ExampleOptions("pairs", 30))
    failure = prepared.run(short).failures["examples-short"]
    assert failure.kind == "user"
    assert re.match(
        r"sequence=30, .* no example can be made .*\(1 no caption, 14 too long; .*\); raise", failure.message
    )
