"""What stages that see train on, as a part of the graph.

    media -> vqgan -> codes -> examples-vision-1k -> pack-vision-1k -> vision-1k -> ...
                                          tokens ->        (plain text, where the mixture asks for it)

- Clips are looked at, and go through the VQGAN, once for all stages; examples are made for each stage, of its length.
- What it waits for, no stage of text waits for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from infra.placement import Placement
from infra.stage import Stage
from ringworld.vision.clips import Kind
from ringworld.vision.examples import ExampleOptions
from stages import codes, media, pack_vision, vision_examples, vqgan
from stages.curriculum import Curriculum
from stages.pack_vision import TEXT, PackVisionRecipe
from stages.site import Site
from stages.training import Training
from stages.vision_examples import VisionExamplesRecipe

VQGAN, CODES = "vqgan", "codes"


def clip_stages(curriculum: Curriculum, site: Site) -> list[Stage]:
    """The stages that all stages that see share: clips, what encodes them, their codes."""
    chosen = curriculum.vision
    assert chosen is not None
    seen = replace(chosen.media, seed=chosen.media.seed or curriculum.seed)
    looked = Stage("media", seen, media.run, {}, Placement())
    trained = Stage(VQGAN, chosen.vqgan, vqgan.run, {"media": looked}, site.place(VQGAN, site.vqgan))
    ports = {"media": looked, "vqgan": trained}
    coded = Stage(CODES, chosen.codes, codes.run, ports, site.place(CODES, site.codes))
    return [looked, trained, coded]


def examples(name: str, curriculum: Curriculum, made: Mapping[str, Stage]) -> Stage:
    """The examples of one training stage."""
    row = curriculum.stages[name]
    assert curriculum.vision is not None
    how = ExampleOptions(
        form="pairs" if row.data == "vision" else "chat",
        sequence=row.sequence,
        frames=row.frames,
        rate=row.rate,
        kinds=_kinds(row),
        seed=curriculum.seed,
    )
    recipe = VisionExamplesRecipe(curriculum.model.vocabulary, curriculum.vision.vocabulary, how)
    ports = {"codes": made[CODES], "tokenizer": made["tokenizer"]}
    return Stage(f"examples-{name}", recipe, vision_examples.run, ports, Placement())


def packing(name: str, curriculum: Curriculum, made: Mapping[str, Stage]) -> Stage:
    """The packing plan of one training stage, over its examples and, where it is asked for, text."""
    row = curriculum.stages[name]
    mixture = {corpus: share for corpus, share in row.mixture.items() if share > 0}
    recipe = PackVisionRecipe(row.sequence, mixture, row.weigh_by, row.vision_weight, row.lengths, row.window)
    ports = {"vision": made[f"examples-{name}"]} | ({"tokens": made["tokens"]} if TEXT in mixture else {})
    return Stage(f"pack-{name}", recipe, pack_vision.run, ports, Placement())


def _kinds(row: Training) -> tuple[Kind, ...]:
    """The kinds of clips that the mixture draws from."""
    drawn = {name.partition("-")[0] for name, share in row.mixture.items() if share > 0}
    kinds: tuple[Kind, ...] = ("image", "video")
    return tuple(kind for kind in kinds if kind in drawn)
