"""The tokenizer of a curriculum as an artifact: built in, trained on a sample of the documents, or taken from a file.

Output: `tokenizer/`, a folder that holds all of it, the chat template too. Later stages load it from there and name it
by its hash; so does whoever runs a model that was trained with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow.parquet as pq

from infra.stage import Artifact, Result, StageContext
from ringworld.data.files import absolute, join, list_files, open_to_read, read_table
from ringworld.data.templates import OWN, template_of, with_template
from ringworld.data.tokenizers import (
    FAMILIES,
    ByteTokenizer,
    Tokenizer,
    from_huggingface,
    from_sentencepiece,
    train_bpe,
)
from ringworld.errors import UserError

_LEAST_SHARE = 1 << 12


@dataclass(frozen=True)
class TokenizerRecipe:
    """family: bytes, bpe (trained here), huggingface (a folder) or sentencepiece (a file).

    vocabulary, sample_bytes: of bpe: how many ids, and how much text it is trained on. path: of huggingface and
    sentencepiece, local or gs://. template: of conversations: `own` (what the folder brings, else LWM's plain one),
    `plain`, or the place of a Jinja file.
    """

    kind: ClassVar[str] = "tokenizer"
    family: str = "bpe"
    vocabulary: int = 2048
    path: str = ""
    sample_bytes: int = 1 << 22
    template: str = OWN

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise UserError(f"tokenizer {self.family!r} is unknown; allowed: {', '.join(FAMILIES)}")
        if bool(self.path) != (self.family in ("huggingface", "sentencepiece")):
            need = f"takes no path={self.path}" if self.path else "needs a path"
            raise UserError(f"tokenizer {self.family} {need}: huggingface has one to a folder, sentencepiece to a file")


def run(context: StageContext, recipe: TokenizerRecipe) -> Result:
    """Input port `documents`, read by bpe alone."""
    tokenizer = with_template(_make(context, recipe), recipe.template)
    folder = join(absolute(context.attempt_dir), "tokenizer")
    tokenizer.save(folder)
    files = tuple(f"tokenizer/{name}" for name in list_files(folder))
    template = template_of(tokenizer)
    values = {
        "family": tokenizer.family,
        "vocabulary_size": tokenizer.vocabulary_size,
        "hash": tokenizer.hash,
        "template": {"name": template.name, "hash": template.hash},
    }
    return Result(files, values)


def _make(context: StageContext, recipe: TokenizerRecipe) -> Tokenizer:
    if recipe.family == "bytes":
        return ByteTokenizer()
    if recipe.family == "bpe":
        return train_bpe(sample(context.inputs["documents"], recipe.sample_bytes), recipe.vocabulary)
    return from_huggingface(recipe.path) if recipe.family == "huggingface" else from_sentencepiece(recipe.path)


def sample(documents: Artifact, sample_bytes: int) -> Iterator[str]:
    """The beginnings of documents, about `sample_bytes` in all: deterministic, and in bounded memory.

    Every document gives the same share, so that one long document does not own the vocabulary; when shares would become
    too small, only the documents of the smallest hashes give one.
    """
    files = [documents.path(name) for name in documents.files if name.startswith("documents/")]
    digests = np.sort(np.concatenate([read_table(file, ["sha256"])["sha256"].to_numpy() for file in files]))
    share = max(_LEAST_SHARE, sample_bytes // len(digests))
    last = digests[min(len(digests), max(1, sample_bytes // share)) - 1]
    for file in files:
        with open_to_read(file) as opened:
            for batch in pq.ParquetFile(opened).iter_batches(64, columns=["sha256", "text"]):
                for digest, text in zip(batch["sha256"].to_pylist(), batch["text"], strict=True):
                    if digest <= last:
                        # A character may be four bytes; cutting the bytes themselves could halve one.
                        yield text.as_py()[:share]
