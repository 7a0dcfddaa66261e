"""From a token store to a plan: what a recipe asks for is what steps draw, and what cannot be is refused by its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ringworld.data.assemble import CHAINS
from ringworld.data.decompose import Decompose
from ringworld.data.files import write_table
from ringworld.data.loader import Loader
from ringworld.data.mixture import Mixture
from ringworld.data.plan import ASSEMBLED, UNTIED, PackingPlan
from ringworld.data.token_store import TokenStore
from ringworld.data.untie import Untie
from ringworld.errors import UserError
from stages import pack
from stages.pack import PackRecipe
from tests.ringworld.corpus import prose, write_corpus

DOMAINS = ("books", "code", "web")


class Folder:
    """An artifact that is a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: str) -> str:
        return str(self._folder / name)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenStore, Folder]:
    """Long books, middling code, short pages of the web."""
    folder = tmp_path_factory.mktemp("corpus")
    random = np.random.default_rng(0)
    sentences = {"books": (60, 120, 12), "code": (10, 40, 30), "web": (2, 8, 120)}
    texts, domains = [], []
    for domain, (least, most, count) in sentences.items():
        texts += [prose(int(seed), int(n)) for seed, n in enumerate(random.integers(least, most, count))]
        domains += [domain] * count
    return write_corpus(folder, [*texts, prose(99, 50)], domains=[*domains, "books"]), Folder(folder)


def planned(
    store: tuple[TokenStore, Folder], run_stage: Any, recipe: PackRecipe, **ports: Any
) -> tuple[PackingPlan, Any]:
    made = run_stage(pack, recipe, {"tokens": store[1], "tokenizer": store[1], **ports}, name="pack-text-512")
    return PackingPlan.load(made.path("plan.parquet")), made.values


def drawn(store: TokenStore, plan: PackingPlan, recipe: PackRecipe) -> np.ndarray:
    """How many of their tokens each document gives to the steps of a stage."""
    loader = Loader(store, plan, seed=1, rows_per_batch=recipe.batch_tokens // recipe.sequence)
    rows = np.concatenate([loader.rows_at(step) for step in range(recipe.steps)])
    times = np.bincount(rows, minlength=plan.num_rows)[plan.row]
    return np.bincount(plan.document, plan.answers * times, minlength=len(store.index.tokens))


@pytest.mark.parametrize("decompose", [Decompose(), Decompose(128)])
def test_steps_draw_what_the_mixture_asks_for(
    store: tuple[TokenStore, Folder], run_stage: Any, decompose: Decompose
) -> None:
    index = store[0].index
    wish = Mixture({"books": 2, "code": 1, "web": 1}, upsample={"4000": 3.0}, replay=0.3)
    recipe = PackRecipe(512, (400, None), "token", wish, decompose=decompose, steps=300, batch_tokens=4096)
    plan, values = planned(store, run_stage, recipe)
    tokens = drawn(store[0], plan, recipe)
    assert index.corpus is not None
    of = {name: index.corpus == name for name in DOMAINS}
    short, total = index.tokens < 400, tokens.sum()
    assert tokens[short].sum() / total == pytest.approx(0.3, abs=0.01)
    assert tokens[of["books"] & ~short].sum() / total == pytest.approx(0.7 * 2 / 3, abs=0.015)
    assert tokens[of["code"] & ~short].sum() / total == pytest.approx(0.7 / 3, abs=0.015)
    assert not tokens[index.held_out].any()
    # Long books come three times as often as the others.
    often = tokens / np.maximum(1, index.tokens - 1)
    books = of["books"] & ~index.held_out
    assert often[books & (index.tokens >= 4000)].mean() / often[books & (index.tokens < 4000)].mean() == pytest.approx(
        3, rel=0.15
    )
    assert plan.fill > 0.95
    for row in values["mixture"]:
        members = [name for name in DOMAINS if row["name"].startswith(name)]
        assert len(members) == 1
    assert sum(row["share"] for row in values["mixture"]) == pytest.approx(1, abs=1e-5)
    lengths = {"512"} if not decompose.least else {"128", "256", "512"}
    assert set(values["row_lengths"]) == lengths


def test_related_documents_are_joined_and_long_ones_cut_at_lines(
    store: tuple[TokenStore, Folder], run_stage: Any, tmp_path: Path
) -> None:
    index = store[0].index
    web = np.flatnonzero(index.corpus == "web")
    columns = [np.zeros(len(web)), np.arange(len(web)), web, np.zeros(len(web))]
    write_table(str(tmp_path / "chains.parquet"), pa.table(dict(zip(CHAINS.names, columns, strict=True))).cast(CHAINS))
    recipe = PackRecipe(2048, documents="assembled")
    plan, values = planned(store, run_stage, recipe, chains=Folder(tmp_path))
    assembled = plan.made == ASSEMBLED
    assert set(plan.document[assembled]) <= set(web)
    assert assembled.sum() > 0.9 * len(web)
    assert values["made"]["assembled"] == assembled.sum()
    assert plan.answers.sum() == (index.tokens - 1)[~index.held_out].sum()
    # Where a sentence ends near the end of a row, the cut is there: the last target is a full stop.
    stops = plan.start + plan.length
    length = plan.length + (stops < index.tokens[plan.document])
    ends = store[0].read_many(plan.document.tolist(), plan.start.tolist(), length.tolist())
    last = [chr(ids[-1]) for ids in ends if ids[-1] < 256]
    assert last.count(".") > 0.6 * len(last) > 0
    assert values["documents_cut"] == (index.tokens[~index.held_out] > 2049).sum() > 0


def test_chunks_are_shuffled_and_long_documents_dropped(store: tuple[TokenStore, Folder], run_stage: Any) -> None:
    index = store[0].index
    plan, values = planned(store, run_stage, PackRecipe(1024, over_long="drop", untie=Untie(0.5)))
    assert 0.2 < (plan.made == UNTIED).mean() < 0.95
    assert values["dropped"]["longer than a row"] == (index.tokens[~index.held_out] > 1025).sum() > 0
    fits = ~index.held_out & (index.tokens <= 1025)
    assert plan.answers.sum() == (index.tokens[fits] - 1).sum()


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (PackRecipe(512, mixture=Mixture({"films": 1})), "stages.text-512.mixture.films: .*'books', 'code', 'web'"),
        (
            PackRecipe(512, mixture=Mixture(max_epochs=1.0), steps=1000, batch_tokens=4096),
            r"stages.text-512.max_epochs=1: the stage draws 4096000 tokens and its documents hold \d+",
        ),
        (PackRecipe(64, (1000, None), over_long="drop"), "stages.text-512.over_long=drop: every document is longer"),
        (PackRecipe(512, mixture=Mixture(replay=0.2)), "stages.text-512.replay=0.2: no train document is shorter"),
    ],
)
def test_what_the_store_cannot_give_is_refused_by_key(
    store: tuple[TokenStore, Folder], run_stage: Any, recipe: PackRecipe, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        planned(store, run_stage, recipe)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"decompose": Decompose(64), "untie": Untie(0.2), "steps": 1, "batch_tokens": 512},
            "decompose makes rows of one",
        ),
        ({"decompose": Decompose(64)}, "need the stage's steps"),
        ({"mixture": Mixture(max_epochs=2.0)}, "need the stage's steps"),
        ({"decompose": Decompose(1024), "steps": 1, "batch_tokens": 512}, "decompose.least=1024 with sequence=512"),
        ({"window": 0}, "window=0"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        PackRecipe(512, **change)
