"""A token store of real bytes, made without Ray: what the trainer and the evaluator read in tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from ringworld.data.packing import cut_in_rows, pack
from ringworld.data.plan import WeighBy
from ringworld.data.token_store import INDEX_SCHEMA, StoreInfo, TokenStore, write_index, write_shard
from ringworld.data.tokenizers import ByteTokenizer

TOKENIZER = ByteTokenizer()
_WORDS = "the whale sailed north while captain ahab slept and the sea was calm again that night"


def prose(seed: int, sentences: int) -> str:
    """Text with something to learn in it: sentences over a small vocabulary."""
    rng = np.random.default_rng(seed)
    words = _WORDS.split()
    return " ".join(" ".join(rng.choice(words, 8)) + "." for _ in range(sentences))


def write_corpus(
    folder: Path, texts: Sequence[str], held_out: int = 1, domains: Sequence[str] | None = None
) -> TokenStore:
    """A byte-tokenized store of these texts, the last `held_out` of them held out, and the tokenizer's own folder.

    domains: of each text.
    """
    tokens = folder / "tokens"
    info = StoreInfo(TOKENIZER.hash, TOKENIZER.vocabulary_size, TOKENIZER.eos_id, TOKENIZER.pad_id)
    documents = [np.append(ids, TOKENIZER.eos_id) for ids in TOKENIZER.encode_batch(texts)]
    count = len(documents)
    columns = {
        "document": np.arange(count),
        "sha256": [f"{number:064x}" for number in range(count)],
        "source": [f"text-{number}" for number in range(count)],
        "shard": [0] * count,
        "offset": write_shard(str(tokens), 0, documents, info),
        "tokens": [len(ids) for ids in documents],
        "split": ["train"] * (count - held_out) + ["held_out"] * held_out,
    }
    index = pa.table(columns, schema=INDEX_SCHEMA)
    write_index(str(tokens), info, index if domains is None else index.append_column("corpus", pa.array(domains)))
    TOKENIZER.save(str(folder / "tokenizer"))
    return TokenStore.open(str(tokens))


def write_plan(folder: Path, store: TokenStore, sequence: int, weigh_by: WeighBy = "token") -> str:
    """The packing plan of the store's training documents; its path."""
    path = str(folder / f"plan-{sequence}.parquet")
    slices = cut_in_rows(store.index, store.index.documents("train"), sequence)
    pack(store.index, slices, sequence, weigh_by).save(path)
    return path
