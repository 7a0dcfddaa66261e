"""A job of two processes: they save at the same steps by one clock, leave together at the notice of one machine, agree
on damage that one of them finds, and what they saved is restored by one process on another mesh."""

import dataclasses
import json
import os
import resource
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jax
import numpy as np

from ringworld.exits import DONE, PREEMPTED
from ringworld.mesh import MeshSpec, make_mesh
from ringworld.train.checkpoint import Checkpoints
from ringworld.train.progress import read_progress
from ringworld.train.recipe import OptimizerConfig, TrainInputs, TrainJob, TrainOptions, TrainRecipe
from ringworld.train.step import TrainStep
from ringworld.train.weights import load_weights
from tests.ringworld.corpus import prose, write_corpus, write_plan
from tests.ringworld.ranks import await_all, module, start_two
from tests.ringworld.train.test_trainer import MODEL

FAR = 20_000  # steps that no test trains to the end


class Preempted(BaseHTTPRequestHandler):
    """The metadata of a machine that is preempted once its job has saved twice."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        saves = sorted(self.server.saves.glob("[0-9]*")) if self.path.endswith("preempted") else []  # type: ignore
        self.wfile.write(b"NONE" if self.path.endswith("event") else b"TRUE" if len(saves) >= 2 else b"FALSE")

    def log_message(self, format, *arguments):
        pass


def started(job, folder, notice=None):
    """Both processes. notice: the address of the second machine's metadata server."""
    job.save(str(folder / "job.yaml"))
    words = ["--recipe", str(folder / "job.yaml"), "--state", str(folder / "state"), "--mesh", "fsdp=1,ring=2"]
    metadata = {rank: {"GCE_METADATA_HOST": notice if rank and notice else "127.0.0.1:9"} for rank in range(2)}
    return start_two(module("ringworld.train", *words), metadata)


def train(job, folder, notice=None):
    """Both processes' (exit code, stderr)."""
    return await_all(started(job, folder, notice))


def endless(folder):
    """A job that saves every half second and has more steps than any test trains."""
    store = write_corpus(folder, [prose(seed, 12 + 5 * seed) for seed in range(12)])
    inputs = TrainInputs(write_plan(folder, store, 64), str(folder / "tokens"), str(folder / "out"))
    model = dataclasses.replace(MODEL, num_layers=1)
    recipe = TrainRecipe(model, sequence=64, batch_tokens=256, steps=FAR, optimizer=OptimizerConfig(1e-2))
    compiled = str(folder / "compiled")
    options = TrainOptions(save_every=0, save_seconds=0.5, notices="gce", compilation_cache=compiled)
    (folder / "out").mkdir()
    return TrainJob(recipe, inputs, options)


def test_a_disk_that_refuses_one_process_ends_it_at_once(tmp_path):
    """The other one waits at Orbax's barrier for it, for minutes, and shows no error of its own."""
    first, second = started(endless(tmp_path), tmp_path)
    try:
        while not any((tmp_path / "state" / "checkpoints").glob("[0-9]*/default")):
            assert second.poll() is None, second.communicate()[1]
            time.sleep(0.1)
        resource.prlimit(second.pid, resource.RLIMIT_FSIZE, (4096, 4096))
        said = second.communicate(timeout=60)[1]
    finally:
        first.kill()
        second.kill()
        first.communicate()
    assert second.returncode == 1
    assert "RESOURCE_EXHAUSTED" in said or "File too large" in said, said


def test_two_processes_save_leave_and_recover_as_one(tmp_path):
    job = endless(tmp_path)
    recipe, state, checkpoints = job.recipe, tmp_path / "state", tmp_path / "state" / "checkpoints"

    server = ThreadingHTTPServer(("127.0.0.1", 0), Preempted)
    server.saves = checkpoints  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ended = train(job, tmp_path, notice=f"127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()
    assert [code for code, _ in ended] == [PREEMPTED, PREEMPTED], ended
    assert "notice from the machine: preempted is TRUE" in ended[1][1]
    before, newest = sorted(int(name) for name in os.listdir(checkpoints) if name.isdigit())
    records = read_progress(str(state / "progress.jsonl"))
    assert [record.step for record in records] == list(range(1, newest + 1))
    session = json.loads((state / "sessions" / "0001.json").read_text())
    assert (session["ended"], session["hosts"], session["step"]) == ("preempted", 2, newest)
    assert session["interval_seconds"] == 0.5
    assert session["saves"] >= 3

    pieces = checkpoints.glob(f"{newest}/default/ocdbt.process_1/d/*")
    piece = max(pieces, key=lambda file: file.stat().st_size)
    piece.unlink()
    longer = dataclasses.replace(job, recipe=dataclasses.replace(recipe, steps=newest + 5))
    ended = train(longer, tmp_path)
    assert [code for code, _ in ended] == [DONE, DONE], ended
    assert all(f"checkpoint {checkpoints}/{newest} is damaged" in said for _, said in ended)
    assert all(f"resuming at step {before}" in said for _, said in ended)
    again = read_progress(str(state / "progress.jsonl"))
    assert [record.step for record in again] == list(range(1, newest + 6))
    assert [record.loss for record in again[:newest]] == [record.loss for record in records]
    session = json.loads((state / "sessions" / "0002.json").read_text())
    assert (session["ended"], session["resumed"], session["damaged"]) == ("done", before, [newest])
    assert session["discarded_steps"] == newest - before

    other = make_mesh(MeshSpec(fsdp=2, tensor=2), jax.devices()[:4])
    shutil.copytree(state, tmp_path / "copy")
    with Checkpoints(str(tmp_path / "copy"), keep=2) as alone:
        found = alone.restore_newest(TrainStep(recipe, TrainOptions(), other).abstract_state())
    assert found is not None
    assert (found.step, found.damaged) == (newest + 5, ())
    weights = load_weights(str(tmp_path / "out" / "params"), recipe.model, other)
    jax.tree.map(np.testing.assert_array_equal, found.state["params"], weights)
