"""Documents with things to look up: of training text alone, as many as asked for, and refused by key where none fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringworld.data.loader import Loader
from ringworld.data.plan import PackingPlan
from ringworld.data.token_store import TokenStore
from ringworld.data.tokenizers import load_tokenizer
from ringworld.errors import UserError
from stages import pack_whole, recall
from stages.pack_whole import PackWholeRecipe
from stages.recall import RecallRecipe
from tests.ringworld.corpus import prose, write_corpus
from tests.stages.test_pack import Folder

MIXED = {"needle": 0.5, "passage": 0.25, "copy": 0.25}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenStore, Folder]:
    folder = tmp_path_factory.mktemp("corpus")
    return write_corpus(folder, [prose(seed, 60) for seed in range(12)], held_out=3), Folder(folder)


def made(corpus: tuple[TokenStore, Folder], run_stage: Any, recipe: RecallRecipe) -> Any:
    return run_stage(recall, recipe, {"tokens": corpus[1], "tokenizer": corpus[1]}, name="recall-text-512")


def test_steps_draw_the_mixture_and_count_what_is_looked_up(
    corpus: tuple[TokenStore, Folder], run_stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall, "_SHARD_TOKENS", 512 * 7)  # several shards, the last of them not full
    artifact = made(corpus, run_stage, RecallRecipe(512, 40, MIXED, counted=0.0))
    planned = run_stage(pack_whole, PackWholeRecipe(512, MIXED), {"tokens": artifact}, name="pack-text-512")
    store, plan = TokenStore.open(artifact.path("tokens")), PackingPlan.load(planned.path("plan.parquet"))
    assert (plan.num_rows, plan.fill) == (40, 1.0)
    assert [planned.values["corpora"][name]["rows"] for name in MIXED] == [20, 10, 10]
    assert planned.values["answer_tokens"] == artifact.values["answer_tokens"] > 0
    loader = Loader(store, plan, seed=0, rows_per_batch=8)
    drawn = np.concatenate([loader.rows_at(step) for step in range(5)])
    assert sorted(drawn.tolist()) == list(range(40))
    tokenizer = load_tokenizer(corpus[1].path("tokenizer"))
    for document in store.index.documents("train")[store.index.corpus == "needle"].tolist():
        ids = store.read(document)
        marks = store.read_answers([document], [0], [513])[0]
        text, answers = tokenizer.decode(ids), tokenizer.decode(ids[marks == 1]).split()
        assert answers
        assert all(text.count(answer) == 2 for answer in answers)
    assert [sample["corpus"] for sample in artifact.values["samples"]] == list(MIXED)
    assert "What is the special magic" in artifact.values["samples"][0]["text"]


def test_windows_are_of_training_documents_alone(corpus: tuple[TokenStore, Folder], run_stage: Any) -> None:
    artifact = made(corpus, run_stage, RecallRecipe(1024, 30, {"needle": 1.0}))
    store, text = TokenStore.open(artifact.path("tokens")), corpus[0]

    def ngrams(ids: np.ndarray) -> set[bytes]:
        return {ids[at : at + 24].tobytes() for at in range(len(ids) - 23)}

    seen = set().union(*(ngrams(store.read(document)) for document in range(30)))
    read = {
        split: set().union(*(ngrams(text.read(int(document))) for document in text.index.documents(split)))
        for split in ("train", "held_out")
    }
    assert len(seen & read["train"]) > 1000
    assert not seen & (read["held_out"] - read["train"])


def test_the_same_recipe_makes_the_same_rows_and_another_seed_others(
    corpus: tuple[TokenStore, Folder], run_stage: Any
) -> None:
    def rows(seed: int) -> list[list[int]]:
        artifact = made(corpus, run_stage, RecallRecipe(256, 6, {"passage": 1.0}, seed=seed))
        store = TokenStore.open(artifact.path("tokens"))
        return [store.read(document).tolist() for document in range(6)]

    assert rows(1) == rows(1) != rows(2)


@pytest.mark.parametrize(
    ("sequence", "mixture", "said"),
    [
        (1 << 20, {"passage": 1.0}, r"stages.text-512.sequence=1048576: none of 9 training documents is as long"),
        (32, {"needle": 1.0}, r"stages.text-512.sequence=32: a needle and its question take \d+ tokens"),
        (8, {"copy": 1.0}, r"sequence=8, documents=4: give 16 tokens or more"),
    ],
)
def test_what_cannot_be_is_refused_by_key(
    corpus: tuple[TokenStore, Folder], run_stage: Any, sequence: int, mixture: dict[str, float], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        made(corpus, run_stage, RecallRecipe(sequence, 4, mixture))


def test_rows_of_copies_need_no_documents_so_long(tmp_path: Path, run_stage: Any) -> None:
    corpus = write_corpus(tmp_path, [prose(seed, 1) for seed in range(3)]), Folder(tmp_path)
    artifact = made(corpus, run_stage, RecallRecipe(2048, 3, {"copy": 1.0}))
    assert artifact.values["answer_tokens"] > 3 * 1000
