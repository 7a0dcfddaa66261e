"""The training: it learns, resumes bit by bit, restarts codes, hears its judge, and stops on what is no number."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.errors import UserError
from ringworld.mesh import make_mesh, parse_mesh
from ringworld.vision import vqgan_train
from ringworld.vision.codebook import nearest
from ringworld.vision.config import VQConfig
from ringworld.vision.crops import random_crops
from ringworld.vision.judge import JudgeConfig
from ringworld.vision.parameters import Params
from ringworld.vision.vqgan import CODES, bind
from ringworld.vision.vqgan_job import VQTrainOptions
from ringworld.vision.vqgan_progress import read_vqgan_progress
from ringworld.vision.vqgan_recipe import AdversaryConfig, RestartConfig, VQTrainRecipe
from ringworld.vision.vqgan_step import OUTPUT, State, init_state, step_alone, step_judged
from ringworld.vision.vqgan_train import quality, train_vqgan
from tests.ringworld.vision.vqgans import pictures

# One level: what takes time here is to compile steps.
MODEL = VQConfig(8, (8,), blocks=1, latent=8, code_dim=6, codebook=32, groups=1)
RECIPE = VQTrainRecipe(
    MODEL,
    steps=120,
    batch=4,
    learning_rate=1e-2,
    warmup_steps=2,
    minimum_rate=1e-3,
    restart=RestartConfig(every=4),
    adversary=AdversaryConfig(JudgeConfig(4, 1), start_step=80, weight=0.1),
)
OPTIONS = VQTrainOptions(record_every=40, save_every=50)
# Measured on what it is shown: a minute's learning is of these pictures and of no others.
HELD_OUT = pictures(12, 8)
SHOWN = list(HELD_OUT)


def batch(step: int) -> np.ndarray:
    return random_crops(SHOWN, MODEL.resolution, RECIPE.batch, RECIPE.seed, step)


def weights(params: Params) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in params.items()}


# Placed as a training places them, so that its compiled steps serve here too.
WHOLE, SHARED = vqgan_train._shardings(RECIPE, make_mesh(parse_mesh("data=1"), jax.devices()[:1]))


def begun() -> State:
    return jax.device_put(init_state(RECIPE), WHOLE)


def placed(step: int) -> jax.Array:
    return jax.device_put(batch(step), SHARED)


latents_of = jax.jit(lambda params, pixels: bind(MODEL, params).latents(pixels))


@pytest.fixture(scope="module", autouse=True)
def quickly():
    """Compiled without costly passes: these steps take milliseconds and their compilation seconds."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """An undisturbed training: its folder, and what it made."""
    folder = tmp_path_factory.mktemp("calm")
    return folder, train_vqgan(RECIPE, batch, HELD_OUT, str(folder), OPTIONS)


def test_it_learns_and_tells_how_far_it_is(calm):
    folder, trained = calm
    records = trained.records
    assert [record.step for record in records] == [40, 80, 120]
    assert records == read_vqgan_progress(str(folder / "progress.jsonl"))
    assert records[-1].losses["l2"] < 0.6 * records[0].losses["l2"]
    assert records[-1].held_out.psnr > records[0].held_out.psnr + 0.5
    assert ("judge" in records[1].losses, "judge" in records[2].losses) == (False, True)
    assert records[-1].held_out == quality(MODEL, trained.params, HELD_OUT)
    assert all(1 <= record.perplexity <= record.used <= MODEL.codebook for record in records)
    assert records[-1].used > 4
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["100", "120"]


def test_a_training_that_is_stopped_ends_with_the_same_weights(calm, tmp_path):
    asked: list[int] = []

    def seen(step: int) -> np.ndarray:
        asked.append(step)
        return batch(step)

    assert train_vqgan(RECIPE, seen, HELD_OUT, str(tmp_path), OPTIONS, stopping=lambda step: step == 85) is None
    # A record beyond the checkpoint, as a process leaves that was killed: it is cut off.
    with open(tmp_path / "progress.jsonl", "a") as file:
        file.write((calm[0] / "progress.jsonl").read_text().splitlines()[-1] + '\n{"step": 160, "los')
    asked.clear()
    trained = train_vqgan(RECIPE, seen, HELD_OUT, str(tmp_path), OPTIONS)
    assert trained is not None
    assert min(asked) == 85
    expected = weights(calm[1].params)
    for name, value in weights(trained.params).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    assert [record.step for record in trained.records] == [40, 80, 120]
    assert trained.records[-1].held_out == calm[1].records[-1].held_out
    # Once more, after the last step: nothing is left to do.
    again = train_vqgan(RECIPE, seen, HELD_OUT, str(tmp_path), OPTIONS)
    assert again is not None
    np.testing.assert_array_equal(again.params[OUTPUT], expected[OUTPUT])


def test_devices_that_share_a_batch_learn_the_same(tmp_path):
    options, both = VQTrainOptions(record_every=2), {}
    for spec, devices in (("data=1", 1), ("data=2,fsdp=2", 4)):
        mesh = make_mesh(parse_mesh(spec), jax.devices()[:devices])
        folder = str(tmp_path / spec)
        assert train_vqgan(RECIPE, batch, HELD_OUT, folder, options, mesh=mesh, stopping=lambda step: step == 2) is None
        [record] = read_vqgan_progress(str(tmp_path / spec / "progress.jsonl"))
        both[spec] = record.losses | {"psnr": record.held_out.psnr, "perplexity": record.perplexity}
    assert both["data=1"] == pytest.approx(both["data=2,fsdp=2"], rel=1e-3)
    odd = dataclasses.replace(RECIPE, batch=3)
    for mesh in (
        make_mesh(parse_mesh("data=2,fsdp=2"), jax.devices()[:4]),
        make_mesh(parse_mesh("ring=2"), jax.devices()[:2]),
    ):
        with pytest.raises(UserError, match="batch=3 on the mesh"):
            train_vqgan(odd, batch, HELD_OUT, str(tmp_path), options, mesh=mesh)


def test_a_restart_makes_latents_of_unused_codes_and_forgets_their_averages():
    """Step 1 restarts, and then nearly all codes are unused; step 2 does not."""
    given = batch(0)
    before = begun()
    codes = np.asarray(before.params[CODES])
    after = step_alone(RECIPE, before, placed(0)).state
    latents = np.asarray(latents_of(init_state(RECIPE).params, given / np.float32(255))).reshape(-1, 6)
    changed = np.asarray(after.params[CODES])
    near = np.linalg.norm(changed[:, None] - latents, axis=-1).min(-1) < 0.1 * latents.std()
    used = np.unique(nearest(jnp.asarray(latents), jnp.asarray(codes)))
    assert near[np.setdiff1d(np.arange(32), used)].all()
    usage = np.asarray(after.usage)
    assert ((usage == 1) | (usage >= RECIPE.restart.below)).all()
    for name in ("mu", "nu"):
        moments = np.asarray(after.optimizer[1][0]._asdict()[name][CODES])
        assert not moments[usage == 1].any()
    second = np.asarray(step_alone(RECIPE, after, placed(1)).state.params[CODES])
    assert np.abs(second - changed).max() < 2 * RECIPE.learning_rate


def test_the_judge_learns_and_is_heard():
    alone, judged = step_alone(RECIPE, begun(), placed(0)), step_judged(RECIPE, begun(), placed(0))
    assert set(judged.losses) - set(alone.losses) == {"adversarial", "judge", "adaptive_weight"}
    before = init_state(RECIPE).judge
    # While no score is beyond a hinge, the bias of the scores gains on one side what it loses on the other.
    learned = {name for name, value in judged.state.judge.items() if np.abs(value - before[name]).max() > 0}
    assert before.keys() - learned <= {"convs.2.bias"}
    np.testing.assert_array_equal(alone.state.judge["convs.0.weight"], before["convs.0.weight"])
    assert np.abs(judged.state.params[OUTPUT] - alone.state.params[OUTPUT]).max() > 1e-5
    unheard = dataclasses.replace(RECIPE, adversary=dataclasses.replace(RECIPE.adversary, weight=0.0))
    assert not unheard.judged(100)
    assert (RECIPE.judged(79), RECIPE.judged(80)) == (False, True)


def test_a_loss_that_is_no_number_reaches_no_checkpoint(tmp_path, monkeypatch):
    def breaking(recipe, state, pictures):
        step = step_alone(recipe, state, pictures)
        return step._replace(losses=step.losses | {"edge": step.losses["edge"] / (step.state.step != 2)})

    monkeypatch.setattr(vqgan_train, "step_alone", breaking)
    options = VQTrainOptions(record_every=50, save_every=3)
    with pytest.raises(UserError, match=r"the loss edge is no number by step 3; .*lower learning_rate=0\.01"):
        train_vqgan(RECIPE, batch, HELD_OUT, str(tmp_path), options)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_pictures_of_other_sizes_are_refused(tmp_path):
    with pytest.raises(UserError, match="held-out pictures"):
        train_vqgan(RECIPE, batch, HELD_OUT[:, :4], str(tmp_path))
    with pytest.raises(UserError, match=r"the batch of step 0: uint8 \[2, 8, 8, 3\]"):
        train_vqgan(RECIPE, lambda step: batch(step)[:2], HELD_OUT, str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"minimum_rate": 1.0}, "not below its minimum"),
        ({"commitment": -1.0}, "commitment=-1"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"adversary": AdversaryConfig(JudgeConfig(4, 4))}, "layers=4: pictures of 8 pixels are too small"),
    ],
)
def test_recipes_that_are_none_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(RECIPE, **changes)


def test_crops_are_squares_of_the_pictures_and_a_function_of_the_step():
    pictures = [
        np.arange(40 * 30 * 3, dtype=np.uint32).reshape(40, 30, 3).astype(np.uint8),
        np.full((4, 9, 3), 7, np.uint8),
    ]
    first, again, other = (random_crops(pictures, 8, 64, 1, step) for step in (0, 0, 1))
    assert first.shape == (64, 8, 8, 3)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    plain = [(crop == 7).all() for crop in first]
    assert 16 < sum(plain) < 48  # the small one, enlarged
    whole = np.full((8, 8, 3), 3, np.uint8)
    assert (random_crops([whole], 8, 4, 0, 0) == 3).all()
    with pytest.raises(UserError, match="no pictures"):
        random_crops([], 8, 4, 0, 0)
