"""Where a document longer than a row is cut: at the end of a paragraph, a line or a sentence near the end of the row.

Unlike the rest of a plan this reads tokens: of each row that a long document fills, the last ones. A tokenizer says
which of its tokens end a sentence, a line or a paragraph; where none is near, the cut is at the end of the row. The
token at a cut is the last target of one slice and the first input of the next, which so begins with the end of a line.
"""

from __future__ import annotations

import numpy as np

from ringworld.data.packing import Slices
from ringworld.data.token_store import TokenStore
from ringworld.data.tokenizers import Tokenizer

NOTHING, SENTENCE, LINE, PARAGRAPH = range(4)

_SEARCH_SHARE = 64  # at most one such part of a row is given up for a better place
_SEARCH_MOST = 2048
_AT_ONCE = 1024  # documents
_SENTENCE_ENDS = (".", "!", "?", "\u3002", "\uff01", "\uff1f")  # the last three: Chinese and Japanese
_CLOSING = "\"')]\u201d\u2019\u00bb"


def boundaries(tokenizer: Tokenizer) -> np.ndarray:
    """uint8 [vocabulary]: what the text of each id ends, of NOTHING, SENTENCE, LINE, PARAGRAPH.

    An id that is only a part of a character, or a mark of beginning and end, ends nothing. Two ends of a line in a row
    are the end of a paragraph, which `cut_at_boundaries` sees from the tokens.
    """
    return np.array([_ends(tokenizer.decode([token])) for token in range(tokenizer.vocabulary_size)], np.uint8)


def _ends(text: str) -> int:
    unspaced = text.rstrip(" \t")
    if unspaced.endswith("\n\n"):
        return PARAGRAPH
    if unspaced.endswith("\n"):
        return LINE
    return SENTENCE if unspaced.rstrip(_CLOSING).endswith(_SENTENCE_ENDS) else NOTHING


def cut_at_boundaries(store: TokenStore, documents: np.ndarray, sequence: int, ends: np.ndarray) -> Slices:
    """Every pair of these documents (int64) once: each whole, or in slices of at most `sequence` slots.

    ends: uint8 [vocabulary], by `boundaries`. Of the best kind of boundary in the last part of a row the last one is
    the cut.
    """
    search = min(_SEARCH_MOST, max(1, sequence // _SEARCH_SHARE))
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    pending, start = documents, np.zeros(len(documents), np.int64)
    while len(pending):
        left = store.index.tokens[pending] - 1 - start
        fits = left <= sequence
        found.append((pending[fits], start[fits], left[fits]))
        pending, start = pending[~fits], start[~fits]
        length = np.empty(len(pending), np.int64)
        for first in range(0, len(pending), _AT_ONCE):
            some = slice(first, first + _AT_ONCE)
            # The last target of a slice of n slots is the n-th token after its first.
            places = (start[some] + sequence - search).tolist()
            windows = store.read_many(pending[some].tolist(), places, [search + 1] * len(places))
            length[some] = sequence - search + _best(np.stack(windows), ends)
        found.append((pending, start, length))
        start = start + length
    document, begin, slots = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((begin, document))
    return Slices(document[order], begin[order], slots[order])


def _best(windows: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """int64 [windows]: the place, 1 and above, of the last token of the best kind in each [windows, places]."""
    kind = ends[windows]
    after_line = (kind[:, 1:] >= LINE) & (kind[:, :-1] >= LINE)
    kind = np.where(after_line, PARAGRAPH, kind[:, 1:])
    # A row where nothing ends is cut at its end.
    last_of_best = kind.shape[1] - np.argmax((kind == kind.max(1, keepdims=True))[:, ::-1], axis=1)
    return last_of_best.astype(np.int64)
