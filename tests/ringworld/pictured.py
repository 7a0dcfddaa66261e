"""A store of examples with pictures, made without Ray: captions and codes by turns, the codes past the text's ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from ringworld.data.token_store import StoreInfo, TokenStore, write_index, write_shard
from tests.ringworld.corpus import TOKENIZER

OFFSET, CODES = 260, 24  # a model's text vocabulary may be larger than the tokenizer's


def example(seed: int, codes: int, caption: str, text_first: bool) -> np.ndarray:
    """A caption and so many codes that follow from one another, in either order, and the end-of-text id."""
    rng = np.random.default_rng(seed)
    seen = OFFSET + (rng.integers(CODES) + np.arange(codes)) % CODES
    text = TOKENIZER.encode(caption)
    parts = [text, seen] if text_first else [seen, text]
    return np.concatenate([*parts, [TOKENIZER.eos_id]]).astype(np.int32)


def write_pictured(
    folder: Path, documents: Sequence[np.ndarray], corpora: Sequence[str], answers: Sequence[np.ndarray] | None = None
) -> TokenStore:
    """A store of these examples, the last of each corpus held out. answers: marks, for a store of conversations."""
    info = StoreInfo(
        TOKENIZER.hash,
        TOKENIZER.vocabulary_size,
        TOKENIZER.eos_id,
        TOKENIZER.pad_id,
        answers is not None,
        OFFSET,
        CODES,
    )
    count = len(documents)
    marks = answers or [np.ones(len(ids), bool) for ids in documents]
    seen = [int(((ids >= OFFSET) & mark)[1:].sum()) for ids, mark in zip(documents, marks, strict=True)]
    last = {corpus: number for number, corpus in enumerate(corpora)}
    columns = {
        "document": np.arange(count),
        "sha256": [f"{number:064x}" for number in range(count)],
        "source": [f"clip-{number}" for number in range(count)],
        "shard": [0] * count,
        "offset": write_shard(str(folder), 0, documents, info, answers),
        "tokens": [len(ids) for ids in documents],
        "split": ["held_out" if last[corpus] == number else "train" for number, corpus in enumerate(corpora)],
        "corpus": list(corpora),
        "answers": [int(mark[1:].sum()) for mark in marks],
        "seen": seen,
    }
    write_index(str(folder), info, pa.table({name: columns[name] for name in info.index_schema.names}))
    return TokenStore.open(str(folder))
