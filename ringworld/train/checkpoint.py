"""Durable states through Orbax: saved asynchronously and sharded, restored onto any mesh.

A checkpoint exists when Orbax has renamed its folder into place; a process killed while writing leaves none. Two kinds:
the trainer's own checkpoints (weights, optimizer, step), of which the newest are kept, and `params`, the immutable
weights that a finished stage hands to the next.
"""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from ringworld.data.files import absolute
from ringworld.errors import UserError
from ringworld.model.llama import Params

# Orbax reports every save and restore at INFO and warns of options that we leave at their defaults.
logging.getLogger("absl").setLevel(logging.ERROR)


class Checkpoints:
    """The checkpoints of one state folder, `DIR/checkpoints/STEP`. A context manager: leaving waits for saves."""

    def __init__(self, state_dir: str, keep: int) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True, create=True)
        self._manager = ocp.CheckpointManager(epath.Path(state_dir) / "checkpoints", options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def latest_step(self) -> int | None:
        """The newest durable step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Begin to write the state; returns once it has been copied out of the arrays that the next step reuses."""
        self._manager.save(step, args=ocp.args.StandardSave(state), force=True)

    def restore(self, step: int, abstract_state: Any) -> Any:
        """The state at a step, sharded as `abstract_state` says."""
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract_state))

    def wait(self) -> None:
        """Return when every save begun is durable; raises what a save raised (a full disk, for one)."""
        self._manager.wait_until_finished()


def save_params(path: str, params: Params) -> None:
    """Write weights as an artifact of their own, and wait until they are durable. Replaces a partial one."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(epath.Path(path), params, force=True)


def stored_names(path: str) -> dict[str, tuple[int, ...]]:
    """The shape of every weight of an artifact by its name, such as `layers.mlp.gate`. UserError where none is."""
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            found = checkpointer.metadata(_place(path)).item_metadata
        except FileNotFoundError:
            raise UserError(f"params {path}: no checkpoint there") from None
    return {_name(key): leaf.shape for key, leaf in _leaves(found)}


def load_params(path: str, abstract_params: Params) -> Params:
    """Weights of an artifact, sharded as `abstract_params` says. UserError where the artifact is of another model."""
    stored = stored_names(path)
    wanted = {_name(key): leaf.shape for key, leaf in _leaves(abstract_params)}
    if stored != wanted:
        name = sorted(set(stored.items()) ^ set(wanted.items()))[0][0]
        raise UserError(
            f"params {path} are of another model: {name} is {stored.get(name)} there and {wanted.get(name)} in the "
            f"recipe; give the recipe the model sizes of the stage it starts from"
        )
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(_place(path), abstract_params)


def _place(path: str) -> epath.Path:
    """Absolute: of a relative path Orbax reads no metadata, and says nothing."""
    return epath.Path(absolute(path))


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))[0]


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
