"""Tokenizers behind one interface: bytes, a trained byte-level BPE, a Hugging Face folder, a SentencePiece file.

- A tokenizer is an artifact: a folder that holds all of it, with a descriptor that carries a hash over the contents.
  Tokens of two hashes never meet: `check_same`.
- Text is only ever text: a document that spells a special token gets the ids of its letters, never the special id.
  Ids of beginning and end are added by whoever builds a sequence, not by `encode`.
- Long text is encoded in pieces, cut where no token can cross, so the ids are those of the whole, in bounded memory.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ringworld.data.files import join, list_files, read_bytes, read_json, write_bytes, write_json
from ringworld.errors import UserError

FAMILIES = ("bytes", "bpe", "huggingface", "sentencepiece")

_SCHEMA = 1
_DESCRIPTOR = "tokenizer.json"
_MODEL = "model"
_BATCH_CHARACTERS = 1 << 22


@dataclass(frozen=True)
class Tokenizer(ABC):
    """Text to ids and back. Ids are below `vocabulary_size`; a family without a padding id pads with `eos_id`.

    files: the model's own files by name; with the ids they are all of the tokenizer, and what `hash` is taken over.
    """

    vocabulary_size: int
    bos_id: int | None
    eos_id: int
    pad_id: int
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    family: ClassVar[str]
    piece_characters: ClassVar[int] = 1 << 16

    def encode(self, text: str) -> np.ndarray:
        """int32 [tokens], without beginning and end."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int32 [tokens] for each text. Memory beyond the result is bounded, whatever the texts' lengths."""
        found: list[list[np.ndarray]] = [[] for _ in texts]
        for batch in _batches(self._pieces(texts)):
            for (text, _), ids in zip(batch, self._encode([piece for _, piece in batch]), strict=True):
                found[text].append(np.asarray(ids, np.int32))
        return [np.concatenate(ids) if ids else np.zeros(0, np.int32) for ids in found]

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """The text of ids; beginning, end and padding are left out."""
        special = {self.bos_id, self.eos_id, self.pad_id}
        return self._decode([int(token) for token in ids if int(token) not in special])

    @cached_property
    def hash(self) -> str:
        """sha256 (64 hexadecimal digits) over everything that decides which ids a text gets."""
        return _hash(self._described())

    def save(self, folder: str) -> None:
        """Write the artifact: the descriptor and the model's files, nothing outside `folder` needed to load it."""
        for name, data in self.files.items():
            write_bytes(join(folder, _MODEL, name), data)
        write_json(join(folder, _DESCRIPTOR), self._described() | {"schema": _SCHEMA, "hash": self.hash})

    def _described(self) -> dict[str, Any]:
        return {
            "family": self.family,
            "vocabulary_size": self.vocabulary_size,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
            "pad_id": self.pad_id,
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(self.files.items())},
        }

    def _pieces(self, texts: Sequence[str]) -> Iterator[tuple[int, str]]:
        for index, text in enumerate(texts):
            for piece in _cut_before_space(text, self.piece_characters):
                yield index, piece

    @abstractmethod
    def _encode(self, pieces: list[str]) -> Sequence[Sequence[int] | np.ndarray]: ...

    @abstractmethod
    def _decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True)
class ByteTokenizer(Tokenizer):
    """The bytes of UTF-8, then one id for the beginning and one for the end."""

    vocabulary_size: int = 258
    bos_id: int | None = 256
    eos_id: int = 257
    pad_id: int = 257
    family: ClassVar[str] = "bytes"

    def _encode(self, pieces: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(piece.encode(), np.uint8) for piece in pieces]

    def _decode(self, ids: list[int]) -> str:
        return bytes(token for token in ids if token < 256).decode("utf-8", "replace")


@dataclass(frozen=True)
class FastTokenizer(Tokenizer):
    """A model of the `tokenizers` library in its own JSON form: `huggingface`, and `bpe` below."""

    family: ClassVar[str] = "huggingface"

    @cached_property
    def _model(self) -> Any:
        from tokenizers import Tokenizer as Model

        model = Model.from_buffer(self.files["tokenizer.json"])
        model.encode_special_tokens = True  # a special token spelled in a document is plain text
        model.no_truncation()
        model.no_padding()
        return model

    @cached_property
    def _joins_by_space(self) -> bool:
        """Whether the model puts a space before each text, as SentencePiece does, so that pieces give theirs up."""
        return self._ids("a b") == self._ids("a") + self._ids("b")

    def _ids(self, text: str) -> list[int]:
        return self._model.encode(text, add_special_tokens=False).ids

    def _pieces(self, texts: Sequence[str]) -> Iterator[tuple[int, str]]:
        cut = _cut_at_space if self._joins_by_space else _cut_before_space
        for index, text in enumerate(texts):
            for piece in cut(text, self.piece_characters):
                yield index, piece

    def _encode(self, pieces: list[str]) -> list[list[int]]:
        return [found.ids for found in self._model.encode_batch_fast(pieces, add_special_tokens=False)]

    def _decode(self, ids: list[int]) -> str:
        return self._model.decode(ids, skip_special_tokens=True)


@dataclass(frozen=True)
class BpeTokenizer(FastTokenizer):
    """Byte-level BPE trained here. The ids of beginning and end lie after the model's own: no text can reach them."""

    family: ClassVar[str] = "bpe"


@dataclass(frozen=True)
class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model file."""

    family: ClassVar[str] = "sentencepiece"
    piece_characters: ClassVar[int] = 1 << 20

    @cached_property
    def _model(self) -> Any:
        from sentencepiece import SentencePieceProcessor

        return SentencePieceProcessor(model_proto=self.files["tokenizer.model"])

    def _pieces(self, texts: Sequence[str]) -> Iterator[tuple[int, str]]:
        for index, text in enumerate(texts):
            for piece in _cut_at_space(text, self.piece_characters):
                yield index, piece

    def _encode(self, pieces: list[str]) -> list[list[int]]:
        return [self._model.encode(piece, out_type=int) for piece in pieces]

    def _decode(self, ids: list[int]) -> str:
        return self._model.decode(ids)


def train_bpe(texts: Iterable[str], vocabulary: int) -> BpeTokenizer:
    """A byte-level BPE (Radford et al. 2019) of at most `vocabulary` ids, the last two the beginning and the end.

    Deterministic in the texts and their order. Raises UserError for a vocabulary that cannot hold all bytes.
    """
    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocabulary < 258:
        raise UserError(f"vocabulary={vocabulary}: bytes, beginning and end alone need 258; give more, such as 2048")
    model = Model(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocabulary - 2, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(map(_broken_up, texts), trainer)
    size = model.get_vocab_size()
    return BpeTokenizer(size + 2, size, size + 1, size + 1, {"tokenizer.json": model.to_str().encode()})


def from_huggingface(folder: str) -> FastTokenizer:
    """The tokenizer of a Hugging Face folder (local or a URL). Only its data files are read; code in it never runs.

    Raises UserError when the folder holds no tokenizer, one without a fast form, or one without an end-of-text token.
    """
    from transformers import AutoTokenizer

    data = [
        name for name in list_files(folder) if name.endswith((".json", ".txt", ".model", ".jinja")) and "/" not in name
    ]
    if not data:
        raise UserError(
            f"path={folder!r} holds no tokenizer: give the folder that has tokenizer.json or tokenizer.model"
        )
    with tempfile.TemporaryDirectory() as copy:
        for name in data:
            if not name.endswith("index.json"):
                Path(copy, name).write_bytes(read_bytes(join(folder, name)))
        try:
            loaded = AutoTokenizer.from_pretrained(copy, local_files_only=True, trust_remote_code=False, use_fast=True)
        except (OSError, ValueError, KeyError, TypeError, ImportError) as wrong:
            raise UserError(f"path={folder!r}: transformers cannot load its tokenizer: {wrong}") from wrong
    if not loaded.is_fast:
        raise UserError(
            f"path={folder!r}: {type(loaded).__name__} has no tokenizer.json; convert it, or use sentencepiece"
        )
    if loaded.eos_token_id is None:
        raise UserError(f"path={folder!r} names no end-of-text token: set eos_token in its tokenizer_config.json")
    model = loaded.backend_tokenizer
    size = max(model.get_vocab(with_added_tokens=True).values()) + 1
    pad = loaded.eos_token_id if loaded.pad_token_id is None else loaded.pad_token_id
    files = {"tokenizer.json": model.to_str().encode()}
    if loaded.chat_template:
        files["chat_template.json"] = json.dumps(loaded.chat_template, sort_keys=True).encode()
    return FastTokenizer(size, loaded.bos_token_id, loaded.eos_token_id, pad, files)


def from_sentencepiece(file: str) -> SentencePieceTokenizer:
    """The tokenizer of a SentencePiece model file (local or a URL). UserError when it is none or has no end of text."""
    from sentencepiece import SentencePieceProcessor

    try:
        data = read_bytes(file)
        model: Any = SentencePieceProcessor(model_proto=data)
    except (OSError, RuntimeError) as wrong:
        raise UserError(f"path={file!r} is no SentencePiece model: {wrong}") from wrong
    if model.eos_id() < 0:
        raise UserError(f"path={file!r} has no end-of-text piece; train the model with eos_id")
    bos, eos, pad = (None if found < 0 else found for found in (model.bos_id(), model.eos_id(), model.pad_id()))
    assert eos is not None
    return SentencePieceTokenizer(model.vocab_size(), bos, eos, eos if pad is None else pad, {"tokenizer.model": data})


def load_tokenizer(folder: str) -> Tokenizer:
    """The tokenizer of an artifact folder. UserError when files are missing or are not those that the hash names."""
    where = join(folder, _DESCRIPTOR)
    described = read_json(where)
    if described.get("schema") != _SCHEMA:
        raise UserError(f"{where}: schema {described.get('schema')!r}, not {_SCHEMA}; make the stage again")
    families = (ByteTokenizer, BpeTokenizer, FastTokenizer, SentencePieceTokenizer)
    family = next((found for found in families if found.family == described["family"]), None)
    if family is None:
        raise UserError(f"{where}: unknown family {described['family']!r}; allowed: {', '.join(FAMILIES)}")
    files = {name: read_bytes(join(folder, _MODEL, name)) for name in described["files"]}
    ids = {key: described[key] for key in ("vocabulary_size", "bos_id", "eos_id", "pad_id")}
    tokenizer = family(files=files, **ids)
    if tokenizer.hash != described["hash"]:
        raise UserError(f"{folder}: the files do not match their hash {described['hash'][:12]}; make the stage again")
    return tokenizer


def check_same(hash_a: str, hash_b: str, where: str) -> None:
    """UserError when two things that meet at `where` were made with different tokenizers."""
    if hash_a != hash_b:
        raise UserError(f"{where}: tokens of two tokenizers ({hash_a[:12]} and {hash_b[:12]}) cannot be mixed; use one")


_LONG_WORD = re.compile(r"(\S{256})(?=\S)")
_LONG_SPACE = re.compile(r"(\s{256})\s+")


def _broken_up(text: str) -> str:
    """Text without words of over 256 characters: a training merge takes time quadratic in the length of a word."""
    return _LONG_SPACE.sub(r"\1", _LONG_WORD.sub(r"\1\n", text))


def _hash(described: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _batches(pieces: Iterator[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """Pieces in order, in lists of about `_BATCH_CHARACTERS`: the library's result is some 100 bytes a token."""
    batch, size = [], 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece[1])
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _cut_before_space(text: str, limit: int) -> Iterator[str]:
    """Pieces of at most `limit` characters that begin, after the first, with the newline or space after a word.

    Byte-level pre-tokenizers end a word there, so no token crosses. Text without such a place is cut at the limit.
    """
    begin = 0
    while len(text) - begin > limit:
        end = begin + limit
        cut = _after_word(text, "\n", begin, end) or _after_word(text, " ", begin, end) or end
        yield text[begin:cut]
        begin = cut
    yield text[begin:]


def _cut_at_space(text: str, limit: int) -> Iterator[str]:
    """Pieces of at most `limit` characters, cut at single spaces between words, which are dropped.

    For models that put a space before every text. Text without such a place is cut at the limit, and the model's space
    stays there.
    """
    begin = 0
    while len(text) - begin > limit:
        cut = _after_word(text, " ", begin, begin + limit)
        while cut and not text[cut + 1 : cut + 2].isalnum():
            cut = _after_word(text, " ", begin, cut)
        yield text[begin : cut or begin + limit]
        begin = cut + 1 if cut else begin + limit
    yield text[begin:]


def _after_word(text: str, space: str, begin: int, end: int) -> int | None:
    """The index in (begin, end), near the end, of a space that follows a letter or digit; None when there is none."""
    for _ in range(1000):
        found = text.rfind(space, begin + 1, end)
        if found < 0:
            return None
        if text[found - 1].isalnum():
            return found
        end = found
    return None
