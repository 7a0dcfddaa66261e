"""The side of diffusers in benchmarks/vision.py: a worker process with a `VQModel` on torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

# Run as a module of the repository or beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from diffusers import VQModel  # pyright: ignore[reportMissingImports]

from benchmarks.worker import serve, timed


class Side:
    """One model, and how it lies in memory."""

    def make(self, request: dict[str, Any]) -> dict[str, Any]:
        """A random model of these sizes, written as a folder."""
        torch.manual_seed(0)
        channels = request["channels"]
        self._model = VQModel(
            block_out_channels=channels,
            layers_per_block=request["blocks"],
            latent_channels=request["latent"],
            vq_embed_dim=request["code_dim"],
            num_vq_embeddings=request["codebook"],
            norm_num_groups=request["groups"],
            sample_size=request["resolution"],
            down_block_types=["DownEncoderBlock2D"] * len(channels),
            up_block_types=["UpDecoderBlock2D"] * len(channels),
            mid_block_add_attention=False,
            lookup_from_codebook=True,
        ).eval()
        # A fresh model's codes are all but one point: with these, a picture has many.
        torch.nn.init.normal_(self._model.quantize.embedding.weight, std=0.3)
        self._model.save_pretrained(request["folder"])
        self._layout = torch.contiguous_format
        return {"parameters": sum(weight.numel() for weight in self._model.parameters())}

    def settle(self, request: dict[str, Any]) -> dict[str, Any]:
        """How many threads, and the order of a picture's numbers: contiguous | channels_last."""
        torch.set_num_threads(request["threads"])
        self._layout = getattr(torch, request["layout"] + ("_format" if request["layout"] == "contiguous" else ""))
        self._model = self._model.to(memory_format=self._layout)
        return {}

    def encode(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds from uint8 pictures to codes; the codes go to a file where one is named."""
        pictures = torch.from_numpy(np.load(request["pictures"]))
        codes = None

        def run() -> None:
            nonlocal codes
            pixels = (pictures.permute(0, 3, 1, 2) / 255.0).contiguous(memory_format=self._layout)
            codes = self._model.quantize(self._model.encode(pixels).latents)[2][2]

        with torch.inference_mode():
            told = timed(run)
        assert codes is not None
        if request.get("save"):
            np.save(request["save"], codes.reshape(len(pictures), -1).numpy())
        return told

    def decode(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds from codes to uint8 pictures."""
        codes = torch.from_numpy(np.load(request["codes"]).astype(np.int64))
        side = int(codes.shape[1] ** 0.5)
        shape = (len(codes), side, side, self._model.config["vq_embed_dim"])
        made = None

        def run() -> None:
            nonlocal made
            pixels = self._model.decode(codes.reshape(-1), force_not_quantize=True, shape=shape).sample
            made = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()

        with torch.inference_mode():
            told = timed(run)
        assert made is not None
        if request.get("save"):
            np.save(request["save"], made.numpy())
        return told


if __name__ == "__main__":
    side = Side()
    serve({name: getattr(side, name) for name in ("make", "settle", "encode", "decode")})
