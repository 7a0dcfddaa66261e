"""A text model that learns to see: new rows, and every old weight as it was."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from ringworld.errors import UserError
from ringworld.mesh import make_mesh, parse_mesh
from ringworld.model.config import ModelConfig
from ringworld.model.init import init_params
from ringworld.train.checkpoint import save_params
from ringworld.train.weights import load_weights

TEXT = ModelConfig(64, 2, 16, 4, 2, 4, 32)
SEES = replace(TEXT, vision_vocabulary=24)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(parse_mesh("fsdp=2,tensor=2"), jax.devices()[:4])


def leaves(params):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def test_the_vocabulary_grows_by_new_rows_and_old_weights_stay_bit_for_bit(tmp_path, mesh, monkeypatch):
    text = init_params(TEXT, jax.random.key(3))
    save_params(str(tmp_path / "params"), text)
    grown = load_weights(str(tmp_path / "params"), SEES, mesh, new_rows=5)
    before, after = leaves(text), leaves(grown)
    new = {name: leaf.shape for name, leaf in after.items() if name not in before}
    assert new == {"['vision']['embedding']": (24, 16), "['vision']['head']": (16, 24)}
    for name, leaf in before.items():
        assert after[name].tobytes() == leaf.tobytes(), name
    assert np.std(after["['vision']['embedding']"]) == pytest.approx(0.02, rel=0.2)
    save_params(str(tmp_path / "grown"), grown)
    monkeypatch.chdir(tmp_path)  # a person types a path from where they are
    again = leaves(load_weights("grown", SEES, mesh))
    assert all(again[name].tobytes() == leaf.tobytes() for name, leaf in after.items())


def test_who_does_not_train_gets_no_made_up_rows(tmp_path, mesh):
    save_params(str(tmp_path / "params"), init_params(TEXT, jax.random.key(3)))
    with pytest.raises(UserError, match="no rows for vision tokens: it is a text model"):
        load_weights(str(tmp_path / "params"), SEES, mesh)
    save_params(str(tmp_path / "sees"), init_params(SEES, jax.random.key(3)))
    with pytest.raises(UserError, match=r"vision\.embedding is \(24, 16\) there and None in the recipe"):
        load_weights(str(tmp_path / "sees"), TEXT, mesh)
