"""Two token stores as one: the text of a corpus, stored once, and the examples with pictures that share steps with it.

The documents of the second follow those of the first; nothing is copied. What reads documents takes either kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ringworld.data.token_store import StoreInfo, TokenIndex, TokenStore
from ringworld.data.tokenizers import check_same
from ringworld.errors import UserError

_Read = Callable[[Sequence[int], Sequence[int], Sequence[int]], list[np.ndarray]]


class JoinedStore:
    """The documents of several stores, numbered one after another. Safe to share between threads."""

    def __init__(self, stores: Sequence[TokenStore]) -> None:
        """UserError for stores of different tokenizers or vision ids, or of which only some mark answers."""
        self.stores = tuple(stores)
        self.url = " + ".join(store.url for store in stores)
        self.info = _info(self.stores)
        self.index = _index(self.stores, self.info)
        self._first = np.cumsum([0, *(len(store.index.tokens) for store in stores)])

    @property
    def tokenizer_hash(self) -> str:
        return self.info.tokenizer_hash

    @property
    def vocabulary_size(self) -> int:
        return self.info.vocabulary_size

    def read(self, document: int, start: int = 0, length: int | None = None) -> np.ndarray:
        """As `TokenStore.read`."""
        of = self._of(document)
        return self.stores[of].read(document - int(self._first[of]), start, length)

    def read_many(self, documents: Sequence[int], starts: Sequence[int], lengths: Sequence[int]) -> list[np.ndarray]:
        """As `TokenStore.read_many`."""
        return self._each([store.read_many for store in self.stores], documents, starts, lengths)

    def read_answers(self, documents: Sequence[int], starts: Sequence[int], lengths: Sequence[int]) -> list[np.ndarray]:
        """As `TokenStore.read_answers`."""
        return self._each([store.read_answers for store in self.stores], documents, starts, lengths)

    def sources(self, documents: Sequence[int]) -> list[str]:
        """As `TokenStore.sources`."""
        return [
            self.stores[of].sources([document - int(self._first[of])])[0] for document, of in self._places(documents)
        ]

    def _each(
        self, reads: Sequence[_Read], documents: Sequence[int], starts: Sequence[int], lengths: Sequence[int]
    ) -> list[np.ndarray]:
        of = np.searchsorted(self._first, np.asarray(documents, np.int64), side="right") - 1
        found: list[np.ndarray] = [np.zeros(0, np.int32)] * len(documents)
        for number, read in enumerate(reads):
            mine = np.flatnonzero(of == number).tolist()
            if not mine:
                continue
            local = [documents[k] - int(self._first[number]) for k in mine]
            parts = read(local, [starts[k] for k in mine], [lengths[k] for k in mine])
            for place, part in zip(mine, parts, strict=True):
                found[place] = part
        return found

    def _of(self, document: int) -> int:
        return int(np.searchsorted(self._first, document, side="right")) - 1

    def _places(self, documents: Sequence[int]) -> list[tuple[int, int]]:
        return [(document, self._of(document)) for document in documents]


Store = TokenStore | JoinedStore


def open_stores(urls: Sequence[str]) -> Store:
    """The one store, or all of them as one."""
    stores = [TokenStore.open(url) for url in urls]
    return stores[0] if len(stores) == 1 else JoinedStore(stores)


def _info(stores: Sequence[TokenStore]) -> StoreInfo:
    first = stores[0].info
    info = next((store.info for store in stores if store.info.vision_vocabulary), first)
    for store in stores[1:]:
        check_same(first.tokenizer_hash, store.tokenizer_hash, f"the token stores {stores[0].url} and {store.url}")
        if store.info.answers != first.answers:
            raise UserError(
                f"of {stores[0].url} and {store.url} only one marks answers; text goes with pairs of pictures and "
                "captions, of which all counts, not with conversations"
            )
    for store in stores:
        mine = store.info
        if mine.vision_vocabulary and (mine.vision_offset, mine.vision_vocabulary) != (
            info.vision_offset,
            info.vision_vocabulary,
        ):
            raise UserError(
                f"vision ids of {store.url} are {mine.vision_offset} + {mine.vision_vocabulary}, those of another "
                f"store {info.vision_offset} + {info.vision_vocabulary}; make both with one model"
            )
    return replace(info, vocabulary_size=max(store.vocabulary_size for store in stores))


def _index(stores: Sequence[TokenStore], info: StoreInfo) -> TokenIndex:
    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(store.index, name) for store in stores])

    def filled(name: str, missing: object, dtype: type) -> np.ndarray:
        return np.concatenate(
            [
                np.full(len(store.index.tokens), missing, dtype)
                if getattr(store.index, name) is None
                else getattr(store.index, name)
                for store in stores
            ]
        )

    return TokenIndex(
        tokenizer_hash=info.tokenizer_hash,
        shard=joined("shard"),
        offset=joined("offset"),
        tokens=joined("tokens"),
        held_out=joined("held_out"),
        answers=joined("answers") if info.answers else None,
        corpus=filled("corpus", "", object),
        seen=filled("seen", 0, np.int64) if info.vision_vocabulary else None,
    )
