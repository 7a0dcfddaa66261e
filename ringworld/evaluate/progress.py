"""progress.json: how many of how many batches and questions an evaluation has done."""

from __future__ import annotations

import json
import math
import sys
import time

import jax

from ringworld.data.files import is_local, join, write_whole
from ringworld.train.vigil import Vigil

REMOTE_SECONDS = 3.0  # between two writings on storage that answers slowly


class Progress:
    """Counts; the first process writes. Every step is also a sign of life."""

    def __init__(self, output: str, total: int, vigil: Vigil) -> None:
        self._path, self._total, self._done, self._vigil = join(output, "progress.json"), total, 0, vigil
        self._pause, self._written = 0.0 if is_local(output) else REMOTE_SECONDS, -math.inf

    def advance(self) -> None:
        self._done += 1
        self._vigil.beat()
        now = time.monotonic()
        if jax.process_index() == 0 and (now - self._written >= self._pause or self._done == self._total):
            self._written = now
            try:
                write_whole(self._path, json.dumps({"step": self._done, "of": self._total}).encode())
            except Exception as error:  # whatever a client of storage raises: people may see less for it, no more
                print(f"warning: {self._path} was not written: {error}", file=sys.stderr, flush=True)
