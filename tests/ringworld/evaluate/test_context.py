"""Loss against context: the same targets after more and more of their document; and the beginnings of documents."""

from __future__ import annotations

import numpy as np
import pytest

from ringworld.errors import UserError
from ringworld.evaluate.context import (
    context_stretches,
    contexts_of,
    given_context,
    read_context,
    score_context,
    short_loss,
    short_stretches,
)
from ringworld.evaluate.recipe import ContextConfig, context_config
from tests.ringworld.corpus import TOKENIZER, prose, write_corpus

TEXTS = [prose(0, 10), prose(1, 120), prose(2, 120), "A short one."]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), TEXTS, held_out=3)


def test_contexts_double_up_to_all_that_there_is():
    assert contexts_of(8192, 512) == (512, 1024, 2048, 4096, 7680)
    assert contexts_of(1024, 512) == (512,)
    assert contexts_of(600, 512) == (88,)
    with pytest.raises(UserError, match="tail=512"):
        contexts_of(512, 512)


@pytest.mark.parametrize(
    ("sequence", "tail", "contexts"),
    [(64, 8, (32, 56)), (512, 64, (32, 64, 128, 256, 448)), (8192, 512, (512, 1024, 2048, 4096, 7680)), (20, 2, (18,))],
)
def test_a_shorter_sequence_has_a_shorter_tail_and_a_smaller_least_context(sequence, tail, contexts):
    config = context_config(sequence, windows=2, short=256, documents=3)
    assert config.tail == tail
    assert contexts_of(sequence, config.tail, config.least) == contexts
    assert config.short == min(256, sequence)


def test_what_a_store_cannot_give_is_said_and_the_rest_is_measured(store):
    asked = read_context(ContextConfig(64, 32, 2, 64, 8), store, 65536)
    assert asked is not None
    assert "has the 65537 tokens of a window" in asked.refused
    assert asked.given is None
    [rows] = asked.rows
    found = score_context(asked, lambda rows: np.full(rows.tokens.shape, 3.0))
    assert (found.given, found.short) == (None, 3.0)
    assert len(rows.tokens) == 1
    assert read_context(None, store, 512) is None


def test_every_window_has_the_same_targets_after_each_context(store):
    asked = context_stretches(store, 2048, 256, windows=3)
    assert asked.contexts == (512, 1024, 1792)
    assert asked.windows == 3
    rows = asked.stretches.rows
    texts = [TOKENIZER.encode(text) for text in TEXTS[1:3]]
    # Losses that are the targets themselves show which tokens are counted.
    found = asked.stretches.losses(rows.targets.astype(np.float32))
    tails = {found[3 * window].tobytes() for window in range(3)}
    assert len(tails) == 3
    for window in range(3):
        for number, context in enumerate(asked.contexts):
            index = 3 * window + number
            assert found[index].tobytes() == found[3 * window].tobytes()
            (row, slot), length = asked.stretches.places[index], asked.stretches.lengths[index]
            assert length == context + 256
            read = rows.tokens[row, slot : slot + length]
            assert any(read.tobytes() in text.astype(np.int32).tobytes() for text in texts)
            assert rows.positions[row, slot : slot + length].tolist() == list(range(length))
            segments = rows.segments[row]
            assert (segments == segments[slot]).sum() == length


def test_losses_are_means_over_windows(store):
    asked = context_stretches(store, 2048, 256, windows=2)
    loss = np.full(asked.stretches.rows.tokens.shape, 99.0, np.float32)
    for index, ((row, slot), length) in enumerate(zip(asked.stretches.places, asked.stretches.lengths, strict=True)):
        loss[row, slot + length - 256 : slot + length] = [4, 3, 1, 6, 3, 2][index]
    found = given_context(asked, loss)
    assert found.losses == (5.0, 3.0, 1.5)
    assert found.gain == 3.5


def test_a_window_that_no_document_fills_is_refused(store):
    with pytest.raises(UserError, match=r"has the 65537 tokens of a window; the longest has \d+"):
        context_stretches(store, 65536, 512, 1)


def test_the_beginnings_of_held_out_documents_count_whole(store):
    asked = short_stretches(store, 64, 2048, documents=8)
    assert asked.counted == (64, 64, 12)
    targets = [found.astype(np.int32) for found in asked.losses(asked.rows.targets)]
    assert TOKENIZER.decode(targets[0]) == TEXTS[1][1:65]
    assert targets[2][-1] == TOKENIZER.eos_id
    loss = np.zeros(asked.rows.tokens.shape, np.float32)
    for (row, slot), length in zip(asked.places, asked.lengths, strict=True):
        loss[row, slot : slot + length] = 2.0
    assert short_loss(asked, loss) == 2.0
    again = short_stretches(store, 64, 512, documents=8)
    assert [a.tobytes() for a in again.losses(again.rows.targets)] == [
        a.tobytes() for a in asked.losses(asked.rows.targets)
    ]
