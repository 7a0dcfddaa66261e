"""The training loop: it learns, resumes bit by bit and on other meshes, and stops on what is not finite."""

import dataclasses
import json
import os
import signal
import threading
import time

import jax
import numpy as np
import pytest

from ringworld.errors import UserError
from ringworld.exits import DONE, PREEMPTED
from ringworld.mesh import MeshSpec, parse_mesh
from ringworld.model.config import ModelConfig
from ringworld.model.llama import abstract_params
from ringworld.model.memory import Memory
from ringworld.train import trainer
from ringworld.train.checkpoint import load_params
from ringworld.train.progress import read_progress
from ringworld.train.recipe import OptimizerConfig, TrainInputs, TrainJob, TrainOptions, TrainRecipe, load_job
from ringworld.train.shapes import shaped_steps
from tests.ringworld.corpus import prose, write_corpus, write_plan
from tests.thorough import thorough

MODEL = ModelConfig(
    vocabulary=264,
    num_layers=2,
    embed_dim=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=48,
    tied_embeddings=True,
)
ONE = MeshSpec(fsdp=1)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """The meshes here are small: only as many devices as a mesh names."""
    make = trainer.make_mesh

    def of_size(spec):
        return make(spec, jax.devices()[: int(np.prod(dataclasses.astuple(spec)))])

    monkeypatch.setattr(trainer, "make_mesh", of_size)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    store = write_corpus(folder, [prose(seed, 12 + 5 * seed) for seed in range(12)])
    return TrainInputs(plan=write_plan(folder, store, 64), tokens=str(folder / "tokens"), output="")


def job(corpus, output, steps=8, rate=1e-2, **options):
    recipe = TrainRecipe(
        model=MODEL, sequence=64, batch_tokens=256, steps=steps, optimizer=OptimizerConfig(rate, warmup_steps=2)
    )
    output.mkdir(exist_ok=True)
    inputs = dataclasses.replace(corpus, output=str(output))
    return TrainJob(recipe, inputs, TrainOptions(**{"save_every": 3, **options}))


def losses(state):
    return [record.loss for record in read_progress(state / "progress.jsonl")]


def params(output):
    return load_params(str(output / "params"), abstract_params(MODEL))


@pytest.fixture(scope="module")
def calm(corpus, tmp_path_factory):
    """An undisturbed run of 8 steps."""
    folder = tmp_path_factory.mktemp("calm")
    made = job(corpus, folder / "out")
    mesh = trainer.make_mesh
    trainer.make_mesh = lambda spec: mesh(spec, jax.devices()[:1])
    try:
        assert trainer.train(made, str(folder / "state"), ONE) == DONE
    finally:
        trainer.make_mesh = mesh
    return folder


def test_the_loss_falls(calm):
    run = losses(calm / "state")
    assert len(run) == 8
    assert run[-1] < run[0] - 0.5


def test_records_and_session_say_what_compiling_and_saving_took(calm):
    records = read_progress(str(calm / "state" / "progress.jsonl"))
    assert [record.step for record in records if record.compile] == [1]
    assert [record.step for record in records if record.save] == [4, 7]
    assert all(record.compile + record.save < record.seconds for record in records)
    session = json.loads((calm / "state" / "sessions" / "0001.json").read_text())
    assert (session["ended"], session["step"], session["saves"]) == ("done", 8, 3)
    assert session["compile_seconds"] == records[0].compile
    assert session["save_blocked_seconds"] > sum(record.save for record in records) > 0
    assert session["begun"] <= session["ready"] <= records[0].time


def test_a_job_asked_to_stop_saves_and_resumes_bit_by_bit(corpus, calm, tmp_path):
    made, state = job(corpus, tmp_path / "out", save_every=100), tmp_path / "state"

    def ask_after_some_steps():
        while len(losses(state) if (state / "progress.jsonl").exists() else []) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask_after_some_steps)
    asking.start()
    handler = signal.getsignal(signal.SIGTERM)
    first = trainer.train(made, str(state), ONE)
    asking.join()
    assert first == PREEMPTED
    assert signal.getsignal(signal.SIGTERM) == handler
    assert 2 <= len(losses(state)) < 8
    assert trainer.train(made, str(state), ONE) == DONE
    assert losses(state) == losses(calm / "state")
    jax.tree.map(np.testing.assert_array_equal, params(tmp_path / "out"), params(calm / "out"))


def test_steps_after_the_last_checkpoint_of_a_dead_job_are_trained_again_and_counted_once(corpus, calm, tmp_path):
    made, state = job(corpus, tmp_path / "out", steps=8), tmp_path / "state"
    checkpoints = trainer.Checkpoints

    class DiesAfterSix(checkpoints):
        def save(self, step, state):
            super().save(step, state)
            if step == 6:
                self.wait()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "Checkpoints", DiesAfterSix)
        patch.setattr(trainer, "save_params", lambda *_: (_ for _ in ()).throw(OSError("the machine went away")))
        with pytest.raises(OSError, match="went away"):
            trainer.train(made, str(state), ONE)
    # The file says 8 steps; make the newest checkpoint 6, as if the death had come before the last save was durable.
    import shutil

    shutil.rmtree(state / "checkpoints" / "8")
    assert trainer.train(made, str(state), ONE) == DONE
    assert [record.step for record in read_progress(state / "progress.jsonl")] == list(range(1, 9))
    assert losses(state) == losses(calm / "state")


@pytest.mark.parametrize("mesh", ["fsdp=1,ring=2,ulysses=2", thorough("fsdp=1,ring=4"), thorough("fsdp=2,tensor=2")])
def test_a_job_resumes_on_another_mesh_with_the_same_batches(corpus, calm, tmp_path, mesh):
    import shutil

    shutil.copytree(calm / "state", tmp_path / "state")
    shutil.rmtree(tmp_path / "state" / "checkpoints" / "8")
    made = job(corpus, tmp_path / "out", memory=Memory("layer"), microbatch_rows=2)
    assert trainer.train(made, str(tmp_path / "state"), parse_mesh(mesh)) == DONE
    np.testing.assert_allclose(losses(tmp_path / "state"), losses(calm / "state"), rtol=2e-5)


def test_a_ring_is_fed_balanced_rows_unless_told_otherwise(corpus, tmp_path):
    """The batch on the mesh is its rows as they are dealt to ranks, each as the layout of its ring orders it, the same
    again after a restart."""
    mesh = trainer.make_mesh(parse_mesh("fsdp=2,ring=4"))
    fed = {}
    for run, options in (
        ("told", TrainOptions(layout="contiguous")),
        ("first", TrainOptions()),
        ("restarted", TrainOptions()),
    ):
        made = dataclasses.replace(job(corpus, tmp_path / "out"), options=options)
        loader = trainer.open_loader(made)
        shaped = shaped_steps(made.recipe, options, mesh, loader)
        fed[run] = [np.asarray(array) for array in next(trainer.feed(loader, shaped, 3, 4))]
        planned, dealt = loader.rows_at(3).tolist(), loader.rows_at(3, shaped.split_at(3)).tolist()
    assert sorted(planned) == sorted(dealt)
    for contiguous, balanced, restarted in zip(*fed.values(), strict=True):
        expected = [loader.layout(row, 4).apply(contiguous[planned.index(row)]) for row in dealt]
        np.testing.assert_array_equal(balanced, np.stack(expected))
        np.testing.assert_array_equal(restarted, balanced)
    assert all((one != other).any() for one, other in zip(fed["first"], fed["told"], strict=True))


def test_a_stage_starts_from_the_weights_of_another_with_a_fresh_optimizer(corpus, calm, tmp_path):
    made = job(corpus, tmp_path / "out", steps=1)
    made = dataclasses.replace(
        made,
        recipe=dataclasses.replace(made.recipe, init="params"),
        inputs=dataclasses.replace(made.inputs, params=str(calm / "out" / "params")),
    )
    assert trainer.train(made, str(tmp_path / "state"), ONE) == DONE
    assert losses(tmp_path / "state")[0] < losses(calm / "state")[1]
    assert read_progress(tmp_path / "state" / "progress.jsonl")[0].learning_rate == pytest.approx(0.005)


def test_a_loss_that_is_not_finite_stops_with_step_and_rows_and_keeps_the_checkpoint_before(corpus, tmp_path):
    made, state = job(corpus, tmp_path / "out", rate=1e30, save_every=1), tmp_path / "state"
    with pytest.raises(UserError) as error:
        trainer.train(made, str(state), ONE)
    step = len(losses(state)) + 1
    assert f"step {step}:" in str(error.value)
    assert "rows [" in str(error.value)
    assert str(step - 1) in os.listdir(state / "checkpoints")
    assert str(step) not in os.listdir(state / "checkpoints")
    # Else the process of whoever called it would be ended for a stall, minutes later.
    assert "vigil" not in {thread.name for thread in threading.enumerate()}


def test_weights_of_another_model_are_refused_by_name(calm, tmp_path):
    other = dataclasses.replace(MODEL, mlp_dim=50)
    with pytest.raises(UserError, match=r"layers.mlp.down is \(2, 48, 32\) there and \(2, 50, 32\)"):
        load_params(str(calm / "out" / "params"), abstract_params(other))


def test_a_tokenizer_larger_than_the_model_is_refused(corpus, tmp_path):
    made = job(corpus, tmp_path / "out")
    small = dataclasses.replace(made.recipe, model=dataclasses.replace(MODEL, vocabulary=100))
    with pytest.raises(UserError, match=r"vocabulary=100 is smaller than the tokenizer's 258"):
        trainer.open_loader(dataclasses.replace(made, recipe=small))


def test_a_job_file_reads_back_as_it_was_written(corpus, tmp_path):
    made = job(corpus, tmp_path / "out")
    made.save(str(tmp_path / "job.yaml"))
    assert load_job(str(tmp_path / "job.yaml")) == made


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch_tokens": 100}, r"batch_tokens=100 is not a multiple of sequence=64; the nearest is 128"),
        ({"steps": 0}, "steps=0"),
        ({"sequence": 1}, "sequence=1"),
        ({"init": "huggingface"}, "init_folder"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(corpus, tmp_path, change, said):
    with pytest.raises(UserError, match=said):
        dataclasses.replace(job(corpus, tmp_path / "out").recipe, **change)
