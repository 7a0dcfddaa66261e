"""Positions stretched without training: the same windows under every rule, and a table of what each costs."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

import ringworld.mesh
from ringworld.errors import UserError
from ringworld.evaluate.held_out import windows_of
from ringworld.evaluate.positions import lengths_from, main, stretched
from ringworld.evaluate.scorer import Scorer
from ringworld.exits import USER_ERROR
from ringworld.mesh import MeshSpec, make_mesh
from ringworld.model.config import RopeConfig
from ringworld.model.init import init_params
from tests.ringworld.corpus import TOKENIZER, prose
from tests.ringworld.evaluate.stage import MODEL, write_run


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> str:
    return write_run(tmp_path_factory.mktemp("runs") / "tiny", 128)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(ringworld.mesh, "make_mesh", lambda spec: make_mesh(spec, jax.devices()[:1]))


def test_the_same_held_out_windows_are_read_under_every_rule(stage, tmp_path, capsys):
    words = ["--checkpoint", stage, "--lengths", "1x,2x,512,64k", "--rows", "2", "--out", str(tmp_path)]
    assert main(words) == 0
    said = capsys.readouterr()
    told = json.loads((tmp_path / "positions.json").read_text())
    assert sorted(told["lengths"]) == ["128", "256", "512"]
    assert "the longest held_out document has" in told["refused"]["65536"]
    [head, _, *rows] = said.out.strip().splitlines()
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    assert columns == ["positions", "128", "256", "past 128", "512", "past 128"]
    assert [row.split("|")[1].strip() for row in rows] == ["unchanged", "linear", "ntk", "yarn"]
    assert len({row.split("|")[2] for row in rows}) == 1  # at the context nothing is stretched
    assert (tmp_path / "positions.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    # By hand: the documents' windows, and for ntk a larger base in place of the scaling.
    params = jax.tree.map(lambda leaf: leaf * 4, init_params(MODEL, jax.random.key(0)))
    scorer = Scorer(MODEL, make_mesh(MeshSpec(), jax.devices()[:1]), "float32", 1024)
    held_out = windows_of([TOKENIZER.encode(prose(1, 40))], 512, 2)
    for rule, rope in {"unchanged": MODEL.rope, "ntk": RopeConfig(1e4 * 4 ** (8 / 6))}.items():
        loss = scorer.score(params, rope, held_out).loss
        found = told["lengths"]["512"]["losses"][rule]
        assert found["mean"] == pytest.approx(loss.mean(), rel=1e-5)
        assert found["mean_past"] == pytest.approx(loss[:, 128:].mean(), rel=1e-5)
    means = [loss["mean"] for loss in told["lengths"]["512"]["losses"].values()]
    assert len(set(means)) == 4


def test_given_texts_are_read_in_place_of_the_runs(stage, tmp_path, capsys):
    (tmp_path / "new.txt").write_text(prose(7, 40))
    words = ["--checkpoint", stage, "--lengths", "2x", "--rows", "1", "--documents"]
    assert main([*words, str(tmp_path / "new.txt")]) == 0
    assert "| yarn" in capsys.readouterr().out
    short = tmp_path / "short.txt"
    short.write_text("A few words, and no more than that. " * 3)
    assert main([*words, str(short)]) == USER_ERROR
    assert "give longer documents" in capsys.readouterr().err


def test_factors_are_lengths_over_the_context():
    plain = RopeConfig(5e5)
    found = stretched(plain, 4096, 16384)
    assert found["unchanged"] == plain
    assert (found["linear"].factor, found["yarn"].original_length, found["ntk"].theta) == (4.0, 4096, 5e5)
    assert set(stretched(plain, 4096, 2048).values()) == {plain}
    with pytest.raises(UserError, match=r"stretched already .scaling linear, factor 2"):
        stretched(RopeConfig(1e4, "linear", 2.0), 4096, 8192)


def test_lengths_are_times_the_context_or_tokens():
    assert lengths_from("1x, 2.5x,16k,512", 4096) == [512, 4096, 10240, 16384]
    for wrong in ("x", "2x,4y", "0x"):
        with pytest.raises(UserError, match="--lengths"):
            lengths_from(wrong, 4096)


def test_windows_take_the_beginning_of_every_text_before_any_next_one():
    texts = [np.arange(50), np.arange(100, 125), np.arange(200, 208)]
    found = windows_of(texts, 10, 4)
    assert found.tokens[:, 0].tolist() == [0, 100, 10, 110]
    assert (found.targets == found.tokens + 1).all()
    assert (found.positions == np.arange(10)).all()
    with pytest.raises(UserError, match="the longest text has 50 tokens and 51 are needed"):
        windows_of(texts, 50, 1)
