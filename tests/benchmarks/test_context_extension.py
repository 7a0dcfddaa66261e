"""The experiment at its smallest: arms spend equal tokens, packing alone differs, a killed run goes on to the same."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil

import jax
import numpy as np
import pytest

from benchmarks.context_extension import conduct
from benchmarks.context_extension_arms import Settings, probes, stages
from benchmarks.context_extension_data import prepare
from benchmarks.context_extension_report import TITLES, tables
from benchmarks.context_extension_run import Experiment
from ringworld.data.loader import Loader
from ringworld.data.plan import PackingPlan
from ringworld.data.token_store import TokenStore
from ringworld.errors import UserError
from ringworld.mesh import MeshSpec
from ringworld.train import trainer
from tests.ringworld.corpus import prose

ONE = MeshSpec(fsdp=1)
SMALL = Settings(
    lengths=(128, 512), warm=(), layers=1, embed=16, heads=2, mlp=16, vocabulary=500, base_steps=(3,),
    base_tokens=(512,), base_rates=(3e-3,), stage_steps=(2,), stage_tokens=512, depths=(0.0, 1.0), rounds=1, windows=2,
    held_out=0.4,
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a finished experiment and its settings."""
    folder = tmp_path_factory.mktemp("experiment")
    (folder / "books").mkdir()
    for seed in range(6):
        (folder / "books" / f"{seed}.txt").write_text(prose(seed, 80), encoding="utf-8")
    settings = dataclasses.replace(SMALL, documents=(str(folder / "books"),))
    with pytest.MonkeyPatch.context() as patch:
        make, cache = trainer.make_mesh, ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
        before = [getattr(jax.config, name) for name in cache]
        patch.setattr(trainer, "make_mesh", lambda spec: make(spec, jax.devices()[:1]))
        # Arms are alike: most of their programs are compiled once.
        for name, value in zip(cache, (str(folder / "compiled"), 0.0), strict=True):
            jax.config.update(name, value)
        assert conduct(folder / "out", settings, ONE) == 0
        yield folder / "out", settings
        for name, value in zip(cache, before, strict=True):
            jax.config.update(name, value)


def lines(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def untimed(line):
    return {name: value for name, value in line.items() if name != "seconds"}


def test_every_arm_spends_the_same_tokens_and_no_stage_fewer_than_another():
    for lengths, steps in (((512, 1024, 2048, 4096, 8192), (4, 3, 2, 5)), ((512, 2048), (7,))):
        settings = Settings(lengths=lengths, stage_steps=steps)
        trained = stages(settings)
        spent = {arm: sum(stage.slots for stage in trained if stage.arm == arm) for arm in TITLES}
        assert spent["rising"] == spent["fixed"] == spent["naive"] == spent["direct"] > 0
        for arm in ("rising", "fixed", "naive"):
            assert tuple(stage.steps for stage in trained if stage.arm == arm) == steps
        thetas = [stage.rope.theta for stage in trained if stage.arm == "rising"]
        assert thetas == [1e4 * (length / lengths[0]) ** 2 for length in lengths[1:]]
        assert {stage.rope.theta for stage in trained if stage.arm in ("base", "fixed")} == {1e4}
        assert [stage.after for stage in trained[:4]] == [None, "base-64", "base-256", "base-512"]


def test_arms_are_left_out_by_name_and_the_others_stay_as_they_are():
    settings = Settings(arms=("direct", "yarn"))
    trained = stages(settings)
    assert [stage for stage in stages(Settings()) if stage.arm in ("base", "direct")] == list(trained)
    assert {probe.key.partition("-")[0] for probe in probes(settings, trained)} == {"base", "direct", "yarn"}
    assert "| YaRN |" in (found := tables(settings, {}))
    assert "| NTK |" not in found
    with pytest.raises(UserError, match="arms=rise: give some of rising, fixed"):
        Settings(arms=("rise", "yarn"))


def test_the_shortest_rows_are_one_passage_over_and_over(whole, tmp_path):
    _, settings = whole
    warm = dataclasses.replace(settings, warm=(32,), base_steps=(3, 3), base_tokens=(512, 512), base_rates=(3e-3, 3e-3))
    data = prepare(tmp_path, warm, stages(warm))
    plan = PackingPlan.load(data.plan(32, naive=False))
    assert plan.segment.max() == 1


def test_naive_rows_differ_from_masked_ones_in_what_tokens_see_alone(whole, tmp_path):
    settings = dataclasses.replace(whole[1], stage_steps=(20,))
    data = prepare(tmp_path, settings, stages(settings))
    store = TokenStore.open(data.rows(512))
    masked, naive = (
        Loader(store, PackingPlan.load(data.plan(512, naive)), seed=0, rows_per_batch=20).batch(0)
        for naive in (False, True)
    )
    for name in ("tokens", "targets", "loss_weight"):
        np.testing.assert_array_equal(getattr(masked, name), getattr(naive, name))
    real = masked.segments > 0
    assert masked.segments.max() > 1
    assert set(naive.segments[real]) == {1}
    np.testing.assert_array_equal(naive.positions[real], np.broadcast_to(np.arange(512), real.shape)[real])


def test_every_stage_and_every_probe_is_measured_and_in_the_tables(whole):
    folder, settings = whole
    trained = stages(settings)
    keys = {stage.key for stage in trained} | {f"probe {probe.key}" for probe in probes(settings, trained)}
    assert {line["key"] for line in lines(folder)} == keys
    assert len(lines(folder)) == len(keys)
    whole_results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    text = tables(settings, whole_results["results"])
    assert text == (folder / "tables.md").read_text(encoding="utf-8")
    assert " - " not in text
    assert all(f"| {title} |" in text for title in TITLES.values())
    assert (folder / "figure.png").stat().st_size > 10_000
    for line in lines(folder):
        if line["kind"] == "stage":
            assert line["tokens"] <= line["slots"]
            assert line["tokens"] > 0.8 * line["slots"]
        else:
            assert len(line["cells"]) == 2 * len(line["probe"]["lengths"])
            assert len(line["loss"]["spans"]) == 16


def test_a_killed_run_goes_on_to_the_same_numbers(whole, tmp_path):
    folder, settings = whole
    before = lines(folder)
    shutil.copytree(folder, tmp_path / "out")
    kept = [line for line in before if line["key"].startswith(("base", "probe base"))]
    text = "".join(json.dumps(line) + "\n" for line in kept) + '{"key": "rising-2'
    (tmp_path / "out" / "results.jsonl").write_text(text, encoding="utf-8")
    shutil.rmtree(tmp_path / "out" / "stages" / "rising-512")
    wanted = ["probe linear-512", "probe ntk-512", "probe yarn-512", "rising-512", "probe rising-512"]
    again = Experiment(tmp_path / "out", settings, ONE)
    assert list(itertools.islice(again.run(), len(wanted))) == wanted
    found = {line["key"]: untimed(line) for line in lines(tmp_path / "out")}
    assert found == {line["key"]: untimed(line) for line in before if line["key"] in found}
    assert len(found) == 7


def test_another_experiment_in_the_same_folder_is_refused(whole):
    folder, settings = whole
    with pytest.raises(UserError, match=r"stage_rate.*another --out"):
        Experiment(folder, dataclasses.replace(settings, stage_rate=0.5), ONE)
