"""What a model needs to see and draw besides its weights: a VQGAN, the ids of its codes, how clips were shown to it.

A stage's manifests lead to all of it: to the VQGAN (a stage of kind `vqgan`), to the sides and the rate at which clips
were encoded (`codes`), and to the form of what the model learned from (`vision-examples`). A VQGAN may also be given by
its folder.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax

from ringworld.errors import UserError
from ringworld.generate.checkpoint import artifact, made_from, read_manifest, run_of
from ringworld.model.config import ModelConfig
from ringworld.vision.codec import Codec
from ringworld.vision.stream import VisionIds
from ringworld.vision.vqgan_import import read_vqgan

_RATE = 4.0  # frames a second that LWM stores of a video
_BATCH = 8  # pictures at a time


@dataclass(frozen=True)
class Shown:
    """How clips were shown to a model. vqgan: a folder, None where none is known. side: pixels, 0: the VQGAN's own.
    codebook: of what it was trained with, None where that is not known. rate: frames a second. asked: it draws when a
    user's turn asks it to, not when it reads a caption."""

    vqgan: str | None = None
    side: int = 0
    codebook: int | None = None
    rate: float = _RATE
    asked: bool = False


@dataclass(frozen=True, eq=False)
class Sight:
    """side: pixels of a frame. grid: codes of its side."""

    codec: Codec
    ids: VisionIds
    side: int
    grid: int


def shown_to(place: str) -> Shown:
    """What the manifests say that lead to a training stage. UserError for a folder that is none."""
    nearest: dict[str, tuple[str, dict]] = {}
    for stage, manifest in made_from(run_of(place), read_manifest(place)):
        nearest.setdefault(manifest["kind"], (stage, manifest))
    codes, examples = (nearest.get(kind, ("", {"recipe": {}}))[1] for kind in ("codes", "vision-examples"))
    return Shown(
        vqgan=artifact(*nearest["vqgan"], "vqgan") if "vqgan" in nearest else None,
        side=int(codes["recipe"].get("side", 0)),
        codebook=codes.get("values", {}).get("codebook"),
        rate=float(codes["recipe"].get("rate", _RATE)),
        asked=examples["recipe"].get("how", {}).get("form") == "chat",
    )


def open_sight(config: ModelConfig, shown: Shown, vqgan: str | None = None) -> Sight:
    """The VQGAN of a model, ready for use. vqgan: a folder to take instead of the one that is known.

    UserError for a model that does not see, where no VQGAN is known, and for one that is not the model's.
    """
    check_sees(config)
    place = vqgan or shown.vqgan
    if place is None:
        raise UserError("no VQGAN stage among what the model was made from; give its folder as --vqgan")
    sizes, params = read_vqgan(place)
    _check_codebook(place, sizes.codebook, config, shown.codebook)
    side = shown.side or sizes.resolution
    if side % sizes.factor:
        raise UserError(
            f"{place}: one code stands for {sizes.factor} pixels, which the side of {side} pixels that the model was "
            f"shown is no multiple of; give the VQGAN that it was trained with as --vqgan"
        )
    codec = Codec(sizes, params, _BATCH, "float32" if jax.default_backend() == "cpu" else "bfloat16")
    return Sight(codec, VisionIds(config.vocabulary, sizes.codebook), side, side // sizes.factor)


def check_sees(config: ModelConfig) -> None:
    """UserError for a text model."""
    if not config.vision_vocabulary:
        raise UserError(
            "the model is a text model (model.vision_vocabulary=0): it can neither be given pictures nor draw; give a "
            "vision stage as --checkpoint"
        )


def _check_codebook(place: str, codebook: int, config: ModelConfig, known: int | None) -> None:
    if known is not None and known != codebook:
        raise UserError(
            f"{place} has a codebook of {codebook}, and the model was trained with one of {known}; give the VQGAN of "
            f"its run as --vqgan, or leave that out"
        )
    needed = VisionIds(config.vocabulary, codebook).vocabulary
    if needed > config.vision_vocabulary:
        raise UserError(
            f"{place} has a codebook of {codebook}, which needs {needed} vision ids with eof and eov, and the "
            f"model has {config.vision_vocabulary}; give the VQGAN that it was trained with as --vqgan"
        )
