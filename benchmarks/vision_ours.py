"""The side of ringworld in benchmarks/vision.py: a worker process that encodes and decodes pictures, and films."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

# Run as a module of the repository or beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.vision_video import encode_film, read_film
from benchmarks.worker import serve, timed
from ringworld.vision.codec import Codec
from ringworld.vision.config import preset
from ringworld.vision.vqgan import init_params
from ringworld.vision.vqgan_import import read_vqgan


class Side:
    """One codec."""

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        self._codec = Codec(*read_vqgan(request["folder"]), batch=request["batch"])
        return {}

    def fresh(self, request: dict[str, Any]) -> dict[str, Any]:
        """Random weights of a preset: as fast as any."""
        config = preset(request["preset"])
        self._codec = Codec(config, init_params(config, 0), batch=request["batch"])
        return {}

    def encode(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds from uint8 pictures to codes; the codes go to a file where one is named."""
        pictures, codes = np.load(request["pictures"]), np.empty(0)

        def run() -> None:
            nonlocal codes
            codes = self._codec.encode(pictures)

        told = timed(run)
        if request.get("save"):
            np.save(request["save"], codes.reshape(len(codes), -1))
        return told

    def decode(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds from codes to uint8 pictures."""
        codes, made = np.load(request["codes"]), np.empty(0)
        side = int(codes.shape[1] ** 0.5)

        def run() -> None:
            nonlocal made
            made = self._codec.decode(codes.reshape(-1, side, side))

        told = timed(run)
        if request.get("save"):
            np.save(request["save"], made)
        return told

    def film(self, request: dict[str, Any]) -> dict[str, Any]:
        """A whole film to codes, decoded ahead of the encoder; and this process's peak so far."""
        self._codec.encode(np.zeros((1, 256, 256, 3), np.uint8))  # compiled before the clock starts
        told = encode_film(request["place"], self._codec.encode, request["rate"], self._codec.batch)
        return told | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}

    def read(self, request: dict[str, Any]) -> dict[str, Any]:
        """A film's frames, not encoded."""
        return read_film(request["place"])


if __name__ == "__main__":
    side = Side()
    serve({name: getattr(side, name) for name in ("load", "fresh", "encode", "decode", "film", "read")})
