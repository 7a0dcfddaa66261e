"""A text model learns to see: it starts with new rows and trains on both stores; ids without rows are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from ringworld.data.packing import cut_in_rows, pack, select_whole
from ringworld.data.plan import mix
from ringworld.data.stores import JoinedStore, open_stores
from ringworld.errors import UserError
from ringworld.exits import DONE
from ringworld.mesh import MeshSpec, parse_mesh
from ringworld.model.config import ModelConfig
from ringworld.train import trainer
from ringworld.train.progress import Record, read_progress
from ringworld.train.recipe import OptimizerConfig, TrainInputs, TrainJob, TrainOptions, TrainRecipe
from tests.ringworld.corpus import prose, write_corpus, write_plan
from tests.ringworld.pictured import CODES, OFFSET, example, write_pictured

TEXT = ModelConfig(vocabulary=OFFSET, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48)
SEES = dataclasses.replace(TEXT, vision_vocabulary=CODES)
RECIPE = TrainRecipe(SEES, sequence=64, batch_tokens=256, steps=8, optimizer=OptimizerConfig(1e-2), init="params")


@pytest.fixture(autouse=True)
def as_many_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    make = trainer.make_mesh

    def of_size(spec: MeshSpec) -> jax.sharding.Mesh:
        return make(spec, jax.devices()[: int(np.prod(dataclasses.astuple(spec)))])

    monkeypatch.setattr(trainer, "make_mesh", of_size)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> TrainInputs:
    """A text model of one step, two stores, and a plan of both."""
    folder = tmp_path_factory.mktemp("both")
    text = write_corpus(folder, [prose(seed, 6) for seed in range(8)])
    alone = TrainRecipe(TEXT, sequence=64, batch_tokens=256, steps=1, optimizer=OptimizerConfig(1e-2))
    (folder / "text").mkdir()
    job = TrainJob(alone, TrainInputs(write_plan(folder, text, 64), text.url, str(folder / "text")))
    make = trainer.make_mesh
    trainer.make_mesh = lambda spec: make(spec, jax.devices()[:1])
    try:
        assert trainer.train(job, str(folder / "text" / "state"), MeshSpec(fsdp=1)) == DONE
    finally:
        trainer.make_mesh = make

    examples = [example(seed, 24, "a cat", seed % 2 == 0) for seed in range(40)]
    seen = write_pictured(folder / "seen", examples, ["image"] * 40)
    both = open_stores([text.url, seen.url])
    assert isinstance(both, JoinedStore)
    documents = {
        "text": text.index.documents("train"),
        "image": select_whole(both.index, "train", "image", 64, "m").documents,
    }
    plans = {
        name: pack(both.index, cut_in_rows(both.index, chosen, 64), 64, "token", 0.5)
        for name, chosen in documents.items()
    }
    mix(plans, {"text": 0.25, "image": 0.75}).save(str(folder / "both.parquet"))
    return TrainInputs(str(folder / "both.parquet"), text.url, "", str(folder / "text" / "params"), seen.url)


def trained(inputs: TrainInputs, folder: Path, mesh: str) -> list[Record]:
    folder.mkdir()
    job = TrainJob(RECIPE, dataclasses.replace(inputs, output=str(folder)), TrainOptions(save_every=100))
    assert trainer.train(job, str(folder / "state"), parse_mesh(mesh)) == DONE
    return read_progress(folder / "state" / "progress.jsonl")


def test_both_losses_fall_and_a_mesh_changes_nothing(inputs: TrainInputs, tmp_path: Path) -> None:
    records = trained(inputs, tmp_path / "one", "fsdp=1")
    first, last = records[0], records[-1]
    assert first.loss_text is not None
    assert first.loss_vision is not None
    assert last.loss_text is not None
    assert last.loss_vision is not None
    assert first.loss_vision == pytest.approx(np.log(CODES), rel=0.05)  # fresh rows know nothing
    assert last.loss_vision < first.loss_vision - 0.3
    assert last.loss_text < first.loss_text - 0.3
    for record in records:
        if record.loss_text is not None and record.loss_vision is not None:
            assert record.loss == pytest.approx(0.5 * record.loss_text + 0.5 * record.loss_vision, rel=1e-5)
    others = trained(inputs, tmp_path / "mesh", "fsdp=1,ring=2,tensor=2")
    np.testing.assert_allclose([r.loss for r in others], [r.loss for r in records], rtol=2e-5)


def test_ids_that_a_model_has_no_rows_for_are_refused(inputs: TrainInputs, tmp_path: Path) -> None:
    def refused(model: ModelConfig, match: str) -> None:
        recipe = dataclasses.replace(RECIPE, model=model)
        with pytest.raises(UserError, match=match):
            trainer.open_loader(TrainJob(recipe, dataclasses.replace(inputs, output=str(tmp_path))))

    refused(TEXT, "has vision ids and the model is of text alone")
    refused(dataclasses.replace(SEES, vocabulary=264), "vision ids begin at 260, but the model's text has 264 ids")
    refused(dataclasses.replace(SEES, vision_vocabulary=20), "24 vision ids, the model 20; set vision.vocabulary to 24")
