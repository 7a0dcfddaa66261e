"""Documents that needles are hidden in: given ones, or the held-out ones of a run. Never training ones, never repeated.

- Given documents are files, folders, globs or URLs, as sources are. One that a run has trained on is refused: by its
  sha256 as it is and as each preset of cleaning would make it, and by its place.
- Words follow each other across all documents in a circle; an example begins with a random sentence and takes what
  follows, each word at most once. A length that needs more words than there are is refused, with the number that is
  missing.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from ringworld.data.clean import PRESETS, clean
from ringworld.data.readers import ReadOptions, read
from ringworld.data.sources import expand
from ringworld.data.token_store import TokenStore
from ringworld.data.tokenizers import Tokenizer, check_same
from ringworld.errors import UserError
from ringworld.evaluate.tasks.pieces import Count, Pieces, pieces_of, words_of

_INSTALLED_BYTES = 1 << 22  # of a Python distribution, where those are the haystack


@dataclass(frozen=True)
class Document:
    """source: where it comes from. sha256: of its text in UTF-8."""

    source: str
    sha256: str
    text: str


@dataclass(frozen=True, eq=False)
class Haystack:
    """The words of all documents, in a circle. documents: (source, sha256) of each."""

    documents: tuple[tuple[str, str], ...]
    pieces: Pieces

    @property
    def sha256(self) -> str:
        """Of all documents, in order."""
        return hashlib.sha256("\n".join(digest for _, digest in self.documents).encode()).hexdigest()

    @property
    def short(self) -> str:
        """Begins the reason for which a length cannot be filled."""
        return (
            f"the haystack has {len(self.pieces)} words, about {self.pieces.tokens.sum():.0f} tokens, and is never "
            f"repeated: give more documents"
        )

    def from_random_sentence(self, rng: np.random.Generator) -> Pieces:
        """All words, from a sentence on."""
        begins = np.flatnonzero(self.pieces.breaks)
        first = int(rng.choice(begins)) if len(begins) else 0
        texts = [*self.pieces.texts[first:], *self.pieces.texts[:first]]
        return Pieces(texts, np.roll(self.pieces.breaks, -first), np.roll(self.pieces.tokens, -first))


def make_haystack(documents: Sequence[Document], count: Count) -> Haystack:
    """UserError where there is no word in them."""
    texts, breaks = [], []
    for document in documents:
        words, begins = words_of(document.text)
        texts += words
        breaks.append(begins)
    if not texts:
        raise UserError("the haystack has no words; give documents with text")
    whole = pieces_of(texts, np.concatenate(breaks), count)
    return Haystack(tuple((document.source, document.sha256) for document in documents), whole)


def given_documents(specs: Sequence[str]) -> list[Document]:
    """The documents of files, folders, globs and URLs. UserError for one that cannot be read."""
    found = []
    for item in expand(specs, _INSTALLED_BYTES):
        for raw in read(item, ReadOptions()):
            if raw.text is None:
                raise UserError(f"haystack: {raw.source}: {raw.reason} {raw.detail}; take it out")
            found.append(Document(raw.source, _sha256(raw.text), raw.text))
    return found


def unseen_documents(specs: Sequence[str], store: TokenStore | None) -> list[Document]:
    """Given documents, checked against the store that the model was trained on; where that is not known, stderr says
    so. UserError as from `given_documents` and `refuse_trained`."""
    documents = given_documents(specs)
    if store is not None:
        refuse_trained(documents, store)
    else:
        print("no --tokens: whether the model was trained on these documents is not checked", file=sys.stderr)
    return documents


def held_out_documents(store: TokenStore, tokenizer: Tokenizer, enough: int | None = None) -> list[Document]:
    """Those that a run keeps for evaluation and has not trained on under another name, in order, until they have
    `enough` tokens. UserError where it keeps none, or has another tokenizer."""
    check_same(store.info.tokenizer_hash, tokenizer.hash, f"haystack of {store.url}")
    table = store.provenance()
    trained = set(table.filter(pc.field("split") == "train")["sha256"].to_pylist())
    found, tokens = [], 0
    for document in store.index.documents("held_out").tolist():
        if enough is not None and tokens >= enough:
            break
        digest = table["sha256"][document].as_py()
        if digest not in trained:
            text = tokenizer.decode(store.read(document))
            found.append(Document(table["source"][document].as_py(), digest, text))
            tokens += int(store.index.tokens[document])
    if not found:
        raise UserError(f"{store.url} holds out no document that is not trained on; give a haystack of documents")
    return found


def refuse_trained(documents: Sequence[Document], store: TokenStore) -> None:
    """UserError for a document that is one of those that a run trains on."""
    table = store.provenance()
    trained = table.filter(pc.field("split") == "train")
    digests, places = set(trained["sha256"].to_pylist()), set(trained["source"].to_pylist())
    for document in documents:
        if document.source in places or any(digest in digests for digest in _as_cleaned(document)):
            raise UserError(
                f"haystack: {document.source} is among the training documents of {store.url}; a model may know it by "
                f"heart: give documents that it has not seen, or leave --haystack out for those held out"
            )


def _as_cleaned(document: Document) -> Iterator[str]:
    yield document.sha256
    for cleaning in PRESETS.values():
        made = clean(document.text, cleaning, minimum_bytes=0).text
        if made is not None:
            yield _sha256(made)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
