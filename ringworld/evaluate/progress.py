"""progress.json: how many of how many batches and questions an evaluation has done."""

from __future__ import annotations

import json
import os

import jax

from ringworld.train.vigil import Vigil


class Progress:
    """Counts; the first process writes. Every step is also a sign of life."""

    def __init__(self, output: str, total: int, vigil: Vigil) -> None:
        self._path, self._total, self._done, self._vigil = os.path.join(output, "progress.json"), total, 0, vigil

    def advance(self) -> None:
        self._done += 1
        self._vigil.beat()
        if jax.process_index() == 0:
            with open(self._path + ".new", "w", encoding="utf-8") as file:
                json.dump({"step": self._done, "of": self._total}, file)
            os.replace(self._path + ".new", self._path)
