"""Text to curate, of any size and always the same: passages of real texts, changed so that documents differ.

The texts are the books of a folder and the installed packages. A document is a passage from a random place, of a
length between a page's and a book's, in which one word in twenty is replaced by another word of the same text: passages
from the same place are then alike, but no near duplicates. Some documents are exact copies of the one before, and some
have one word in three hundred replaced. Written as JSON lines, which all curators read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ringworld.data.boilerplate import gutenberg
from ringworld.data.clean import normalize
from ringworld.data.readers import ReadOptions, read
from ringworld.data.sources import INSTALLED, expand

COPIES, NEAR_COPIES = 0.02, 0.03  # of the documents
_CHANGED, _NEARLY_CHANGED = 1 / 20, 1 / 300  # of the words
_WORDS = (100, 150_000)  # in the shortest and the longest document
_MEDIAN_WORDS, _SPREAD = 1500, 1.4  # of a log-normal: the mean is 2.7 times the median
_FILE_BYTES = 1 << 23
_BOOK_SHARE = 0.85  # of the documents, where there are books
_PACKAGES = 40
_PACKAGE_BYTES = 1 << 18


@dataclass(frozen=True)
class Text:
    """pieces: words and the spaces between them in turn, beginning with a word."""

    pieces: np.ndarray

    @property
    def words(self) -> int:
        return (len(self.pieces) + 1) // 2


def texts_of(books: str | None) -> tuple[list[Text], list[Text]]:
    """The books of a folder, none without one, and the largest of the installed packages."""
    sources = [[books]] if books else []
    found = [
        sorted((document.text for item in expand(specs, _PACKAGE_BYTES) for document in read(item, ReadOptions())
                if document.text), key=len, reverse=True)
        for specs in [*sources, [INSTALLED]]
    ]  # fmt: skip
    read_books = found[0] if books else []
    return [_text(gutenberg(normalize(book))) for book in read_books], [
        _text(package) for package in found[-1][:_PACKAGES]
    ]


def _text(text: str) -> Text:
    return Text(np.array(re.split(r"(\s+)", text.strip()), object))


def documents(books: Sequence[Text], packages: Sequence[Text], seed: int) -> Iterator[str]:
    """Endless."""
    rng = np.random.default_rng(seed)
    before: np.ndarray | None = None
    while True:
        kind = rng.random()
        if before is not None and kind < COPIES + NEAR_COPIES:
            yield "".join(before if kind < COPIES else _changed(before, _NEARLY_CHANGED, rng))
            before = None
            continue
        texts = books if books and rng.random() < _BOOK_SHARE else packages
        text = texts[int(rng.integers(len(texts)))]
        length = int(np.clip(rng.lognormal(np.log(_MEDIAN_WORDS), _SPREAD), *_WORDS))
        first = int(rng.integers(max(1, text.words - length)))
        before = _changed(text.pieces[2 * first : 2 * (first + length) - 1], _CHANGED, rng)
        yield "".join(before)


def _changed(pieces: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    words = (len(pieces) + 1) // 2
    places = 2 * rng.integers(words, size=round(share * words))
    changed = pieces.copy()
    changed[places] = pieces[2 * rng.integers(words, size=len(places))]
    return changed


def write(folder: Path, size: int, texts: tuple[Sequence[Text], Sequence[Text]], seed: int = 0) -> int:
    """Files of JSON lines with about `size` bytes of text; returns how many bytes of text there are."""
    folder.mkdir(parents=True)
    made = documents(*texts, seed)
    total = number = 0
    while total < size:
        with (folder / f"{number:05d}.jsonl").open("w", encoding="utf-8") as file:
            written = 0
            while written < _FILE_BYTES and total < size:
                text = next(made)
                file.write(json.dumps({"text": text}) + "\n")
                written += len(text.encode())
                total += len(text.encode())
        number += 1
    return total
