"""Long documents are cut where something ends, and nothing is lost by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ringworld.data.cuts import LINE, NOTHING, PARAGRAPH, SENTENCE, boundaries, cut_at_boundaries
from ringworld.data.packing import pack
from ringworld.data.tokenizers import ByteTokenizer, train_bpe
from tests.ringworld.corpus import write_corpus

BYTES = ByteTokenizer()
LINES = "".join(f"Line {n} of the log, and no more.\n" for n in range(200))
PARAGRAPHS = "".join(f"1. {n}\n\n" * 2 for n in range(1000, 1400))
NOTHING_ENDS = "x" * 5000


def test_a_tokenizer_says_what_its_tokens_end() -> None:
    ends = boundaries(BYTES)
    assert [ends[ord(letter)] for letter in ".!a \n"] == [SENTENCE, SENTENCE, NOTHING, NOTHING, LINE]
    assert len(ends) == BYTES.vocabulary_size
    assert not ends[BYTES.eos_id]
    bpe = train_bpe([PARAGRAPHS] * 3, 400)
    kinds = boundaries(bpe)
    assert {LINE, PARAGRAPH} & set(kinds[bpe.encode("\n\n")].tolist())
    assert all(kinds[token] == NOTHING for token in bpe.encode("and"))


@pytest.mark.parametrize(("text", "mark"), [(LINES, "\n"), (PARAGRAPHS, "\n\n"), ("Short one. " * 500, ".")])
def test_a_cut_is_at_the_last_end_of_the_best_kind(tmp_path: Path, text: str, mark: str) -> None:
    store = write_corpus(tmp_path, [text, "held out"])
    sequence = 1024
    slices = cut_at_boundaries(store, np.array([0]), sequence, boundaries(BYTES))
    assert slices.start.tolist() == [0, *np.cumsum(slices.length)[:-1]]
    assert slices.length.sum() == len(text)
    assert slices.length.max() <= sequence
    assert slices.length[:-1].min() > sequence - sequence // 64 - 1
    for start, length in zip(slices.start[:-1].tolist(), slices.length[:-1].tolist(), strict=True):
        # The last target of a slice is the last character of the mark, and none comes later in the row.
        assert text[: start + length + 1].endswith(mark)
        assert mark not in text[start + length + 2 - len(mark) : start + sequence + 1]


def test_where_nothing_ends_a_row_is_full_and_short_documents_stay_whole(tmp_path: Path) -> None:
    store = write_corpus(tmp_path, ["A short one.\n" * 3, NOTHING_ENDS, LINES, "held out"])
    slices = cut_at_boundaries(store, np.array([0, 1, 2]), 1024, boundaries(BYTES))
    assert slices.document.tolist() == sorted(slices.document.tolist())
    assert slices.length[slices.document == 0].tolist() == [39]
    assert slices.length[slices.document == 1].tolist() == [1024] * 4 + [5000 - 4096]
    plan = pack(store.index, slices, 1024, "token")
    assert plan.answers.sum() == (store.index.tokens[:3] - 1).sum()
    assert plan.fill > 0.9
