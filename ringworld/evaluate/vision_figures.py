"""The figures of a vision stage, its pictures, and what it draws: see `ringworld.evaluate.vision`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh

from ringworld.data.files import join
from ringworld.data.tokenizers import Tokenizer
from ringworld.errors import UserError
from ringworld.evaluate.asking import Asked, graded
from ringworld.evaluate.pictures import draw_samples, draw_video_needle
from ringworld.evaluate.recipe import EvaluateJob
from ringworld.evaluate.samples import draw_wishes
from ringworld.evaluate.seen_loss import SeenLoss
from ringworld.evaluate.transcripts import as_value, pick
from ringworld.evaluate.video_needle import VideoCell
from ringworld.evaluate.vision import HeldOutVision
from ringworld.generate.programs import Programs
from ringworld.model.llama import Params
from ringworld.model.rope import make_rope


@dataclass(frozen=True, eq=False)
class Drawn:
    """What the model drew for each wish: codes int32 [frames, grid, grid]; why_not: why it drew nothing."""

    codes: tuple[np.ndarray, ...]
    why_not: str


def draw(
    vision: HeldOutVision,
    job: EvaluateJob,
    params: Params,
    mesh: Mesh,
    tokenizer: Tokenizer,
    on_step: Callable[[], None],
) -> Drawn:
    """Have the wishes drawn. A model whose output is no number draws nothing, which is a finding and no error."""
    recipe, wanted = job.recipe, job.recipe.vision
    if not vision.wishes or wanted is None:
        return Drawn((), vision.not_drawn)
    programs = Programs(recipe.model, params, make_rope(recipe.model.rope, recipe.model.head_dim), mesh, recipe.dtype)
    scales = wanted.scale, wanted.video_scale
    try:
        codes = draw_wishes(programs, vision.wishes, vision.sight.ids, tokenizer, scales, recipe.seed, on_step)
    except UserError as broken:
        return Drawn((), str(broken))
    return Drawn(tuple(codes), "")


def vision_figures(
    vision: HeldOutVision,
    before: Mapping[str, SeenLoss],
    after: Mapping[str, SeenLoss],
    cells: Sequence[VideoCell],
    asked: Sequence[Asked],
    drawn: Drawn,
) -> dict[str, Any]:
    """Plain JSON values. Losses in nats per token; shares 0..1; None for what was not measured."""
    return {
        "corpora": {
            corpus: {
                "examples": len(examples.examples),
                "left_out": dict(examples.left_out),
                "text": _loss(before[corpus].text, after[corpus].text, after[corpus].text_tokens),
                "vision": _loss(before[corpus].vision, after[corpus].vision, after[corpus].vision_tokens),
                **graded([item for item in asked if item.answer.corpus == corpus]),
            }
            for corpus, examples in vision.corpora.items()
        },
        "refused": dict(vision.refused),
        "needle": {
            "colours": list(vision.needle.colours),
            "chance": vision.needle.chance,
            "told_apart": vision.needle.told_apart,
            **{name: _mean(cells, name) for name in ("exact", "said", "ranked")},
            "cells": [asdict(cell) for cell in cells],
            "refused": {str(frames): reason for frames, reason in vision.needle.refused.items()},
        },
        "not_asked": vision.not_asked,
        **graded(asked),
        "transcripts": [as_value(item) for item in pick(asked)],
        "not_drawn": drawn.why_not,
        "drawn": [
            {"corpus": wish.corpus, "caption": wish.caption, "frames": len(codes)}
            for wish, codes in zip(vision.wishes, drawn.codes, strict=False)
        ],
    }


def write_vision(output: str, vision: HeldOutVision, cells: Sequence[VideoCell], drawn: Drawn) -> None:
    """`video_needle.png` and `samples.png`, each where there is something to show."""
    if cells:
        draw_video_needle(join(output, "video_needle.png"), cells, vision.needle.chance)
    if drawn.codes:
        decode = vision.sight.codec.decode
        rows = [
            (wish.caption, decode(wish.codes), decode(codes))
            for wish, codes in zip(vision.wishes, drawn.codes, strict=True)
        ]
        draw_samples(join(output, "samples.png"), rows)


def _loss(before: float | None, after: float | None, tokens: int) -> dict[str, Any]:
    return {"before": before, "after": after, "tokens": tokens}


def _mean(cells: Sequence[VideoCell], name: str) -> float | None:
    return float(np.mean([getattr(cell, name) for cell in cells])) if cells else None
