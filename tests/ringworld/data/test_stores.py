"""Text and pictures in one plan: two stores read as one, and a loss that weighs what is seen and what is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ringworld.data.loader import Loader
from ringworld.data.packing import cut_in_rows, pack, select_whole
from ringworld.data.plan import PackingPlan, WeighBy, mix
from ringworld.data.stores import JoinedStore, Store, open_stores
from ringworld.data.token_store import TokenStore
from ringworld.errors import UserError
from tests.ringworld.corpus import prose, write_corpus
from tests.ringworld.pictured import CODES, OFFSET, example, write_pictured

SEQUENCE = 64


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenStore, TokenStore]:
    folder = tmp_path_factory.mktemp("stores")
    text = write_corpus(folder, [prose(seed, 3 + seed) for seed in range(5)])
    examples = [example(seed, 10 + 3 * seed, "a cat" * (1 + seed % 3), seed % 2 == 0) for seed in range(10)]
    seen = write_pictured(folder / "seen", examples, ["image", "video"] * 5)
    return text, seen


@pytest.fixture(scope="module")
def both(stores: tuple[TokenStore, TokenStore]) -> JoinedStore:
    found = open_stores([store.url for store in stores])
    assert isinstance(found, JoinedStore)
    return found


def plan_of(store: JoinedStore, weigh_by: WeighBy, vision_weight: float | None) -> PackingPlan:
    texts = store.stores[0].index.documents("train")
    chosen = {name: select_whole(store.index, "train", name, SEQUENCE, "m").documents for name in ("image", "video")}
    plans = {
        name: pack(store.index, cut_in_rows(store.index, documents, SEQUENCE), SEQUENCE, weigh_by, vision_weight)
        for name, documents in {"text": texts, **chosen}.items()
    }
    return mix(plans, {"text": 0.2, "image": 0.4, "video": 0.4})


def test_documents_of_the_second_store_follow_those_of_the_first(
    stores: tuple[TokenStore, TokenStore], both: JoinedStore
) -> None:
    text, seen = stores
    assert len(both.index.tokens) == 15
    order = [14, 0, 5, 4]
    whole = both.read_many(order, [0] * 4, both.index.tokens[order].tolist())
    for document, ids in zip(order, whole, strict=True):
        own = text.read(document) if document < 5 else seen.read(document - 5)
        np.testing.assert_array_equal(ids, own)
        np.testing.assert_array_equal(both.read(document), own)
    assert both.sources(order) == ["clip-9", "text-0", "clip-0", "text-4"]
    assert both.index.corpus is not None
    assert both.index.seen is not None
    assert both.index.corpus.tolist() == [""] * 5 + ["image", "video"] * 5
    assert (both.index.seen[:5] == 0).all()
    assert (both.info.vision_offset, both.info.vision_vocabulary) == (OFFSET, CODES)
    assert both.index.held_out.tolist() == [False] * 4 + [True] + [False] * 8 + [True] * 2


@pytest.mark.parametrize("weigh_by", ["example", "token"])
@pytest.mark.parametrize("vision_weight", [0.5, 0.2, None])
def test_the_loss_is_a_mean_over_what_is_read_and_one_over_what_is_seen(
    both: JoinedStore, tmp_path: Path, weigh_by: WeighBy, vision_weight: float | None
) -> None:
    made = plan_of(both, weigh_by, vision_weight)
    made.save(str(tmp_path / "plan.parquet"))
    plan = PackingPlan.load(str(tmp_path / "plan.parquet"))
    assert plan.vision_weight == vision_weight
    loader = Loader(both, plan, seed=3, rows_per_batch=4)
    for step in range(6):
        batch = loader.batch(step)
        loss = np.random.default_rng(step).random(batch.tokens.shape)
        seen = batch.targets >= OFFSET
        examples = [
            (row, batch.segments[row] == segment)
            for row in range(4)
            for segment in range(1, batch.segments[row].max() + 1)
        ]

        def mean(kind: np.ndarray, loss: np.ndarray = loss, examples: list = examples) -> float:
            parts = [loss[row][inside & kind[row]] for row, inside in examples]
            parts = [part for part in parts if len(part)]
            if not parts:
                return 0.0
            return float(np.mean([p.mean() for p in parts]) if weigh_by == "example" else np.concatenate(parts).mean())

        if vision_weight is None:
            expected = mean(np.ones_like(seen))
        else:
            expected = vision_weight * mean(seen) + (1 - vision_weight) * mean(~seen)
        assert (loss * batch.loss_weight).sum() == pytest.approx(expected, rel=1e-5)


def test_stores_that_do_not_belong_together_are_refused(stores: tuple[TokenStore, TokenStore], tmp_path: Path) -> None:
    text, seen = stores
    documents = [example(0, 10, "a cat", True), example(1, 10, "a dog", True)]
    marks = [ids < OFFSET for ids in documents]
    talk = write_pictured(tmp_path / "talk", documents, ["a", "a"], marks)
    with pytest.raises(UserError, match="only one marks answers"):
        open_stores([text.url, talk.url])
    other = write_pictured(tmp_path / "other", documents, ["a", "a"])
    other.info = replace(other.info, vision_offset=300)
    with pytest.raises(UserError, match=r"vision ids of .* are 300 \+ 24"):
        JoinedStore([seen, other])
    stranger = write_corpus(tmp_path / "s", [prose(0, 3), prose(1, 3)])
    stranger.info = replace(stranger.info, tokenizer_hash="another")
    with pytest.raises(UserError, match="tokenizer"):
        JoinedStore([stranger, seen])


def test_what_holds_pictures_is_packed_whole(stores: tuple[TokenStore, TokenStore]) -> None:
    seen: Store = stores[1]
    slices = cut_in_rows(seen.index, np.arange(4), 8)
    with pytest.raises(ValueError, match="packed whole"):
        pack(seen.index, slices, 8, "token")
