"""Clips as codes, examples of them, and the VQGAN behind both, made without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from ringworld.data.token_store import StoreInfo, TokenStore, write_index, write_shard
from ringworld.vision.config import VQConfig
from ringworld.vision.examples import CodedClip, Example, ExampleOptions, Maker
from ringworld.vision.stream import VisionIds, clip_ids
from ringworld.vision.vqgan_import import weights_sha256, write_vqgan
from tests.ringworld.corpus import TOKENIZER
from tests.ringworld.vision.vqgans import random_params

VQGAN = VQConfig(16, (8, 8, 16), blocks=1, latent=8, code_dim=6, codebook=32, groups=4)
IDS = VisionIds(264, VQGAN.codebook)  # past a model's text vocabulary, which is larger than the tokenizer's
VOCABULARY = 40  # of a model's vision ids, larger than what is used
HELD_OUT = 8  # the last ones of the clips


def clips() -> list[tuple[CodedClip, np.ndarray]]:
    """Images and videos by turns, with their codes."""
    found = []
    for number in range(12):
        kind, frames = ("image", 1) if number % 2 == 0 else ("video", 3 + number % 4)
        codes = np.random.default_rng(number).integers(VQGAN.codebook, size=(frames, VQGAN.grid, VQGAN.grid))
        rate = None if kind == "image" else 4.0
        found.append((CodedClip(f"clip-{number}", kind, f"{number:064x}", f"scene {number}", (), rate), codes))
    return found


def write_clips(folder: Path) -> TokenStore:
    """The VQGAN's folder and the store of codes."""
    write_vqgan(str(folder / "vqgan"), VQGAN, random_params(VQGAN))
    ids = VisionIds(0, VQGAN.codebook)
    streams = [clip_ids(codes, ids) for _, codes in clips()]
    info = StoreInfo(weights_sha256(str(folder / "vqgan")), ids.vocabulary, ids.eov, ids.eov)
    return _write(folder / "codes", info, streams, [clip.kind for clip, _ in clips()], range(len(streams)))


def examples(form: Literal["pairs", "chat"], sequence: int) -> list[tuple[int, Example]]:
    """(clip, example) of every clip that makes some."""
    maker = Maker(ExampleOptions(form, sequence), TOKENIZER, IDS)
    made = [(number, found) for number, (clip, codes) in enumerate(clips()) for found in maker.make(clip, codes)]
    return [(number, found) for number, found in made if isinstance(found, Example)]


def write_examples(folder: Path, form: Literal["pairs", "chat"], sequence: int) -> TokenStore:
    made = examples(form, sequence)
    info = StoreInfo(
        TOKENIZER.hash, TOKENIZER.vocabulary_size, TOKENIZER.eos_id, TOKENIZER.pad_id, form == "chat", IDS.offset,
        VOCABULARY,
    )  # fmt: skip
    ids, corpora = [found.ids for _, found in made], [found.corpus for _, found in made]
    marks = [found.answer for _, found in made]
    return _write(folder, info, ids, corpora, [number for number, _ in made], marks)


def _write(
    folder: Path,
    info: StoreInfo,
    documents: Sequence[np.ndarray],
    corpora: Sequence[str],
    of_clip: Sequence[int],
    marks: Sequence[np.ndarray] = (),
) -> TokenStore:
    count = len(documents)
    counted = marks or [np.ones(len(ids), bool) for ids in documents]
    columns = {
        "document": np.arange(count),
        "sha256": [f"{number:064x}" for number in of_clip],
        "source": [f"clip-{number}" for number in of_clip],
        "shard": [0] * count,
        "offset": write_shard(str(folder), 0, documents, info, marks if info.answers else None),
        "tokens": [len(ids) for ids in documents],
        "split": ["held_out" if number >= len(clips()) - HELD_OUT else "train" for number in of_clip],
        "corpus": list(corpora),
        "answers": [int(mark[1:].sum()) for mark in counted],
        "seen": [
            int(((ids >= info.vision_offset) & mark)[1:].sum()) for ids, mark in zip(documents, counted, strict=True)
        ],
    }
    names = dict.fromkeys([*info.index_schema.names, "corpus"])
    write_index(str(folder), info, pa.table({name: columns[name] for name in names}))
    return TokenStore.open(str(folder))
