"""A stage's `params` artifact, read a weight, or some layers of one, at a time, and compared with its checksums."""

from __future__ import annotations

import math
from typing import Any
from urllib.parse import urlsplit

import jax
import numpy as np
import tensorstore as ts

from ringworld.data.files import absolute, join, read_json
from ringworld.errors import UserError
from ringworld.model.config import ModelConfig
from ringworld.model.llama import abstract_params
from ringworld.train.checkpoint import METADATA, stored_names
from ringworld.train.checksums import checksum


class Artifact:
    """An artifact's weights. UserError where they are of another model than the config."""

    def __init__(self, path: str, config: ModelConfig) -> None:
        self._path = path
        self._shapes = {
            jax.tree_util.keystr(key, simple=True, separator="."): leaf.shape
            for key, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(config))
        }
        stored = stored_names(path)
        if stored != self._shapes:
            name = sorted(set(stored.items()) ^ set(self._shapes.items()))[0][0]
            raise UserError(
                f"params {path} are of another model: {name} is {stored.get(name)} there and {self._shapes.get(name)} "
                f"in the recipe"
            )
        told = read_json(join(path, "_METADATA"))
        self._driver = "zarr3" if told.get("use_zarr3") else "zarr"
        self._ocdbt = bool(told.get("use_ocdbt", True))
        own = read_json(join(path, METADATA)).get("custom_metadata") or {}
        self._saved: dict[str, int] = own.get("checksums") or {}
        self._sums: dict[str, int] = {}

    def read(self, name: str, start: int = 0, stop: int = 0) -> np.ndarray:
        """float32 of a weight, or of its layers start .. stop where stop is not 0. Every element is to be read once."""
        store = ts.open(self._spec(name), read=True, open=True).result()
        found = np.asarray((store[start:stop] if stop else store).read().result(), np.float32)
        place = start * math.prod(self._shapes[name][1:])
        self._sums[name] = (self._sums.get(name, 0) + checksum(found, place)) % 2**32
        return found

    def check(self) -> None:
        """UserError where what was read is not what the stage saved; to be asked when all has been read. Artifacts of
        earlier versions have no checksums, and pass."""
        different = sorted(name for name, value in self._saved.items() if self._sums.get(name) != value)
        if different:
            raise UserError(
                f"params {self._path} are damaged: {', '.join(different[:3])} of {len(different)} differ from what was "
                f"saved; make their stage again with force=STAGE"
            )

    def _spec(self, name: str) -> dict[str, Any]:
        base = _kvstore(absolute(self._path))
        if self._ocdbt:
            return {"driver": self._driver, "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}
        return {"driver": self._driver, "kvstore": {**base, "path": f"{base['path']}{name}/"}}


def _kvstore(url: str) -> dict[str, str]:
    parts = urlsplit(url)
    if "://" not in url or parts.scheme == "file":
        return {"driver": "file", "path": f"{parts.path if '://' in url else url}/"}
    if parts.scheme in ("gs", "gcs"):
        return {"driver": "gcs", "bucket": parts.netloc, "path": f"{parts.path.strip('/')}/"}
    raise UserError(f"{url}: weights lie in a local folder or on gs://, not on {parts.scheme}://")
