"""Pictures and videos that a model draws from held-out captions, beside the clips that these were written for.

A clip is asked for with the very tokens that stand before it in an example of the store, so a model draws as it was
trained. An example whose clip comes before its text asks for none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ringworld.data.tokenizers import Tokenizer
from ringworld.evaluate.held_out import Examples
from ringworld.generate.drawing import IMAGE, VIDEO, Drawer, Drawing, Guidance
from ringworld.generate.programs import Programs
from ringworld.vision.stream import OPENING, VisionIds, frames_of, spans_of

_AT_ONCE = 8  # clips for each data x fsdp shard of the mesh; each keeps the keys and values of its row, and of a second
_CHUNK = 256  # of captions, which are short


@dataclass(frozen=True, eq=False)
class Wish:
    """A clip to be drawn. prompt: int32 [tokens], up to its first code; caption: what that says.

    codes: int32 [frames, grid, grid], the held-out clip's own first frames, as many as are to be drawn.
    """

    corpus: str
    document: int
    caption: str
    prompt: np.ndarray
    codes: np.ndarray


def wishes_of(
    corpora: Mapping[str, Examples], ids: VisionIds, grid: int, tokenizer: Tokenizer, most: int, frames: int
) -> list[Wish]:
    """At most `most` of each corpus, and at most so many frames of each."""
    opening = len(tokenizer.encode(OPENING))
    found = []
    for corpus, examples in corpora.items():
        mine = []
        for example in sorted(examples.examples, key=lambda example: example.document):
            for begin, end in spans_of(example.ids, ids)[:1]:
                if begin > opening and example.counts[begin]:
                    codes = frames_of(example.ids[begin:end], ids, grid)[:frames]
                    caption = tokenizer.decode(example.ids[:begin]).strip().removesuffix(OPENING).strip()
                    mine.append(Wish(corpus, example.document, caption, example.ids[:begin], codes))
        found += mine[:most]
    return found


def draw_wishes(
    programs: Programs,
    wishes: Sequence[Wish],
    ids: VisionIds,
    tokenizer: Tokenizer,
    scales: tuple[float, float],
    seed: int,
    on_step: Callable[[], None] = lambda: None,
) -> list[np.ndarray]:
    """What the model draws for each: codes int32, as many frames as its `codes`. scales: of the guidance, of a first
    frame and of those after it. UserError where the model's output is no number.
    """
    frames, grid = max(len(wish.codes) for wish in wishes), wishes[0].codes.shape[1]
    longest = max(len(wish.prompt) for wish in wishes)
    shards = programs.batch_shards
    drawer = Drawer(
        programs, ids, grid,
        context=longest + frames * (grid * grid + 1),
        at_once=min(_AT_ONCE, -(-len(wishes) // shards)) * shards,
        chunk=_CHUNK,
    )  # fmt: skip
    without = tokenizer.encode(OPENING).astype(np.int32)
    # All as videos of one length, by one program: the first frame of a video is drawn as an image is.
    drawings = [Drawing(wish.prompt, without, seed + number) for number, wish in enumerate(wishes)]
    first, following = (Guidance(scale, usual.top_k) for scale, usual in zip(scales, (IMAGE, VIDEO), strict=True))
    drawn = dict(drawer.draw(drawings, frames, first, following, lambda *_: on_step()))
    return [drawn[number][: len(wish.codes)] for number, wish in enumerate(wishes)]
