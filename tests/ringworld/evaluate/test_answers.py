"""Where the answers of held-out conversations are, in rows and in the text, and how what is said is graded."""

from __future__ import annotations

import numpy as np
import pytest

from ringworld.errors import UserError
from ringworld.evaluate.answers import Answer, read_talks, score_talks
from ringworld.evaluate.asking import Asked, ask, choose
from ringworld.evaluate.grading import exact_match, token_f1
from ringworld.evaluate.passages import Passage, passages, place_of
from ringworld.evaluate.transcripts import as_markdown, pick
from tests.ringworld.corpus import prose
from tests.ringworld.evaluate.talks import TOKENIZER, ids_of, write_talks
from tests.ringworld.generate.conftest import Model

TEXT = prose(1, 3) + " The carpenter's name was Perth. " + prose(2, 5)
TALKS = [
    ("qa", [(f"{TEXT}\n\nWhat was the carpenter's name?", "Perth"), ("Who was it that slept?", "captain ahab")]),
    ("qa", [("Where is the unicorn?", "Nowhere."), ("Say nothing.", "")]),
    ("qa", [(prose(3, 30), "too long for a row")]),
    ("qa", [("Never held out", "in training")]),
    ("chat", [("Hi", "Hello.")]),
    ("qa", [(f"{prose(5, 4)} 1851.\n\nWhich year?", "1851")]),
]
HELD_OUT = (True, True, True, False, True, True)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_talks(tmp_path_factory.mktemp("talks"), TALKS, HELD_OUT)


@pytest.fixture(scope="module")
def talks(store):
    return read_talks(store, TOKENIZER, "qa", 600, 64)


def test_each_answer_is_found_in_its_row_with_the_prompt_before_it(talks):
    assert talks.conversations == 3
    assert talks.left_out == {"longer than a row": 1}
    assert [(answer.document, answer.passage.truth) for answer in sorted(talks.answers, key=lambda a: a.document)] == [
        (0, "Perth"), (0, "captain ahab"), (1, "Nowhere."), (1, ""), (5, "1851"),
    ]  # fmt: skip
    for answer in talks.answers:
        assert talks.rows.targets[answer.row, answer.slots].tolist() == answer.ids.tolist()
        ids, marks = ids_of(TALKS[answer.document][1])
        start, end = len(answer.prompt), len(answer.prompt) + len(answer.ids)
        assert ids[:end].tolist() == [*answer.prompt.tolist(), *answer.ids.tolist()]
        assert marks[start - 1 : end].tolist() == [0] + [1] * len(answer.ids)
    assert len({answer.row for answer in talks.answers}) < 3  # conversations share rows


def test_the_loss_is_the_mean_over_conversations_of_the_mean_over_their_answers_tokens(talks):
    rng = np.random.default_rng(0)
    loss = rng.random(talks.rows.tokens.shape).astype(np.float32)
    hit = np.zeros(loss.shape, bool)
    hit[talks.answers[1].row, talks.answers[1].slots] = True
    means = []
    for document in (0, 1, 5):
        mine = [answer for answer in talks.answers if answer.document == document]
        means.append(np.concatenate([loss[answer.row, answer.slots] for answer in mine]).mean())
    scores = score_talks(talks, loss, hit)
    assert scores.loss == pytest.approx(np.mean(means), rel=1e-6)
    assert scores.verbatim.tolist() == [number == 1 for number in range(5)]
    assert scores.losses[2] == pytest.approx(loss[talks.answers[2].row, talks.answers[2].slots].mean())


def test_depth_is_where_the_text_gives_the_answer(talks):
    depths = {answer.passage.truth: answer.passage.depth for answer in talks.answers}
    text = f"USER: {TEXT}\n\n"
    assert depths["Perth"] == pytest.approx(text.index("Perth") / len(text))
    assert depths["captain ahab"] is None or 0 <= depths["captain ahab"] <= 1
    assert depths["Nowhere."] is None
    assert depths[""] is None
    assert 0.9 < depths["1851"] < 1
    perth = next(answer.passage for answer in talks.answers if answer.passage.truth == "Perth")
    assert "name was Perth." in perth.excerpt
    assert len(perth.excerpt) <= 300
    assert perth.question == "What was the carpenter's name? ASSISTANT:"


@pytest.mark.parametrize(
    ("answer", "question", "at"),
    [
        ("Ahab.", "Who commanded the Pequod?", "Ahab commanded"),
        ("Ahab", "Who slept below the deck?", "Ahab slept"),
        ("Ahab", "Who?", "Ahab slept"),  # nothing tells them apart: the last
        ("the white whale", "What was hunted?", "the white\nwhale"),
        ("hunt", "What?", None),  # a part of a word is not said
        ("Starbuck", "Who?", None),
        ("...", "What?", None),
    ],
)
def test_of_several_places_the_one_that_the_question_speaks_of_is_meant(answer, question, at):
    text = (
        "Ahab commanded the Pequod." + " x" * 200 + " They hunted the white\nwhale." + " y" * 200 + " Ahab slept below."
    )
    assert place_of(answer, text, question) == (None if at is None else text.index(at))


def test_a_corpus_of_which_nothing_fits_is_an_error_that_names_lengths(store):
    with pytest.raises(UserError, match=r"none of 4 held_out conversations of qa fits a row of 30 tokens"):
        read_talks(store, TOKENIZER, "qa", 30, 64)
    with pytest.raises(UserError, match=r"none of 0 held_out conversations of none"):
        read_talks(store, TOKENIZER, "none", 600, 64)


def test_a_bound_on_conversations_spreads_them(store):
    two = read_talks(store, TOKENIZER, "qa", 600, 2)
    assert two.conversations == 2
    assert {answer.document for answer in two.answers} == {0, 5}


def test_questions_are_chosen_evenly_over_depth(tmp_path):
    text = [f"{name} was seen {'here and there ' * 6}. " for name in ("Ada", "Bob", "Cyd", "Dot", "Eve", "Fay")]
    one = (["Ada"] * 9 + ["Bob"] * 9 + ["Cyd", "Dot", "Eve", "Fay"], "qa")
    asked = [(f"{''.join(text)}\n\nWho, of number {n}?", name) for n, name in enumerate(one[0])]
    store = write_talks(tmp_path, [("qa", [turn]) for turn in asked], [True] * len(asked))
    answers = read_talks(store, TOKENIZER, "qa", 1024, 64).answers
    chosen = choose(answers, 5, seed=0)
    assert [{answer.depth_class for answer in chosen}, len(chosen)] == [{0, 1, 2, 3, 4}, 5]
    assert [answer.document for answer in chosen] == sorted(answer.document for answer in chosen)
    assert choose(answers, 5, seed=0) == chosen
    assert len(choose(answers, 99, seed=0)) == len(answers)
    assert choose(answers, 0, seed=0) == []


def test_answers_are_greedy_and_stop_at_their_end_or_a_little_behind_the_true_one(talks):
    model = Model()
    asked = [answer for answer in talks.answers if answer.passage.truth in ("", "1851")]
    for answer, item in zip(asked, ask(model.sampler(context=640, chunk=32), asked), strict=True):
        tokens = model.greedy(answer.prompt, len(answer.ids) + 16)
        if TOKENIZER.eos_id in tokens:
            tokens = tokens[: tokens.index(TOKENIZER.eos_id)]
        assert item.said == TOKENIZER.decode(tokens).strip()
        assert item.finish == ("length" if len(tokens) == len(answer.ids) + 16 else "stop")
        assert item.answer is answer
        assert item.f1 == token_f1(item.said, answer.passage.truth)


@pytest.mark.parametrize(
    ("said", "truth", "exact", "f1"),
    [
        ("The White Whale!", "white whale", True, 1.0),
        ("a black whale", "the white whale", False, 0.5),
        ("whale whale", "whale", False, 2 / 3),
        ("in the year 1851", "1851", False, 0.5),
        ("Ahab", "Starbuck", False, 0.0),
        ("", "Starbuck", False, 0.0),
        ("the", "!", True, 1.0),
    ],
)
def test_grades_are_those_of_squad(said, truth, exact, f1):
    assert exact_match(said, truth) is exact
    assert token_f1(said, truth) == pytest.approx(f1)


def test_a_transcript_shows_every_corpus_and_leaves_markdown_powerless():
    def item(corpus, depth, said="x"):
        passage = Passage("Who?", "Ahab", depth, "# around\n```")
        answer = Answer(corpus, 0, 0, slice(0, 1), np.zeros(1234, np.int32), np.zeros(1, np.int32), passage)
        return Asked(answer, said, "stop", False, 0.25)

    asked = [item("qa", n / 20) for n in range(20)] + [item("chat", None, said="")]
    picked = pick(asked)
    assert [shown.answer.corpus for shown in picked] == ["chat"] + ["qa"] * 5
    assert [shown.answer.passage.depth for shown in picked[1:]] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    page = as_markdown(picked, "")
    assert "prompt of 1,234 tokens, depth 50%: token F1 0.25" in page
    assert "\n    # around\n    ```\n" in page
    assert "(nothing)" in page
    assert "Nothing was asked: a reason." in as_markdown([], "a reason")


def test_the_token_that_ends_an_answer_is_no_part_of_what_it_says():
    end = ord("~")  # as a template's own end of turn would be
    ids = TOKENIZER.encode("Ahab slept.\n\nWho slept?Ahab~And who else?Nobody~")
    answers = [(23, 28), (41, 48)]
    [first, second] = passages(ids, answers, TOKENIZER, frozenset({end, TOKENIZER.eos_id}))
    assert (first.truth, first.depth, first.excerpt) == ("Ahab", 0.0, "Ahab slept.")
    assert (second.question, second.truth, second.depth) == ("And who else?", "Nobody", None)
