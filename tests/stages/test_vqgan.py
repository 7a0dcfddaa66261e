"""A VQGAN stage hands its process a job, reports its progress, and lists what it left."""

from __future__ import annotations

from pathlib import Path

import jax
import pyarrow.parquet as pq
import pytest

from infra.manifest import FileEntry, Manifest, Provenance
from infra.stage import Artifact, StageFailure, canonical
from ringworld import mesh as meshes
from ringworld.exits import DONE
from ringworld.mesh import make_mesh
from ringworld.vision.gallery import GalleryOptions
from ringworld.vision.train import main
from ringworld.vision.vqgan_job import VQRecipe, load_vqgan_job
from stages import vqgan
from tests.ringworld.vision.galleries import write_clips
from tests.ringworld.vision.test_vqgan_train import RECIPE

PICTURES = GalleryOptions(frames=2, side=16)
TRAINED = VQRecipe(train=RECIPE, pictures=PICTURES)


@pytest.fixture
def media(tmp_path: Path) -> Artifact:
    pq.write_table(write_clips(tmp_path / "clips"), tmp_path / "clips.parquet")
    origin = Provenance(None, {}, "host", "", "", 0.0, 1)
    manifest = Manifest("media", "media", 1, "", {}, {}, (FileEntry("clips.parquet", 0),), {}, 1, 1, origin)
    return Artifact(manifest, str(tmp_path))


@pytest.fixture
def told(monkeypatch):
    """The process runs in this one; the arguments that it was given."""
    told = []

    def run_module(context, module, arguments, *, watch, newest_step):
        told.append((module, arguments))
        assert newest_step() is None
        watch()
        assert main(arguments) == DONE
        watch()
        told.append(newest_step())

    monkeypatch.setattr(vqgan, "run_module", run_module)
    monkeypatch.setattr(meshes, "make_mesh", lambda spec: make_mesh(spec, jax.devices()[:1]))
    return told


def test_one_is_trained_and_then_imported(media, told, run_stage, monkeypatch, tmp_path):
    canonical(TRAINED)
    made = run_stage(vqgan, TRAINED, {"media": media})
    (module, arguments), newest = told
    assert module == "ringworld.vision.train"
    job = load_vqgan_job(arguments[1])
    assert job.recipe == TRAINED
    assert job.options.compilation_cache.endswith("compiled")
    assert newest == RECIPE.steps
    weights = {"vqgan/config.json", "vqgan/diffusion_pytorch_model.safetensors"}
    both = weights | {"vqgan.json", "reconstructions.png", "job.yaml"}
    assert set(made.files) == both | {"progress.jsonl", "vqgan.png"}
    values = made.values
    assert values["provenance"] == "trained on the clips"
    assert (values["steps"], values["codebook"], values["resolution"], values["factor"]) == (RECIPE.steps, 32, 8, 1)
    assert values["psnr"] > 10
    assert values["pictures"] == 6

    told.clear()
    monkeypatch.chdir(made.path("vqgan"))  # a relative path is the person's, not the process's
    imported = run_stage(vqgan, VQRecipe(folder=".", pictures=PICTURES), {"media": media})
    assert load_vqgan_job(told[0][1][1]).recipe.folder == made.path("vqgan")
    assert set(imported.files) == both
    assert imported.values["sha256"] == values["sha256"]
    assert imported.values["provenance"] == "imported from ."


def test_how_the_process_ended_is_passed_on(media, run_stage, monkeypatch):
    def stalled(*_, **__):
        raise StageFailure("stalled", "no step", marker=3)

    monkeypatch.setattr(vqgan, "run_module", stalled)
    with pytest.raises(StageFailure, match="no step"):
        run_stage(vqgan, TRAINED, {"media": media})
