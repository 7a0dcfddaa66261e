"""Text comes as whole characters, and never with a part of a stop string."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringworld.data.tokenizers import ByteTokenizer, train_bpe
from ringworld.generate.text import Characters, Stops

BROKEN = "\N{REPLACEMENT CHARACTER}"
TOKENIZERS = {"bytes": ByteTokenizer(), "bpe": train_bpe(["a few words, and a few more words"] * 3, 300)}


@pytest.mark.parametrize("name", list(TOKENIZERS))
@settings(deadline=None, max_examples=60)
@given(text=st.text(max_size=30), data=st.data())
def test_pieces_add_up_and_hold_whole_characters(name, text, data):
    text = text.replace(BROKEN, "")
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text).tolist()
    cut = data.draw(st.integers(0, len(ids)))
    while tokenizer.decode(ids[:cut]).endswith(BROKEN):  # a prompt ends with a whole character
        cut += 1
    stream = Characters(tokenizer, ids[:cut])
    pieces = [stream.push(token) for token in ids[cut:]]
    assert stream.end() == ""
    assert tokenizer.decode(ids[:cut]) + "".join(pieces) == text
    assert not any(BROKEN in piece for piece in pieces)


def test_bytes_that_are_no_text_neither_block_the_stream_nor_break_what_follows():
    stream = Characters(ByteTokenizer())
    pieces = [stream.push(token) for token in [0xFF] * 9 + list("né 🌍".encode())]
    assert "".join(pieces) == BROKEN * 9 + "né 🌍"
    assert pieces[4] == BROKEN
    assert stream.push(0xE4) == ""
    assert stream.end() == BROKEN


@pytest.mark.parametrize(
    ("pieces", "stops", "shown", "found"),
    [
        (["one ST", "OP two"], ["STOP"], ["one ", ""], "STOP"),
        (["one ST", "ART two"], ["STOP"], ["one ", "START two"], None),
        (["a", "b", "a", "b", "c"], ["abc"], ["", "", "ab", "", ""], "abc"),
        (["x\n", "\n", "y"], ["\n\n", "y"], ["x", "", ""], "\n\n"),
        (["hello wor"], ["world", "lo"], ["hel"], "lo"),
        (["tail ST"], ["STOP"], ["tail "], None),
    ],
)
def test_stop_strings_over_pieces(pieces, stops, shown, found):
    stream = Stops(stops)
    assert [stream.push(piece) for piece in pieces] == shown
    assert stream.found == found


@settings(deadline=None)
@given(text=st.text("ab", max_size=20), stop=st.text("ab", min_size=1, max_size=4), data=st.data())
def test_however_it_is_cut_the_text_ends_where_the_stop_begins(text, stop, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    stream = Stops([stop])
    shown = "".join(stream.push(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True))
    before, met, _ = text.partition(stop)
    assert shown + stream.end() == before
    assert (stream.found == stop) == bool(met)
