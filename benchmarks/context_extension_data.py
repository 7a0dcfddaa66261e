"""The data of the experiment: the text, and for each length documents to look things up in, which fit its rows.

- `text/` holds the documents as they are, some of them held out: what is measured reads those alone.
- `rows-LENGTH/` holds what a stage trains on, made of windows of the training documents, as a model of this size does
  not learn from text alone to look a number up. Into half of them needles and the questions about them are put, with
  the sentence, the question and the numbers of the test (`ringworld.evaluate.needle`). In the others a passage comes
  again and again, word for word: copying it is the same skill, with hundreds of tokens to learn it from instead of
  five. Every other passage is of random tokens, which nothing but copying predicts.
- The loss counts the answers and the repeated passages, and of the text a random share, so that it does not drown them;
  of needles and questions nothing else. The tokenizer is trained on text and needles.
- A half of the tokens are in documents as long as the row. The others are shorter, down to a quarter of the first row
  or to what one needle needs (lengths even in their logarithm), and share rows.
- Two plans of the same rows: masked, and naive, where a row is one example. Every document ends with two end-of-text
  ids, of which the first is a target, so that a naive row has a separator between its documents, and both plans have
  the same inputs and the same targets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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

DOCUMENT_BYTES = 1 << 18  # of each source that is a distribution
TRAINED_BYTES = 1 << 22  # of text that the tokenizer is trained on
ROOM = 1.5  # tokens of a document with needles, at least, for each token of needles and questions
NUMBERS = 20_000
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
        slots = max(stage.slots for stage in trained if stage.length == length)
        about[f"rows-{length}"] = _write_rows(data, settings, store, phrases, length, slots, settings.seed + number)
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
    spoken = _spoken(rng)
    return train_bpe(
        [*shown, *(_spoken(rng) for _ in range(sum(map(len, shown)) // (2 * len(spoken))))], settings.vocabulary
    )


def _spoken(rng: np.random.Generator) -> str:
    city, number = CITIES[rng.integers(len(CITIES))], _number(rng)
    return f"{SENTENCE.format(city=city)} {number}{SENTENCE_END}{QUESTION.format(city=city)} {number}\n"


def _number(rng: np.random.Generator) -> str:
    return str(rng.integers(1_000_000, 10_000_000))


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


@dataclass(frozen=True, eq=False)
class Phrases:
    """Ids of everything that is put into text: by city the sentence before its number and the question, what ends a
    sentence, and numbers."""

    sentences: Sequence[np.ndarray]
    questions: Sequence[np.ndarray]
    end: np.ndarray
    numbers: Sequence[np.ndarray]
    end_of_text: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, seed: int) -> Phrases:
        rng = np.random.default_rng((seed, 2))
        numbers = [f" {_number(rng)}" for _ in range(NUMBERS)]
        return cls(
            tokenizer.encode_batch([SENTENCE.format(city=city) for city in CITIES]),
            tokenizer.encode_batch([QUESTION.format(city=city) for city in CITIES]),
            tokenizer.encode(SENTENCE_END),
            tokenizer.encode_batch(numbers),
            tokenizer.eos_id,
        )

    @property
    def pair(self) -> int:
        """Tokens of a needle and its question, the longest ones."""
        longest = [max(map(len, part)) for part in (self.sentences, self.questions, self.numbers)]
        return longest[0] + longest[1] + 2 * (longest[2] + len(self.end))


def needle_document(
    text: np.ndarray, length: int, phrases: Phrases, counted: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(ids, marks) of `length` tokens and one: text with needles of different cities, each asked for once, later.

    text: int [at least length]. In half of the documents all questions stand at the end, as in the test; in the others
    one stands anywhere after its needle. marks: 1 for the tokens of answers, and for this share of the text's tokens.
    """
    most = min(len(CITIES), max(1, int(length / (ROOM * phrases.pair))))
    # The test has one needle; most is learned of many.
    cities = rng.permutation(len(CITIES))[: 1 if rng.integers(2) else int(rng.integers(1, most + 1))]
    at_end = bool(rng.integers(2))
    put: list[tuple[float, np.ndarray, np.ndarray]] = []
    for number, city in enumerate(cities.tolist()):
        value = phrases.numbers[int(rng.integers(len(phrases.numbers)))]
        needle = np.concatenate([phrases.sentences[city], value, phrases.end])
        asked = np.concatenate([phrases.questions[city], value, phrases.end])
        marks = np.zeros(len(asked), np.int32)
        marks[len(phrases.questions[city]) : len(asked) - len(phrases.end)] = 1
        first, second = (rng.random(), 1.0 + number) if at_end else sorted(rng.random(2))
        put += [(first, needle, np.zeros(len(needle), np.int32)), (second, asked, marks)]
    taken = sum(len(ids) for _, ids, _ in put)
    room = length - 1 - taken
    seen = (rng.random(room) < counted).astype(np.int32)
    ids, marks, used = [], [], 0
    for place, piece, answer in sorted(put, key=lambda item: item[0]):
        end = round(min(place, 1.0) * room)
        ids += [text[used:end], piece]
        marks += [seen[used:end], answer]
        used = end
    ids += [text[used:room], np.full(2, phrases.end_of_text)]
    marks += [seen[used:], np.array([1, 0])]
    return np.concatenate(ids), np.concatenate(marks)


def echo_document(
    text: np.ndarray, length: int, phrases: Phrases, counted: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(ids, marks) of `length` tokens and one: text in which a passage comes again and again, at any distance.

    The passage has a sixteenth to a quarter of the tokens, its copies have about three quarters; in every other
    document, by chance, it is of random tokens. Arguments as in `needle_document`. marks: 1 for every copy but the
    first one and but its first token, and for the share `counted` of the text.
    """
    size = max(2, int(length * rng.uniform(1 / 16, 1 / 4)))
    copies = max(2, int(0.75 * length / size))
    room = length - 1 - copies * size
    passage = text[room : room + size] if rng.integers(2) else rng.integers(phrases.end_of_text - 1, size=size)
    copied = np.append(0, np.ones(size - 1, np.int32))
    seen = (rng.random(room) < counted).astype(np.int32)
    ids, marks, used = [], [], 0
    for number, place in enumerate(np.sort(rng.integers(room + 1, size=copies)).tolist()):
        ids += [text[used:place], passage]
        marks += [seen[used:place], copied if number else np.zeros(size, np.int32)]
        used = place
    ids += [text[used:room], np.full(2, phrases.end_of_text)]
    marks += [seen[used:], np.array([1, 0])]
    return np.concatenate(ids), np.concatenate(marks)


def _write_rows(
    data: Data, settings: Settings, store: TokenStore, phrases: Phrases, length: int, slots: int, seed: int
) -> dict[str, object]:
    """The documents of one length and both plans of them; returns what was made."""
    rng = np.random.default_rng((seed, 3))
    sources = store.index.documents("train")
    sources = sources[store.index.tokens[sources] > settings.lengths[-1]]
    size = store.index.tokens[sources] - 1
    whole = [store.read(int(document), 0, int(tokens)) for document, tokens in zip(sources, size, strict=True)]
    likely = np.cumsum(size / size.sum())
    least = max(min(length, settings.lengths[0]) // 4, phrases.pair * 5 // 4)
    if least > length or not len(sources):
        raise UserError(
            f"a needle and its question take {phrases.pair} tokens of rows of {length}, and {len(sources)} documents "
            f"have more than {settings.lengths[-1]} tokens: use longer rows, or more documents"
        )
    made: list[tuple[np.ndarray, np.ndarray]] = []
    held = {True: 0, False: 0}  # tokens in documents as long as a row, and in shorter ones
    while sum(held.values()) < slots * SPARE:
        full = held[True] <= held[False]
        tokens = length if full else int(np.exp(rng.uniform(np.log(least), np.log(length))))
        source = whole[min(int(np.searchsorted(likely, rng.random())), len(whole) - 1)]
        start = int(rng.integers(max(1, len(source) - tokens)))
        kind = needle_document if rng.integers(2) else echo_document
        made.append(kind(source[start : start + tokens], tokens, phrases, settings.counted, rng))
        held[full] += tokens
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


def naive(plan: PackingPlan) -> PackingPlan:
    """The same rows, each one example: every token sees all that stands before it in its row."""
    return replace(plan, segment=np.ones_like(plan.segment), position=plan.slot)


def vocabulary_of(data: Data) -> int:
    return load_tokenizer(data.tokenizer).vocabulary_size
