"""Pictures and text in the rows of one plan, in the proportions of the mixture; what cannot be is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ringworld.data.loader import Loader
from ringworld.data.plan import PackingPlan
from ringworld.data.stores import JoinedStore, open_stores
from ringworld.errors import UserError
from stages import pack_vision
from stages.pack_vision import PackVisionRecipe
from tests.ringworld.corpus import prose, write_corpus
from tests.ringworld.pictured import OFFSET, example, write_pictured
from tests.stages.test_pack import Folder

MIXTURE = {"text": 0.16, "image": 0.42, "video": 0.42}


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folder]:
    """Long texts, pictures of 16 codes, videos of 100."""
    folder = tmp_path_factory.mktemp("both")
    write_corpus(folder, [prose(seed, 30) for seed in range(12)])
    pictures = [example(seed, 16, "a cat", seed % 2 == 0) for seed in range(80)]
    videos = [example(seed, 100, "a cat runs", seed % 2 == 0) for seed in range(30)]
    long = [example(1, 300, "a long one", True)] * 3
    corpora = ["image"] * 80 + ["video"] * 33
    write_pictured(folder / "seen" / "tokens", [*pictures, *videos[:29], *long, videos[29]], corpora)
    return {"tokens": Folder(folder), "vision": Folder(folder / "seen")}


def test_a_step_draws_rows_of_text_and_of_pictures_as_asked(ports: dict[str, Folder], run_stage: Any) -> None:
    recipe = PackVisionRecipe(256, MIXTURE)
    made = run_stage(pack_vision, recipe, ports, name="pack-vision-256")
    plan = PackingPlan.load(made.path("plan.parquet"))
    assert (plan.vision_weight, plan.weigh_by, plan.sequence) == (0.5, "token", 256)
    store = open_stores([ports["tokens"].path("tokens"), ports["vision"].path("tokens")])
    assert isinstance(store, JoinedStore)
    loader = Loader(store, plan, seed=1, rows_per_batch=8)
    names = np.repeat([corpus.name for corpus in plan.corpora], [corpus.rows for corpus in plan.corpora])
    drawn = [str(names[row]) for step in range(200) for row in loader.rows_at(step)]
    for name, share in MIXTURE.items():
        assert drawn.count(name) / len(drawn) == pytest.approx(share, abs=0.01)
    of = {name: set(plan.document[names[plan.row] == name].tolist()) for name in MIXTURE}
    assert of["text"] == set(range(11))  # the last is held out
    assert not store.index.held_out[plan.document].any()
    for step in range(20):
        batch = loader.batch(step)
        counted = batch.loss_weight > 0
        seen = batch.targets >= OFFSET
        for kind in (seen, ~seen):
            if (counted & kind).any():
                assert batch.loss_weight[kind].sum() == pytest.approx(0.5, rel=1e-5)
    assert made.values["corpora"]["video"]["dropped"] == {"longer than a row": 3}
    assert made.values["corpora"]["text"]["vision_tokens"] == 0
    assert made.values["vision_tokens"] == sum(part["vision_tokens"] for part in made.values["corpora"].values())


def test_pictures_alone_need_no_text(ports: dict[str, Folder], run_stage: Any) -> None:
    made = run_stage(
        pack_vision,
        PackVisionRecipe(128, {"image": 1.0}, "example", None),
        {"vision": ports["vision"]},
        name="pack-vision-128",
    )
    plan = PackingPlan.load(made.path("plan.parquet"))
    assert (plan.vision_weight, plan.weigh_by) == (None, "example")
    assert set(plan.document.tolist()) == set(range(79))


def test_what_cannot_be_packed_is_refused_by_its_key(ports: dict[str, Folder], run_stage: Any) -> None:
    with pytest.raises(UserError, match=r"stages.vision-16.mixture.video: none of 32 train examples of video fits"):
        run_stage(pack_vision, PackVisionRecipe(16, {"video": 1.0}), {"vision": ports["vision"]}, name="pack-vision-16")
    with pytest.raises(UserError, match=r"mixture.audio: none of 0 train examples of audio"):
        run_stage(pack_vision, PackVisionRecipe(64, {"audio": 1.0}), {"vision": ports["vision"]}, name="pack-vision-64")
    with pytest.raises(UserError, match=r"vision_weight=1\.0"):
        PackVisionRecipe(64, {"image": 1.0}, vision_weight=1.0)
