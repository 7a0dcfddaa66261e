"""A store of conversations of real bytes, made without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from ringworld.data.token_store import ANSWERS_INDEX_SCHEMA, StoreInfo, TokenStore, write_index, write_shard
from ringworld.data.tokenizers import ByteTokenizer

TOKENIZER = ByteTokenizer()
Said = Sequence[tuple[str, str]]  # (asked, answer), ...


def ids_of(talk: Said) -> tuple[np.ndarray, np.ndarray]:
    """(ids, marks) of a conversation in the plain template, an end-of-text id after each answer."""
    ids, marks = [], []
    for asked, answer in talk:
        for text, counted in ((f"USER: {asked} ASSISTANT:", 0), (f" {answer}" if answer else "", 1)):
            piece = list(text.encode()) + [TOKENIZER.eos_id] * counted
            ids += piece
            marks += [counted] * len(piece)
    return np.array(ids), np.array(marks)


def write_talks(folder: Path, talks: Sequence[tuple[str, Said]], held_out: Sequence[bool]) -> TokenStore:
    """A store of (corpus, conversation), and its tokenizer's own folder."""
    url = str(folder / "conversations")
    info = StoreInfo(TOKENIZER.hash, TOKENIZER.vocabulary_size, TOKENIZER.eos_id, TOKENIZER.pad_id, answers=True)
    encoded = [ids_of(talk) for _, talk in talks]
    count = len(talks)
    columns = {
        "document": np.arange(count),
        "sha256": [f"{number:064x}" for number in range(count)],
        "source": [f"talk-{number}" for number in range(count)],
        "shard": [0] * count,
        "offset": write_shard(url, 0, [ids for ids, _ in encoded], info, [marks for _, marks in encoded]),
        "tokens": [len(ids) for ids, _ in encoded],
        "split": ["held_out" if kept else "train" for kept in held_out],
        "corpus": [corpus for corpus, _ in talks],
        "answers": [int(marks[1:].sum()) for _, marks in encoded],
    }
    write_index(url, info, pa.table(columns, schema=ANSWERS_INDEX_SCHEMA))
    return TokenStore.open(url)
