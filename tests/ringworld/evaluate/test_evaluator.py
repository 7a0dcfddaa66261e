"""An evaluation end to end: figures that agree with a direct computation, and the files that it leaves."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.errors import UserError
from ringworld.evaluate import evaluator
from ringworld.evaluate.loss_by_position import summarize
from ringworld.evaluate.recipe import EvaluateInputs, EvaluateJob, EvaluateRecipe, NeedleConfig, load_job
from ringworld.mesh import MeshSpec, make_mesh, parse_mesh
from ringworld.model.config import ModelConfig, RopeConfig
from ringworld.model.layout import Layout
from ringworld.model.llama import bind, init_params
from ringworld.model.rope import make_rope
from ringworld.train.checkpoint import save_params
from tests.ringworld.corpus import prose, write_corpus

MODEL = ModelConfig(264, 2, 32, 4, 2, 8, 48, tied_embeddings=True, rope=RopeConfig(1e5))


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    write_corpus(folder, [prose(seed, 40) for seed in range(4)], held_out=2)
    for name, seed in (("before", 1), ("after", 2)):
        save_params(str(folder / name), jax.tree.map(lambda leaf: leaf * 4, init_params(MODEL, jax.random.key(seed))))
    (folder / "out").mkdir()
    recipe = EvaluateRecipe(
        model=MODEL, sequence=512, rows=3, past=256, before_rope=RopeConfig(1e4),
        needle=NeedleConfig(lengths=(256, 512), depths=(0.0, 1.0)),
    )  # fmt: skip
    inputs = EvaluateInputs(
        tokens=str(folder / "tokens"), tokenizer=str(folder / "tokenizer"), after=str(folder / "after"),
        before=str(folder / "before"), output=str(folder / "out"),
    )  # fmt: skip
    return EvaluateJob(recipe, inputs)


@pytest.fixture(scope="module")
def figures(job):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "make_mesh", lambda spec: make_mesh(spec, jax.devices()[:4]))
        return evaluator.evaluate(job, parse_mesh("fsdp=2,ring=2"))


def test_losses_are_those_of_the_model_computed_directly(job, figures):
    rows = evaluator.held_out_rows(evaluator.TokenStore.open(job.inputs.tokens), 512, 3)
    assert len(rows.tokens) == 3
    mesh = make_mesh(MeshSpec(), jax.devices()[:1])
    for name, seed, theta in (("before", 1, 1e4), ("after", 2, 1e5)):
        params = jax.tree.map(lambda leaf: leaf * 4, init_params(MODEL, jax.random.key(seed)))
        model = bind(MODEL, params)
        hidden = model(
            jnp.asarray(rows.tokens), jnp.asarray(rows.positions), jnp.asarray(rows.segments),
            make_rope(RopeConfig(theta), 8), Layout(mesh, jnp.dtype("float32")),
        )  # fmt: skip
        logits = np.asarray(hidden @ model.output_weight(), np.float64)
        loss = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, rows.targets[..., None], -1)[..., 0]
        assert figures[f"loss_{name}"] == pytest.approx(loss.mean(), rel=1e-4)
        assert figures[f"loss_past_{name}"] == pytest.approx(loss[:, 256:].mean(), rel=1e-4)
        assert figures["loss_by_position"][name][-1] == pytest.approx(loss[:, 480:].mean(), rel=1e-4)


def test_it_leaves_figures_and_pictures(job, figures):
    output = Path(job.inputs.output)
    written = json.loads((output / "evaluation.json").read_text())
    assert written["loss_after"] == figures["loss_after"]
    assert {(cell["length"], cell["depth"]) for cell in written["needle_cells"]} == {
        (n, d) for n in (256, 512) for d in (0, 1)
    }
    assert len(written["needle_prompts"]) == 4
    for picture in ("loss_by_position.png", "needle.png"):
        assert (output / picture).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    progress = json.loads((output / "progress.json").read_text())
    assert progress["step"] == progress["of"]


def test_padding_does_not_count():
    loss = np.array([[1.0, 2.0, 50.0, 50.0], [3.0, 4.0, 5.0, 6.0]])
    found = summarize(loss, np.array([[1, 1, 0, 0], [1, 1, 1, 1]]), past=2)
    assert found.mean == pytest.approx(21 / 6)
    assert found.mean_past == pytest.approx(5.5)
    assert found.spans == pytest.approx((2.0, 3.0, 5.0, 6.0))


def test_a_job_reads_back_and_an_unknown_key_is_named(job, tmp_path):
    job.save(str(tmp_path / "job.yaml"))
    assert load_job(str(tmp_path / "job.yaml")) == job
    text = (tmp_path / "job.yaml").read_text().replace("rows:", "rowz:")
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(UserError, match=r"job.recipe.rowz.*did you mean rows"):
        load_job(str(tmp_path / "job.yaml"))
