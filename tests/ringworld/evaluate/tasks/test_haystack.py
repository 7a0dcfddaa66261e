"""Haystacks: each word at most once, held-out documents only, training ones refused by their contents."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from ringworld.errors import UserError
from ringworld.evaluate.tasks.haystack import (
    Document,
    given_documents,
    held_out_documents,
    make_haystack,
    refuse_trained,
)
from ringworld.evaluate.tasks.pieces import Pieces, nearest_break, place
from ringworld.evaluate.tasks.questions import Asked, read_questions
from tests.ringworld.corpus import TOKENIZER, prose, write_corpus
from tests.ringworld.evaluate.tasks.world import prompting

BOOK = prose(3, 30)


class Trained:
    """A token store's provenance."""

    url = "runs/x/tokens"

    def __init__(self, *texts: str) -> None:
        digests = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
        splits = ["train"] * (len(texts) - 1) + ["held_out"]
        names = [f"/books/{number}.txt" for number in range(len(texts))]
        self._table = pa.table({"sha256": digests, "source": names, "split": splits})

    def provenance(self) -> pa.Table:
        return self._table


def test_words_follow_each_other_in_a_circle_each_once():
    documents = [
        Document(name, name, " ".join(f"{name}{n}{'.' if n % 7 == 0 else ''}" for n in range(100))) for name in "ab"
    ]
    hay = make_haystack(documents, prompting().count)
    order = [*documents[0].text.split(), *documents[1].text.split()]
    starts = set()
    for seed in range(20):
        pieces = hay.from_random_sentence(np.random.default_rng(seed))
        words = "".join(pieces.texts).split()
        first = order.index(words[0])
        assert words == order[first:] + order[:first]
        assert first in (0, 100) or order[first - 1].endswith(".")
        assert pieces.breaks.tolist() == [
            order.index(w) in (0, 100) or order[order.index(w) - 1].endswith(".") for w in words
        ]
        starts.add(first)
    assert len(starts) > 5
    counts = prompting().count([f" {word}" for word in order])
    assert hay.pieces.tokens.tolist() == counts.tolist()


@pytest.mark.parametrize("form", ["{}", "\ufeff{}\r\n", "  {}\n\n\n\n\n"])
def test_a_training_document_is_refused_whatever_its_form(tmp_path, form):
    store = Trained(BOOK, prose(4, 30))
    (tmp_path / "copy.txt").write_bytes(form.format(BOOK).encode())
    with pytest.raises(UserError, match=r"copy.txt is among the training documents of runs/x/tokens"):
        refuse_trained(given_documents([str(tmp_path)]), store)  # type: ignore[arg-type]


def test_a_held_out_document_or_another_is_not_refused_and_a_changed_file_of_training_is():
    store = Trained(BOOK, prose(4, 30))
    refuse_trained([Document("a", _sha(prose(4, 30)), prose(4, 30)), Document("b", _sha("Ha."), "Ha.")], store)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"/books/0.txt is among"):
        refuse_trained([Document("/books/0.txt", _sha("Ha."), "Ha.")], store)  # type: ignore[arg-type]


def test_the_held_out_documents_of_a_run_are_its_texts(tmp_path):
    store = write_corpus(tmp_path, [prose(0, 4), prose(1, 4), prose(2, 4)], held_out=2)
    assert [found.text for found in held_out_documents(store, TOKENIZER)] == [prose(1, 4), prose(2, 4)]
    with pytest.raises(UserError, match="two tokenizers"):
        held_out_documents(store, prompting().tokenizer)
    with pytest.raises(UserError, match="no words"):
        make_haystack([Document("a", "0", " \n")], prompting().count)


def test_what_is_also_trained_on_is_left_out_and_no_more_is_read_than_is_needed(tmp_path, monkeypatch):
    store = write_corpus(tmp_path, [prose(0, 4), prose(1, 4), prose(2, 4), prose(3, 4)], held_out=3)
    table = store.provenance()
    copied = [table["sha256"][0], *table["sha256"][:1], *table["sha256"][2:]]
    again = table.set_column(table.schema.get_field_index("sha256"), "sha256", pa.array([str(one) for one in copied]))
    assert [d.text for d in held_out_documents(store, TOKENIZER, enough=10)] == [prose(1, 4)]
    monkeypatch.setattr(type(store), "provenance", lambda self: again)
    assert [found.text for found in held_out_documents(store, TOKENIZER)] == [prose(2, 4), prose(3, 4)]


def test_needles_go_between_pieces_and_say_where_they_stand():
    pieces = Pieces(["a ", "b. ", "c ", "d. ", "e "], np.array([1, 0, 1, 0, 1], bool), np.array([1.0, 1, 5, 1, 2]))
    placed = place(pieces, 5, [(4, "X"), (0, "Y"), (4, "Z")])
    assert placed.text == "Y a b. c d. X Z e"
    assert [placed.text[begin:end] for begin, end in placed.needles] == ["X", "Y", "Z"]
    assert place(pieces, 0, [(0, "X")]).text == "X"
    assert [nearest_break(pieces, 5, depth) for depth in (0.0, 0.3, 0.49, 0.52, 1.0)] == [0, 2, 2, 4, 4]


def test_questions_are_read_and_a_row_that_is_none_is_named(tmp_path):
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text(
        '{"context": "It is red.", "question": "Which?", "answers": ["red", "Red"]}\n'
        '{"context": "It is blue.", "question": "Which?", "answer": "blue"}\n'
    )
    assert read_questions([str(good)]) == [
        Asked("It is red.", "Which?", ("red", "Red")), Asked("It is blue.", "Which?", ("blue",)),
    ]  # fmt: skip
    for row in ('{"context": "It is red.", "question": "Which?"}', '{"context": "x", "question": "y", "answers": []}'):
        bad.write_text(f"{good.read_text().splitlines()[0]}\n{row}\n")
        with pytest.raises(UserError, match=r"bad.jsonl#2: give texts"):
            read_questions([str(bad)])


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
