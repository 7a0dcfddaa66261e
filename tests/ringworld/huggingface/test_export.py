"""A run's stage, as its manifests and its artifact lie on disk, becomes a folder that is whole and says its origin."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts

from flows import export as flow
from ringworld.data.tokenizers import ByteTokenizer
from ringworld.errors import UserError
from ringworld.generate.checkpoint import open_checkpoint
from ringworld.huggingface.__main__ import main
from ringworld.huggingface.artifact import Artifact
from ringworld.huggingface.export import export
from ringworld.model.config import RopeConfig
from ringworld.train.checkpoint import save_params
from ringworld.train.weights import load_weights
from tests.infra.gcs import Cloud, run_beside
from tests.ringworld.huggingface.folders import LLAMA, mesh_of, random_params

CONFIG = replace(LLAMA, vocabulary=264, vision_vocabulary=24, head_norms=True, rope=RopeConfig(160_000.0))


def manifest(run: Path, stage: str, kind: str, inputs=(), recipe=None, **values) -> Path:
    refs = {port: {"stage": name, "fingerprint": f"of {name}"} for port, name in dict(inputs).items()}
    told = {
        "schema": 1, "stage": stage, "kind": kind, "inputs": refs, "attempt": 1, "recipe": recipe or {},
        "values": values, "fingerprint": f"of {stage}",
        "provenance": {"commit": "c0ffee", "finished": "2026-01-02T03:04:05", "versions": {"jax": "0.0.1"}},
    }  # fmt: skip
    (run / stage / "attempt-1").mkdir(parents=True)
    (run / stage / "manifest.json").write_text(json.dumps(told))
    return run / stage / "attempt-1"


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


@pytest.fixture(scope="module")
def run(tmp_path_factory, params) -> Path:
    run = tmp_path_factory.mktemp("runs") / "small"
    ByteTokenizer().save(
        str(manifest(run, "tokenizer", "tokenizer", family="bytes", vocabulary_size=258) / "tokenizer")
    )
    manifest(run, "codes", "codes", codebook=20, vqgan="ab" * 32)
    manifest(run, "conversations", "conversations", {"tokenizer": "tokenizer", "codes": "codes"}, conversations=77)
    manifest(run, "pack-text-chat-512", "pack-whole", {"tokens": "conversations"})
    recipe = {
        "model": asdict(replace(CONFIG, rope=RopeConfig(10_000.0))), "sequence": 256, "steps": 3, "dtype": "float32",
        "init": "scratch",
    }  # fmt: skip
    manifest(run, "text-256", "train", {"tokens": "conversations"}, recipe, tokens=768, final_loss=5.25)
    recipe = recipe | {"model": asdict(CONFIG), "sequence": 512, "init": "params"}
    inputs = {"plan": "pack-text-chat-512", "tokens": "conversations", "params": "text-256"}
    place = manifest(run, "text-chat-512", "train", inputs, recipe, tokens=1536, final_loss=4.125)
    save_params(str(place / "params"), jax.tree.map(jnp.asarray, params))
    figures = {"sequence": 512, "loss_before": 5.0, "loss_after": 4.5, "needle_exact": 0.5, "needle_digits": 0.75}
    manifest(run, "evaluate-text-chat-512", "evaluate", {"after": "text-chat-512"}, None, **figures)
    manifest(run, "evaluate-text-256", "evaluate", {"after": "something else"}, None, **figures)
    return run


def test_a_stage_comes_back_bit_for_bit_with_its_tokenizer_and_its_template(run, params, tmp_path):
    out = tmp_path / "out"
    words = [f"root={run.parent}", "run=small", "stage=text-chat-512", f"to={out}", "shard_gb=0.00002"]
    assert flow.main(words) == 0
    assert {"config.json", "generation_config.json", "README.md", "vision_tokens.safetensors"} <= {
        file.name for file in out.iterdir()
    }
    found, stage = open_checkpoint(str(out)), open_checkpoint(str(run / "text-chat-512"))
    assert found.config == stage.config == CONFIG
    assert (found.context, found.dtype, found.begin) == (512, "float32", None)
    assert stage.stop_ids <= found.stop_ids
    assert "USER: " in (found.template or "")
    np.testing.assert_array_equal(found.tokenizer.encode("naïve\n"), stage.tokenizer.encode("naïve\n"))
    loaded = jax.tree.map(np.asarray, load_weights(str(out), CONFIG, mesh_of("fsdp=2,tensor=2")))
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert main(["inspect", str(out)]) == 0


def through_a_bucket(run: str, out: str):
    """Run in a process of its own: clients of Google's storage keep the first address that they are given."""
    fsspec.filesystem("gs").put(run, "bucket/runs/small", recursive=True)
    words = ["root=gs://bucket/runs", "run=small", "stage=text-chat-512", "to=gs://bucket/models/chat"]
    assert flow.main([*words, "shard_gb=0.00002"]) == 0
    found = open_checkpoint("gs://bucket/models/chat")
    assert found.config == CONFIG
    np.testing.assert_array_equal(found.tokenizer.encode("naïve\n"), ByteTokenizer().encode("naïve\n"))
    loaded = load_weights("gs://bucket/models/chat", CONFIG, mesh_of("fsdp=1"))
    np.savez(out, *map(np.asarray, jax.tree.leaves(loaded)))


def test_a_run_in_a_bucket_is_exported_to_a_bucket_and_comes_back_from_there(run, params, tmp_path):
    ran = run_beside(Cloud(tmp_path), __name__, "through_a_bucket", str(run), str(tmp_path / "back.npz"))
    assert "gs://bucket/models/chat: qwen3" in ran.stdout
    with np.load(tmp_path / "back.npz") as back:
        for name, leaf in zip(back, jax.tree.leaves(params), strict=True):
            np.testing.assert_array_equal(back[name], leaf)


def test_the_card_tells_the_stages_lengths_figures_and_origin(run, tmp_path):
    export(str(run / "text-chat-512"), str(tmp_path / "out"), dtype="bfloat16")
    card = (tmp_path / "out" / "README.md").read_text()
    for told in (
        "| text-256 | 256 | RoPE, theta 10,000 | 3 | 768 |  | 5.250 |",
        "| text-chat-512 | 512 | RoPE, theta 160,000 | 3 | 1,536 | pack-text-chat-512 | 4.125 |",
        "| text-chat-512 | 512 | 5.000 | 4.500 | 50% | 75% |",
        "conversations: 77 conversations", "`c0ffee`", "apply_chat_template", f"`{'ab' * 32}` (sha256)", "bfloat16",
    ):  # fmt: skip
        assert told in card
    assert "| text-256 | 512 |" not in card  # an evaluation of weights that are no more


def test_weights_are_read_some_layers_at_a_time(run, params):
    artifact = Artifact(str(run / "text-chat-512" / "attempt-1" / "params"), CONFIG)
    np.testing.assert_array_equal(artifact.read("layers.mlp.gate", 1, 2), params["layers"]["mlp"]["gate"][1:2])
    np.testing.assert_array_equal(artifact.read("vision.head"), params["vision"]["head"])


def test_a_weight_that_changed_since_it_was_saved_is_found(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    params = copy / "text-chat-512" / "attempt-1" / "params"
    kvstore = {"driver": "ocdbt", "base": f"file://{params}/", "path": "layers.mlp.up/"}
    store = ts.open({"driver": "zarr", "kvstore": kvstore}, open=True).result()
    store[1, 2, 3].write(np.float32(0.125)).result()
    with pytest.raises(UserError, match=r"are damaged: layers\.mlp\.up"):
        export(str(copy / "text-chat-512"), str(tmp_path / "out"))
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stage=text-chat-512"], "to: missing"),
        (["to=x"], "stage: missing"),
        (["stage=a", "to=x", "shape=5"], "shape: unknown key"),
        (["stage=a", "to=x", "shard_gb=0"], "a number above 0"),
        (["stage=text-chat-512", "to=x", "dtype=float16"], "dtype='float16': allowed: float32, bfloat16"),
        (["stage=tokenizer", "to=x"], "only training stages make weights"),
        (["stage=absent", "to=x"], "absent"),
    ],
)
def test_what_cannot_be_exported_is_refused(run, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert flow.main([f"root={run.parent}", "run=small", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_alone(run, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        export(str(run / "text-chat-512"), str(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
