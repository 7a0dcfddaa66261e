"""Durable states through Orbax: saved asynchronously and sharded, verified when restored, onto any mesh.

A checkpoint exists when Orbax has renamed its folder into place; a process killed while writing leaves none. It holds
the checksum of every array as it was on the devices, and counts only where it is restored into arrays with the same
checksums. TensorStore finds what is missing, cut short, or changed in its own index; a changed bit in the data of an
array is found by the checksums alone. Every process restores and sums its own shards, then all agree. A damaged
checkpoint is passed over for the one before it and set aside, in the folder `damaged`, never deleted.

Two kinds: the trainer's own checkpoints (weights, optimizer, step), of which the newest are kept, and `params`, the
immutable weights that a finished stage hands to the next.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from fsspec.core import url_to_fs
from jax.experimental import multihost_utils

from ringworld.data.files import absolute, join
from ringworld.errors import UserError
from ringworld.model.llama import Params
from ringworld.train.checksums import checksums

# Orbax reports every save and restore at INFO and warns of options that we leave at their defaults.
logging.getLogger("absl").setLevel(logging.ERROR)

ITEM = "default"  # Orbax's folder of a checkpoint's arrays
METADATA = "_CHECKPOINT_METADATA"
_LOOK_SECONDS = 0.01
# Of TensorStore's statuses, those that no second try would change.
DAMAGED = {"DATA_LOSS", "NOT_FOUND", "OUT_OF_RANGE", "INVALID_ARGUMENT", "FAILED_PRECONDITION"}


@dataclass(frozen=True)
class Restored:
    """The state of the newest sound checkpoint, the step after which it was saved, and the damaged steps beyond it."""

    step: int
    state: Any
    damaged: tuple[int, ...]


class _FailedSaves(logging.Handler):
    """The first error of a save that is written in the background. Orbax logs it where it happens; its callers get it
    once every process has come to a barrier, to which the one that failed does not come."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.error: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and threading.current_thread() is not threading.main_thread():
            self.error = self.error or record.exc_info[1]


class Checkpoints:
    """The checkpoints of one state folder, `DIR/checkpoints/STEP`. A context manager: leaving waits for saves.

    The newest `keep` stay, and every one whose step is a multiple of `keep_every`, where that is not 0. Every process
    of a job calls every method, in the same order.
    """

    def __init__(self, state_dir: str, keep: int, keep_every: int = 0) -> None:
        self._root, self._damaged = (join(absolute(state_dir), name) for name in ("checkpoints", "damaged"))
        self._began = 0.0
        self._durable: float | None = None
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            keep_period=keep_every or None,
            enable_async_checkpointing=True,
            create=True,
            lightweight_initialize=True,  # else it reads what may be damaged, and fails
            cleanup_tmp_directories=True,  # each death while saving leaves one, as large as a checkpoint
            async_options=ocp.AsyncOptions(post_finalization_callback=self._finished),
        )
        self._manager = ocp.CheckpointManager(epath.Path(self._root), options=options)
        self._failed = _FailedSaves()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._failed.error is None:  # else the other processes would be waited for, and they wait for this one
                self.wait()
                self._manager.close()
        finally:
            logging.getLogger("absl").removeHandler(self._failed)

    def latest_step(self) -> int | None:
        """The newest step that was saved or restored, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Begin to write the state; returns once it has been copied out of the arrays that the next step reuses."""
        self._began, self._durable = time.perf_counter(), None
        metadata = {"checksums": checksums(state)}
        self.wait()
        # Not before the first save: what Orbax says of a damaged checkpoint is no failure of one.
        logging.getLogger("absl").addHandler(self._failed)
        self._manager.save(step, args=ocp.args.StandardSave(state), custom_metadata=metadata, force=True)

    def saved_in(self) -> float | None:
        """Seconds from the begin of the last save until it was durable; None while it is not. Of the first process."""
        return self._durable

    def check(self) -> None:
        """Raises what a save under way has failed with here, at once: a full disk, for one."""
        if self._failed.error is not None:
            raise self._failed.error

    def wait(self) -> None:
        """Return when every save begun is durable; raises what `check` does."""
        while self._manager.is_saving_in_progress():
            self.check()
            time.sleep(_LOOK_SECONDS)
        self._manager.wait_until_finished()

    def restore_newest(self, abstract_state: Any) -> Restored | None:
        """The newest state that is sound, sharded as `abstract_state` says; None where there are no checkpoints.

        UserError where there are some, and all are damaged; then they stay where they lie.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            state, wrong = self._restored(step, abstract_state)
            if not wrong:
                self._set_aside(damaged)
                return Restored(step, state, tuple(damaged))
            print(f"warning: checkpoint {self._root}/{step} is damaged: {wrong}", file=sys.stderr, flush=True)
            damaged[step] = wrong
        if damaged:
            found = "; ".join(f"{step}: {wrong}" for step, wrong in damaged.items())
            raise UserError(
                f"every checkpoint in {self._root} is damaged ({found}); put one back from a copy, or move the folder "
                f"away to train this stage again from its start"
            )
        return None

    def _restored(self, step: int, abstract_state: Any) -> tuple[Any, str]:
        """The state of a checkpoint and an empty text; or None and what is wrong with it."""
        state, wrong, saved = None, "", {}
        folder = epath.Path(self._root) / str(step)
        try:
            saved = _saved_checksums(folder / METADATA)
            if not saved:
                raise ValueError(f"{folder / METADATA} holds no checksums")
            # Not by the manager: it waits for processes that may have found damage, and will not come.
            with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
                state = handler.restore(folder / ITEM, args=ocp.args.StandardRestore(abstract_state))
        except Exception as error:
            wrong = _damage(error)
            if not wrong:
                raise
        if not _all_processes(not wrong):
            return None, wrong or "another process could not restore its part"
        different = _different(saved, state)
        return (None, f"not as it was saved: {different}") if different else (state, "")

    def _set_aside(self, damaged: Mapping[int, str]) -> None:
        """Move damaged checkpoints to a folder beside the others: their steps will be saved again."""
        if not damaged:
            return
        if jax.process_index() == 0:
            filesystem, root = url_to_fs(self._root)
            folder = url_to_fs(self._damaged)[1]
            filesystem.makedirs(folder, exist_ok=True)
            for step in damaged:
                aside, count = join(folder, str(step)), 1
                while filesystem.exists(aside):
                    count += 1
                    aside = join(folder, f"{step}-{count}")
                filesystem.mv(join(root, str(step)), aside, recursive=True)
        _all_processes(True)
        self._manager.reload()

    def _finished(self) -> None:
        self._durable = time.perf_counter() - self._began


def _saved_checksums(place: epath.Path) -> dict[str, int]:
    """Empty where the file holds none; FileNotFoundError, and ValueError where it is no JSON."""
    metadata = json.loads(place.read_text())
    own = metadata.get("custom_metadata") if isinstance(metadata, dict) else None
    sums = own.get("checksums") if isinstance(own, dict) else None
    return sums if isinstance(sums, dict) else {}


def _different(saved: Mapping[str, int], tree: Any) -> str:
    """Names of the arrays whose checksums are not those that were saved, in words; empty where there are none."""
    found = checksums(tree)
    names = sorted(name for name in saved.keys() | found.keys() if saved.get(name) != found.get(name))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _damage(error: BaseException) -> str:
    """What an error of restoring says about damage, in one line; empty where it says nothing, as of storage that does
    not answer or refuses."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    for link in reversed(chain):  # the first of them knows best
        text = " ".join(str(link).split())[:300]
        if isinstance(link, FileNotFoundError):
            return f"missing: {link.filename or text}"
        # TensorStore raises ValueError for everything; its text begins with the status.
        status = re.match(r"([A-Z]+(_[A-Z]+)*): ", text)
        if status:
            return text if status[1] in DAMAGED else ""
    if isinstance(error, (ValueError, KeyError)):  # JSON that is none, or says something else
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return ""


def _all_processes(here: bool) -> bool:
    """Whether it is so on every process; all of them wait for each other."""
    if jax.process_count() == 1:
        return here
    return bool(np.all(multihost_utils.process_allgather(np.asarray(here))))


def save_params(path: str, params: Params) -> None:
    """Write weights as an artifact of their own, and wait until they are durable. Replaces a partial one."""
    with ocp.StandardCheckpointer() as checkpointer:
        metadata = {"checksums": checksums(params)}
        checkpointer.save(epath.Path(path), params, force=True, custom_metadata=metadata)


def stored_names(path: str) -> dict[str, tuple[int, ...]]:
    """The shape of every weight of an artifact by its name, such as `layers.mlp.gate`. UserError where none is."""
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            found = checkpointer.metadata(_place(path)).item_metadata
        except FileNotFoundError:
            raise UserError(f"params {path}: no checkpoint there") from None
    return {_name(key): leaf.shape for key, leaf in _leaves(found)}


def load_params(path: str, abstract_params: Params) -> Params:
    """Weights of an artifact, sharded as `abstract_params` says. UserError where they are of another model, or are not
    those that were saved."""
    stored = stored_names(path)
    wanted = {_name(key): leaf.shape for key, leaf in _leaves(abstract_params)}
    if stored != wanted:
        name = sorted(set(stored.items()) ^ set(wanted.items()))[0][0]
        raise UserError(
            f"params {path} are of another model: {name} is {stored.get(name)} there and {wanted.get(name)} in the "
            f"recipe; give the recipe the model sizes of the stage it starts from"
        )
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(_place(path), abstract_params)
    saved = _saved_checksums(_place(path) / METADATA)
    if saved and (different := _different(saved, params)):  # artifacts of earlier versions have none
        raise UserError(f"params {path} are damaged: {different}; make their stage again with force=STAGE")
    return params


def _place(path: str) -> epath.Path:
    """Absolute: of a relative path Orbax reads no metadata, and says nothing."""
    return epath.Path(absolute(path))


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))[0]


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
