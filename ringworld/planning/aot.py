"""The real compiler's answer: the trainer's own step, compiled for chips that need not be here.

What is lowered is `TrainStep.compiled()` of `ringworld.train`, with the abstract state that a checkpoint is restored
into and an abstract batch, on a mesh of described devices. Each compilation is a process of its own, since the compiler
may crash or never end:

    python -m ringworld.planning.aot < job.yaml        # a CompileJob; prints a Compiled as one line of JSON

Answers are kept on disk under a fingerprint of everything that decides them: the sources that are compiled, the shapes,
the mesh, the topology, the rungs of the memory ladder, the versions of jax and libtpu. Learning rates and RoPE bases
are constants of the program; they move no byte, so stages that differ in them share an answer.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import yaml
from jax.experimental import topologies

from ringworld.command import guarded
from ringworld.errors import UserError
from ringworld.exits import USER_ERROR
from ringworld.mesh import make_mesh, parse_mesh
from ringworld.model.config import RopeConfig
from ringworld.planning.hardware import GIB, Topology
from ringworld.strict import from_mapping, to_mapping
from ringworld.train.recipe import TrainOptions, TrainRecipe
from ringworld.train.step import TrainStep

COMMAND = (sys.executable, "-m", "ringworld.planning.aot")
TIMEOUT_SECONDS = 1800.0
# libtpu otherwise asks a metadata server what machine it is on, and lets one process at a time load it.
ENVIRONMENT: Mapping[str, str] = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v4-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_PACKAGE = Path(__file__).resolve().parents[1]
_COMPILED_FROM = ("attention/*.py", "model/*.py", "train/*.py", "mesh.py", "planning/aot.py")
_SIZE = r"([0-9.]+)([KMGT]?)"


@dataclass(frozen=True)
class CompileJob:
    """A training step and the chips to compile it for. mesh: all axes given, as in `str(MeshSpec)`.

    topology: of TPU chips that need not be here; None: as many devices of this machine's processor.
    """

    recipe: TrainRecipe
    options: TrainOptions
    mesh: str
    topology: Topology | None

    def identity(self) -> dict[str, Any]:
        """What decides the compiled program's memory, short of the code and the compiler."""
        model = dataclasses.replace(self.recipe.model, rope=RopeConfig())
        return {
            "model": to_mapping(model),
            "sequence": self.recipe.sequence,
            "rows": self.recipe.rows,
            "dtype": self.recipe.dtype,
            "memory": to_mapping(self.options.memory),
            "attention": self.options.attention,
            "optimizer_on": self.options.optimizer_on,
            "microbatch_rows": self.options.microbatch_rows,
            "loss_chunk": self.options.loss_chunk,
            "compiler": dict(self.options.compiler),
            "mesh": self.mesh,
            "topology": to_mapping(self.topology) if self.topology else "processor",
        }


@dataclass(frozen=True)
class Compiled:
    """The compiler's answer for one chip, in bytes.

    outcome: fits | oom (it would need `peak` of the chip's `limit`) | refused (another error of the compiler) |
        crashed | timeout (its process did)
    peak: of the chip's memory, the most that is in use at any moment, arguments included
    arguments: what of the training state and the batch lies on the chip; temporaries: all else
    host: in host memory, offloaded arrays and moments
    seconds: that it took. message: for people, where it does not fit.
    """

    outcome: Literal["fits", "oom", "refused", "crashed", "timeout"]
    peak: float | None = None
    limit: float | None = None
    arguments: float | None = None
    temporaries: float | None = None
    host: float | None = None
    seconds: float = 0.0
    message: str = ""


def require_compiler() -> None:
    """UserError where libtpu is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "aot=true asks the TPU compiler, which is not installed: pip install 'ringworld[plan]' (from a clone: "
            "pip install '.[plan]'), or leave aot out for the estimate"
        )


def fingerprint(job: CompileJob) -> str:
    """sha256 of all that decides the answer to a job."""
    identity = {"job": job.identity(), "code": _code_hash(), "versions": _versions()}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def cache_folder() -> Path:
    """Where answers are kept: RINGWORLD_CACHE, or the user's cache folder."""
    own = os.environ.get("RINGWORLD_CACHE")
    base = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ringworld"
    return base / "plan"


def compile_all(
    jobs: Sequence[CompileJob],
    cache: Path,
    *,
    finished: Callable[[CompileJob, Compiled], None] = lambda job, answer: None,
    command: Sequence[str] = COMMAND,
    at_once: int | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> list[Compiled]:
    """The answers, in the order of the jobs; equal jobs are compiled once, known answers not at all.

    finished: called from any thread, once for every job. at_once: compilations at a time, one per core when None.
    Raises UserError for a job that cannot be (a mesh that does not fit the topology).
    """
    groups: dict[str, list[CompileJob]] = {}
    for job in jobs:
        groups.setdefault(fingerprint(job), []).append(job)
    running = _Children()

    def answer(key: str) -> Compiled:
        found = _read(cache / f"{key}.json")
        if found is None:
            found = running.compile(groups[key][0], command, timeout)
            # What a busy or dying machine did to a process says nothing about the next time.
            if found.outcome in ("fits", "oom", "refused"):
                _write(cache / f"{key}.json", found)
        for job in groups[key]:
            finished(job, found)
        return found

    with ThreadPoolExecutor(max_workers=at_once or os.cpu_count() or 1) as pool:
        futures = {key: pool.submit(answer, key) for key in groups}
        try:
            answers = {key: future.result() for key, future in futures.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            running.stop()
            raise
    return [answers[fingerprint(job)] for job in jobs]


class _Children:
    """The processes that compile, so that all of them can be ended."""

    def __init__(self) -> None:
        self._lock, self._stopped = threading.Lock(), False
        self._processes: set[subprocess.Popen[str]] = set()

    def compile(self, job: CompileJob, command: Sequence[str], timeout: float) -> Compiled:
        began = time.monotonic()
        paths = [str(_PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        with self._lock:
            if self._stopped:
                return Compiled("crashed", message="stopped")
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env=environment,
                start_new_session=True,
            )
            self._processes.add(process)
        try:
            out, err = process.communicate(yaml.safe_dump(to_mapping(job)), timeout=timeout)
        except subprocess.TimeoutExpired:
            _end(process)
            return Compiled("timeout", seconds=timeout, message=f"no answer after {timeout:.0f} s")
        finally:
            with self._lock:
                self._processes.discard(process)
        return _understood(process.returncode, out, err, time.monotonic() - began)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._processes:
                _end(process, wait=False)


def _end(process: subprocess.Popen[str], wait: bool = True) -> None:
    # The group: the compiler may have children of its own.
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    if wait:
        process.communicate()


def _understood(code: int, out: str, err: str, seconds: float) -> Compiled:
    """How a compiling process ended, as an answer."""
    lines = [line for line in err.splitlines() if line.strip()]
    if code == USER_ERROR:
        raise UserError(lines[-1].removeprefix("error: ") if lines else "the compile job was refused")
    try:
        if code == 0:
            return from_mapping(Compiled, json.loads(out.strip().splitlines()[-1]), at="answer")
    except (ValueError, IndexError):
        pass  # it says no more than a crash would
    telling = [line for line in lines if "Check failed" in line or line.startswith("F")] or lines[-1:]
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return Compiled("crashed", seconds=seconds, message=f"{how}: {telling[0] if telling else 'no output'}"[:400])


def compile_here(job: CompileJob) -> Compiled:
    """Compile in this process, which must have been started for it: libtpu is loaded and stays."""
    mesh = parse_mesh(job.mesh)
    jax.config.update("jax_platforms", "cpu")
    if job.topology is None:
        jax.config.update("jax_num_cpu_devices", math.prod(mesh.sizes().values()))
    else:
        os.environ.update(ENVIRONMENT)
        require_compiler()
    began = time.monotonic()
    step = TrainStep(job.recipe, job.options, make_mesh(mesh, devices(job.topology)))
    state, batch = step.abstract_state(), step.abstract_batch()
    lowered = step.compiled().lower(state, batch)
    try:
        memory: Any = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        needs = needed_memory(str(error))
        seconds = time.monotonic() - began
        if needs is None:
            return Compiled("refused", seconds=seconds, message=str(error).strip().splitlines()[0][:400])
        arguments = float(sum(_shard_bytes(leaf) for leaf in jax.tree.leaves((state, batch)) if _on_device(leaf)))
        return Compiled("oom", needs.total, needs.limit, arguments, needs.total - arguments, None, seconds, needs.said)
    arguments, temporaries = float(memory.argument_size_in_bytes), float(memory.temp_size_in_bytes)
    host = float(memory.host_temp_size_in_bytes + memory.host_argument_size_in_bytes)
    # With arrays in host memory the TPU compiler's peak is of both memories; the CPU compiler's is of arguments alone.
    exact = job.topology is not None and not host
    peak = float(memory.peak_memory_in_bytes) if exact else arguments + temporaries
    return Compiled("fits", peak, None, arguments, temporaries, host, time.monotonic() - began)


def devices(topology: Topology | None) -> Sequence[Any]:
    """The described devices of a topology, in JAX's order; for None, those of this machine's processor.

    UserError for a topology that the compiler does not know.
    """
    if topology is None:
        return jax.devices()
    words: dict[str, Any] = {"chips_per_host_bounds": topology.host_shape}
    if topology.chip_config:
        words["chip_config_name"] = topology.chip_config
    if topology.slices > 1:
        words["num_slices"] = topology.slices
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **words).devices
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        raise UserError(f"topology {topology.name}: the TPU compiler does not know it: {error}") from None


@dataclass(frozen=True)
class Needs:
    """What a refusal for want of memory says, in bytes; both figures hold arguments and temporaries."""

    total: float
    limit: float
    said: str


def needed_memory(message: str) -> Needs | None:
    """The figures in a compiler's refusal; None for a message that is not about memory.

    It speaks of temporaries, yet a program of 28 GiB of arguments and 8 of temporaries is told that it needs 36.
    """
    said = next((line for line in message.splitlines() if "Ran out of memory" in line), "")
    for pattern in (rf"temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)", rf"Used {_SIZE} of {_SIZE} hbm"):
        if match := re.search(pattern, said):
            return Needs(_bytes(*match.groups()[:2]), _bytes(*match.groups()[2:]), said.strip()[:400])
    return None


def _bytes(number: str, unit: str) -> float:
    return float(number) * {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}[unit]


def _on_device(leaf: jax.ShapeDtypeStruct) -> bool:
    return leaf.sharding is None or leaf.sharding.memory_kind != "pinned_host"


def _shard_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    assert leaf.sharding is not None
    return int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64)) * leaf.dtype.itemsize


@functools.cache  # of the code that is running, whatever happens to its files meanwhile
def _code_hash() -> str:
    digest = hashlib.sha256()
    for pattern in _COMPILED_FROM:
        for file in sorted(_PACKAGE.glob(pattern)):
            digest.update(f"{file.relative_to(_PACKAGE).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    found = {}
    for name in ("jax", "jaxlib", "libtpu", "flax", "optax"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


def _read(path: Path) -> Compiled | None:
    try:
        return from_mapping(Compiled, json.loads(path.read_text(encoding="utf-8")), at=str(path))
    except (OSError, ValueError, UserError):
        return None  # absent, cut short, or of another version: ask again


def _write(path: Path, answer: Compiled) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(to_mapping(answer), file)
    os.replace(name, path)


def main() -> int:
    """A job on stdin, its answer on stdout."""
    job = from_mapping(CompileJob, yaml.safe_load(sys.stdin), at="job")
    print(json.dumps(to_mapping(compile_here(job))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
