"""The process that makes a VQGAN: what it leaves, its exit codes, its job file."""

import dataclasses
import json
import os
import signal
import threading
import time

import jax
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ringworld import mesh as meshes
from ringworld.errors import UserError
from ringworld.exits import DONE, PREEMPTED, USER_ERROR
from ringworld.mesh import make_mesh
from ringworld.vision.gallery import GalleryOptions
from ringworld.vision.train import main
from ringworld.vision.vqgan_import import read_vqgan, weights_sha256
from ringworld.vision.vqgan_job import VQInputs, VQJob, VQRecipe, VQTrainOptions, load_vqgan_job
from ringworld.vision.vqgan_progress import read_vqgan_progress
from tests.ringworld.vision.galleries import write_clips
from tests.ringworld.vision.test_vqgan_train import MODEL, RECIPE

PICTURES = GalleryOptions(frames=2, side=16)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(meshes, "make_mesh", lambda spec: make_mesh(spec, jax.devices()[:1]))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    pq.write_table(write_clips(folder / "clips"), folder / "clips.parquet")
    return str(folder / "clips.parquet")


def run(folder, clips, recipe, **options):
    """The exit code of a process in `folder`, which holds its state and its output."""
    (folder / "out").mkdir(exist_ok=True)
    job = VQJob(recipe, VQInputs(clips, str(folder / "out")), VQTrainOptions(**options))
    job.save(str(folder / "job.yaml"))
    assert load_vqgan_job(str(folder / "job.yaml")) == job
    return main(["--recipe", str(folder / "job.yaml"), "--state", str(folder / "state")])


def test_a_training_that_is_asked_to_stop_is_resumed_and_imported(tmp_path, clips):
    recipe, progress = VQRecipe(train=RECIPE, pictures=PICTURES), tmp_path / "state" / "progress.jsonl"

    def ask() -> None:
        while not read_vqgan_progress(progress):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    asker = threading.Thread(target=ask)
    asker.start()
    assert run(tmp_path, clips, recipe, record_every=1) == PREEMPTED
    asker.join()
    [saved] = (tmp_path / "state" / "checkpoints").iterdir()
    assert 0 < int(saved.name) < RECIPE.steps
    assert not (tmp_path / "out" / "vqgan").exists()
    assert run(tmp_path, clips, recipe, record_every=40) == DONE

    figures = json.loads((tmp_path / "out" / "vqgan.json").read_text())
    records = read_vqgan_progress(tmp_path / "out" / "progress.jsonl")
    assert records[-1].step == RECIPE.steps == figures["steps"]
    assert figures["psnr"] == pytest.approx(records[-1].held_out.psnr)
    assert (figures["pictures"], figures["held_out"]) == (6, 2)
    assert figures["refused"][0].startswith("cut.png")
    assert 1 <= figures["perplexity"] <= figures["used"] <= figures["codebook"] == 32
    assert figures["sha256"] == weights_sha256(str(tmp_path / "out" / "vqgan"))
    for name in ("reconstructions.png", "vqgan.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert min(picture.size) > 100

    # Its folder is one to import: the same weights, measured on the same pictures.
    other = tmp_path / "imported"
    other.mkdir()
    folder = VQRecipe(folder=str(tmp_path / "out" / "vqgan"), pictures=PICTURES)
    assert run(other, clips, folder) == DONE
    imported = json.loads((other / "out" / "vqgan.json").read_text())
    assert imported["psnr"] == pytest.approx(figures["psnr"])
    assert (imported["sha256"], imported["steps"]) == (figures["sha256"], 0)
    assert not (other / "out" / "progress.jsonl").exists()
    assert read_vqgan(str(other / "out" / "vqgan"))[0] == MODEL


def test_what_a_person_must_repair_is_one_line(tmp_path, clips, capsys):
    assert run(tmp_path, clips, VQRecipe(folder=str(tmp_path))) == USER_ERROR
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith("no config.json; give the folder of a VQModel, such as aMUSEd's `vqvae`")
    )
    assert main(["--recipe", str(tmp_path / "none.yaml"), "--state", str(tmp_path)]) == USER_ERROR
    assert "no such file" in capsys.readouterr().err
    job = ["--recipe", str(tmp_path / "job.yaml"), "--state", str(tmp_path)]
    assert main([*job, "--num-processes", "2", "--coordinator", "x:1"]) == USER_ERROR
    assert "trained on one host" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: VQRecipe(), "neither given"),
        (lambda: VQRecipe(train=RECIPE, folder="x"), "both given"),
        (lambda: VQRecipe(train=RECIPE, resolution=8), "resolution=8: goes with folder"),
        (lambda: VQRecipe(train=RECIPE, pictures=dataclasses.replace(PICTURES, side=4)), r"pictures\.side=4: smaller"),
        (lambda: VQTrainOptions(keep=0), r"options\.keep=0"),
    ],
)
def test_jobs_that_are_none_are_refused(made, message):
    with pytest.raises(UserError, match=message):
        made()
