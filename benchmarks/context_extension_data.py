"""The data of the experiment: the text, and for each length documents to look things up in, which fit its rows.

- `text/` holds the documents as they are, some of them held out: what is measured reads those alone.
- `rows-LENGTH/` holds what a stage trains on, made of windows of the training documents: half of them with needles, the
  others with passages that come again (`ringworld.synthesis.recall`). The loss counts what is to be recalled, and of
  the text a random share, so that it does not drown that. Rows too short for a needle are passages of random tokens,
  copied to their end. The tokenizer is trained on text and needles.
- Most tokens (`Settings.whole`) are in documents as long as the row. The others are shorter, down to a quarter of the
  first row or to what one needle needs (lengths even in their logarithm), and share rows.
- Two plans of the same rows, with the same inputs and the same targets: masked, and naive, where a row is one example.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.context_extension_arms import Settings, Stage
from ringworld.data.files import write_json
from ringworld.data.packing import cut_in_rows, pack
from ringworld.data.plan import PackingPlan
from ringworld.data.readers import ReadOptions, read
from ringworld.data.sources import expand
from ringworld.data.split import held_out
from ringworld.data.token_store import (
    ANSWERS_INDEX_SCHEMA,
    INDEX_SCHEMA,
    StoreInfo,
    TokenStore,
    write_index,
    write_shard,
)
from ringworld.data.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer, train_bpe
from ringworld.errors import UserError
from ringworld.evaluate.needle import CITIES, QUESTION, SENTENCE, SENTENCE_END
from ringworld.synthesis.recall import Phrases, copy_document, magic_number, needle_document, passage_document

DOCUMENT_BYTES = 1 << 18  # of each source that is a distribution
TRAINED_BYTES = 1 << 22  # of text that the tokenizer is trained on
SPARE = 1.05  # more documents than the steps read: best fit leaves some slots empty


@dataclass(frozen=True)
class Data:
    """Where everything lies, of one experiment."""

    folder: Path

    @property
    def tokenizer(self) -> str:
        return str(self.folder / "tokenizer")

    @property
    def text(self) -> str:
        return str(self.folder / "text")

    def rows(self, length: int) -> str:
        return str(self.folder / f"rows-{length}")

    def plan(self, length: int, naive: bool) -> str:
        return str(self.folder / f"plan-{length}-{'naive' if naive else 'masked'}.parquet")


def prepare(folder: Path, settings: Settings, trained: Sequence[Stage]) -> Data:
    """Everything that the stages read and the probes measure, made where it is missing. Deterministic."""
    data, done = Data(folder), folder / "done.json"
    if done.exists():
        return data
    texts = _texts(settings)
    tokenizer = _tokenizer(settings, [text for _, text in texts])
    tokenizer.save(data.tokenizer)
    store = _write_text(data, settings, tokenizer, texts)
    about: dict[str, object] = {
        "documents": len(store.index.tokens),
        "tokens": int(store.index.tokens.sum()),
        "held_out_documents": len(store.index.documents("held_out")),
        "vocabulary": tokenizer.vocabulary_size,
    }
    phrases = Phrases.of(tokenizer, settings.seed)
    for number, length in enumerate((*settings.warm, *settings.lengths)):
        slots = max((stage.slots for stage in trained if stage.length == length), default=0)
        if slots:
            made = _write_rows(data, settings, store, phrases, length, slots, settings.seed + number)
            about[f"rows-{length}"] = made
    write_json(str(done), about)
    return data


def _texts(settings: Settings) -> list[tuple[str, str]]:
    """(source, text) of documents that fill the longest row in any tokenizer, in an order that no path decides."""
    least = 4 * settings.lengths[-1] if settings.vocabulary else settings.lengths[-1] + 1
    found: dict[str, tuple[str, str]] = {}
    for item in expand(settings.documents, DOCUMENT_BYTES):
        for document in read(item, ReadOptions()):
            if document.text is not None and len(document.text) >= least:
                found[hashlib.sha256(document.text.encode()).hexdigest()] = document.source, document.text
    kept, size = [], 0
    for _, (source, text) in sorted(found.items()):
        if size + len(text) <= settings.megabytes * 1e6:
            kept.append((source, text))
            size += len(text)
    if len(kept) < 2:
        raise UserError(
            f"documents={list(settings.documents)}: {len(kept)} of {len(found)} texts of {least} characters or more "
            f"within {settings.megabytes:g} MB; two are needed: name more, or shorten lengths"
        )
    return kept


def _tokenizer(settings: Settings, texts: Sequence[str]) -> Tokenizer:
    if not settings.vocabulary:
        return ByteTokenizer()
    rng, each = np.random.default_rng((settings.seed, 1)), TRAINED_BYTES // len(texts)
    shown = [text[:each] for text in texts]
    length = len(_spoken(rng))
    return train_bpe(
        [*shown, *(_spoken(rng) for _ in range(sum(map(len, shown)) // (2 * length)))], settings.vocabulary
    )


def _spoken(rng: np.random.Generator) -> str:
    """A needle and its question as text."""
    city, said = CITIES[rng.integers(len(CITIES))], magic_number(rng)
    return f"{SENTENCE.format(city=city)} {said}{SENTENCE_END}{QUESTION.format(city=city)} {said}\n"


def _write_text(data: Data, settings: Settings, tokenizer: Tokenizer, texts: Sequence[tuple[str, str]]) -> TokenStore:
    info = StoreInfo(tokenizer.hash, tokenizer.vocabulary_size, tokenizer.eos_id, tokenizer.pad_id)
    ids = [np.append(found, tokenizer.eos_id) for found in tokenizer.encode_batch([text for _, text in texts])]
    digests = [hashlib.sha256(text.encode()).hexdigest() for _, text in texts]
    tokens = np.array([len(found) for found in ids])
    apart = held_out(digests, tokens, settings.held_out, settings.seed, settings.lengths[-1])
    columns = {
        "document": np.arange(len(ids)),
        "sha256": digests,
        "source": [source for source, _ in texts],
        "shard": [0] * len(ids),
        "offset": write_shard(data.text, 0, ids, info),
        "tokens": tokens,
        "split": ["held_out" if out else "train" for out in apart],
    }
    write_index(data.text, info, pa.table(columns, schema=INDEX_SCHEMA))
    return TokenStore.open(data.text)


def _write_rows(
    data: Data, settings: Settings, store: TokenStore, phrases: Phrases, length: int, slots: int, seed: int
) -> dict[str, object]:
    """The documents of one length and both plans of them; returns what was made."""
    rng = np.random.default_rng((seed, 3))
    made: list[tuple[np.ndarray, np.ndarray]] = []
    documents, taken = _documents(settings, store, phrases, length, rng), 0
    while taken < slots * SPARE:
        made.append(next(documents))
        taken += len(made[-1][0]) - 1
    info = replace(store.info, answers=True)
    ids, marks = [ids for ids, _ in made], [marks for _, marks in made]
    columns = {
        "document": np.arange(len(made)),
        "sha256": [""] * len(made),
        "source": [str(number) for number in range(len(made))],
        "shard": [0] * len(made),
        "offset": write_shard(data.rows(length), 0, ids, info, marks),
        "tokens": [len(found) for found in ids],
        "split": ["train"] * len(made),
        "corpus": [""] * len(made),
        "answers": [int(found[1:].sum()) for found in marks],
    }
    write_index(data.rows(length), info, pa.table(columns, schema=ANSWERS_INDEX_SCHEMA))
    index = TokenStore.open(data.rows(length)).index
    plan = pack(index, cut_in_rows(index, index.documents("train"), length), length, "token")
    plan.save(data.plan(length, naive=False))
    naive(plan).save(data.plan(length, naive=True))
    return {
        "documents": len(made),
        "rows": plan.num_rows,
        "fill": round(plan.fill, 4),
        "counted": int(plan.answers.sum()),
        "pairs_masked": float(plan.work.mean()),
        "pairs_naive": float(naive(plan).work.mean()),
    }


def _documents(
    settings: Settings, store: TokenStore, phrases: Phrases, length: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Without end."""
    least = max(min(length, settings.lengths[0]) // 4, phrases.pair * 5 // 4)
    while least > length and length in settings.warm:
        yield copy_document(length, phrases, rng)
    sources = store.index.documents("train")
    sources = sources[store.index.tokens[sources] > settings.lengths[-1]]
    if least > length or not len(sources):
        raise UserError(
            f"a needle and its question take {phrases.pair} tokens of rows of {length}, and {len(sources)} documents "
            f"have more than {settings.lengths[-1]} tokens: use longer rows, or more documents"
        )
    size = store.index.tokens[sources] - 1
    whole = [store.read(int(document), 0, int(tokens)) for document, tokens in zip(sources, size, strict=True)]
    likely = np.cumsum(size / size.sum())
    held = {True: 0, False: 0}  # tokens in documents as long as a row, and in shorter ones
    while True:
        full = held[True] <= settings.whole * sum(held.values())
        tokens = length if full else int(np.exp(rng.uniform(np.log(least), np.log(length))))
        source = whole[min(int(np.searchsorted(likely, rng.random())), len(whole) - 1)]
        start = int(rng.integers(max(1, len(source) - tokens)))
        kind = needle_document if rng.integers(2) else passage_document
        yield kind(source[start : start + tokens], tokens, phrases, settings.counted, rng)
        held[full] += tokens


def naive(plan: PackingPlan) -> PackingPlan:
    """The same rows, each one example: every token sees all that stands before it in its row."""
    return replace(plan, segment=np.ones_like(plan.segment), position=plan.slot)


def vocabulary_of(data: Data) -> int:
    return load_tokenizer(data.tokenizer).vocabulary_size
