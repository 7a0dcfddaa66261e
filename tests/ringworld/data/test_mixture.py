"""Which documents a stage draws, and how often: shares add up, every wish is met or refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringworld.data.mixture import Mixture, Part, figures, parts_of
from ringworld.data.token_store import TokenIndex
from ringworld.errors import UserError
from tests.ringworld.data.test_packing import index_of

EVERYTHING = (2, None)


def domains_of(tokens: list[int], domains: list[str], held: tuple[int, ...] = ()) -> TokenIndex:
    return replace(index_of(tokens, held), corpus=np.array(domains, object))


def shares(parts: tuple[Part, ...]) -> dict[str, Any]:
    return {part.name: pytest.approx(part.share) for part in parts}


def test_without_a_wish_all_documents_are_one_class() -> None:
    [part] = parts_of(index_of([9, 40, 3, 7], held=(2,)), Mixture(), (5, 20), 0, "stages.a")
    assert part.documents.tolist() == [0, 3]
    assert (part.name, part.share) == ("", 1.0)


def test_domains_share_tokens_by_weight_and_others_are_left_out() -> None:
    index = domains_of([11, 21, 31, 41, 51], ["books", "code", "books", "web", "code"], held=(4,))
    parts = parts_of(index, Mixture({"books": 3, "code": 1, "web": 0}), EVERYTHING, 0, "stages.a")
    assert shares(parts) == {"books": 0.75, "code": 0.25}
    assert [part.documents.tolist() for part in parts] == [[0, 2], [1]]


def test_longer_documents_come_more_often() -> None:
    parts = parts_of(index_of([11, 11, 41, 101]), Mixture(upsample={"30": 2.0, "100": 4.0}), EVERYTHING, 0, "stages.a")
    # 20 tokens as they are, 40 twice, 100 four times.
    assert shares(parts) == {"": 20 / 500, "30+": 80 / 500, "100+": 400 / 500}
    rows = figures(parts, index_of([11, 11, 41, 101]), 1000)
    assert [row["epochs"] for row in rows] == [2, 4, 8]


def test_replay_is_a_share_of_the_tokens_from_shorter_documents() -> None:
    index = domains_of([9, 101, 101, 9, 9], ["books", "books", "code", "web", "web"])
    wish = Mixture({"books": 2, "code": 1, "web": 1}, replay="prolong")
    parts = parts_of(index, wish, (50, None), 0, "stages.a")
    assert shares(parts) == {
        "books": pytest.approx(0.6 * 2 / 3),
        "code": pytest.approx(0.6 / 3),
        "books replay": pytest.approx(0.4 * 2 / 3),
        "web replay": pytest.approx(0.4 / 3),
    }
    assert [part.documents.tolist() for part in parts] == [[1], [2], [0], [3, 4]]


@given(
    st.lists(st.tuples(st.integers(2, 500), st.sampled_from("abc")), min_size=1, max_size=30),
    st.fixed_dictionaries({name: st.floats(0.01, 9) for name in "abc"}),
    st.floats(0.1, 20),
    st.integers(1, 5000),
)
def test_no_class_comes_more_often_than_allowed_and_the_others_make_up_for_it(
    documents: list[tuple[int, str]], weights: dict[str, float], most: float, budget: int
) -> None:
    tokens, names = [size for size, _ in documents], [name for _, name in documents]
    index = domains_of(tokens, names)
    wish = Mixture({name: weights[name] for name in set(names)}, upsample={"100": 3.0}, max_epochs=most)
    held = sum(tokens) - len(tokens)
    if most * held < budget:
        with pytest.raises(UserError, match=rf"max_epochs=.*draws {budget} tokens and its documents hold {held}"):
            parts_of(index, wish, EVERYTHING, budget, "stages.a")
        return
    parts = parts_of(index, wish, EVERYTHING, budget, "stages.a")
    assert sum(part.share for part in parts) == pytest.approx(1)
    epochs = [part.share * budget / (index.tokens[part.documents] - 1).sum() for part in parts]
    assert max(epochs) <= most * (1 + 1e-9)
    # Those below the bound keep their proportions; none of them has lost.
    free = [part for part, often in zip(parts, epochs, strict=True) if often < most * (1 - 1e-9)]
    factors = [part.share / part.asked for part in free]
    assert not free or (min(factors) >= 1 - 1e-9 and max(factors) == pytest.approx(min(factors)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"domains": {"books": 0.0, "code": 0.0}}, r"mixture={'books': 0.0, 'code': 0.0}: .* one of them above it"),
        ({"domains": {"books": -1.0}}, "at least 0"),
        ({"domains": {"books": float("nan")}}, "at least 0"),
        ({"upsample": {"long": 2.0}}, "upsample.long: a length in tokens"),
        ({"upsample": {"9": 0.0}}, "upsample.9=0.0: a factor above 0"),
        ({"replay": 1.0}, "replay=1.0: a share of the tokens"),
        ({"replay": "much"}, "replay='much': a share, or one of prolong, weak, strong"),
        ({"max_epochs": 0.0}, "max_epochs=0.0"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(change: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Mixture(**change)


@pytest.mark.parametrize(
    ("mixture", "lengths", "said"),
    [
        (
            Mixture({"books": 1, "cooking": 1}),
            EVERYTHING,
            r"stages.a.mixture.cooking: .* the corpus has 'books', 'code'",
        ),
        (
            Mixture({"books": 1, "code": 2}),
            (50, None),
            r"stages.a.mixture.code=2: none of the 1 train documents of code",
        ),
        (Mixture({"code": 1}), (50, None), r"stages.a.lengths=\[50,null\]: none of 1 train documents"),
        (Mixture(), (2000, None), r"stages.a.lengths=\[2000,null\]: none of 3 .* 1 of 8-15, 2 of 64-127"),
        (Mixture(replay=0.4), EVERYTHING, r"stages.a.replay=0.4: no train document is shorter than .*=2"),
    ],
)
def test_a_wish_that_the_corpus_cannot_meet_is_refused_by_name(
    mixture: Mixture, lengths: tuple[int, int | None], said: str
) -> None:
    index = domains_of([101, 9, 101, 101], ["books", "code", "books", "code"], held=(3,))
    with pytest.raises(UserError, match=said):
        parts_of(index, mixture, lengths, 0, "stages.a")


def test_a_store_without_domains_has_one_without_a_name() -> None:
    with pytest.raises(UserError, match=r"no train document is of the domain 'books'; the corpus has ''"):
        parts_of(index_of([9, 9]), Mixture({"books": 1}), EVERYTHING, 0, "stages.a")
