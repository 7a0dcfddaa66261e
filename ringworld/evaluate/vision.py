"""What a vision stage is measured on: held-out examples, the needle in a video, questions, and captions to draw.

Losses, the needle and answers are had on any mesh. Drawings come from programs that run in one process: an evaluation
of several says that there are none, and why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ringworld.data.token_store import TokenStore
from ringworld.data.tokenizers import Tokenizer, check_same
from ringworld.errors import UserError
from ringworld.evaluate.answers import Answer, answers_in, ends_of
from ringworld.evaluate.asking import choose, one_process
from ringworld.evaluate.held_out import Examples, read_examples
from ringworld.evaluate.marked_frames import MarkedFrame, draw_marked
from ringworld.evaluate.needle import pack_prompts
from ringworld.evaluate.recipe import EvaluateJob, VideoNeedleConfig
from ringworld.evaluate.samples import Wish, wishes_of
from ringworld.evaluate.scorer import Choices, Rows
from ringworld.evaluate.video_needle import VideoPrompt, asker, make_video_prompts, pack_choices
from ringworld.generate.sight import Shown, Sight, open_sight
from ringworld.train.vocabularies import check_vocabularies
from ringworld.vision.stream import VisionIds, frames_of
from ringworld.vision.vqgan_import import read_vqgan_config, weights_sha256


@dataclass(frozen=True, eq=False)
class VideoNeedle:
    """The prompts and what is to be scored of them: rows, and in them (row, slot) of each prompt, and what is asked."""

    colours: tuple[str, ...]
    prompts: tuple[VideoPrompt, ...]
    refused: Mapping[int, str]
    rows: Rows
    places: tuple[tuple[int, int], ...]
    choices: Choices

    @property
    def chance(self) -> float:
        """The share of right colours of who does not look."""
        return 1 / len(self.colours)

    @property
    def told_apart(self) -> float | None:
        """How many different marked frames the VQGAN makes different codes of, as a share; what it makes the same of
        nobody can tell apart."""
        codes = {prompt.marked: prompt.codes[prompt.place].tobytes() for prompt in self.prompts}
        return len(set(codes.values())) / len(codes) if codes else None


@dataclass(frozen=True, eq=False)
class HeldOutVision:
    """What is to be scored, asked and drawn. refused: of each corpus of which no example can be scored, why.

    not_asked, not_drawn: why nothing is; empty where something is.
    """

    corpora: Mapping[str, Examples]
    refused: Mapping[str, str]
    needle: VideoNeedle
    chosen: tuple[Answer, ...]
    not_asked: str
    wishes: tuple[Wish, ...]
    not_drawn: str
    sight: Sight


def read_vision(job: EvaluateJob, tokenizer: Tokenizer) -> HeldOutVision | None:
    """The held-out examples of a stage's store; None for a recipe without vision."""
    recipe, inputs = job.recipe, job.inputs
    wanted, places = recipe.vision, (inputs.vision, inputs.codes, inputs.vqgan)
    if wanted is None and places == (None, None, None):
        return None
    vision, codes, vqgan = places
    if wanted is None or vision is None or codes is None or vqgan is None:
        raise UserError("recipe.vision and inputs.vision, codes, vqgan belong together: give all of them, or none")
    store, clips = TokenStore.open(vision), TokenStore.open(codes)
    check_same(store.info.tokenizer_hash, tokenizer.hash, f"evaluation of {vision}")
    check_vocabularies(store.info, recipe.model, vision)
    if store.index.corpus is None or store.index.seen is None:
        raise UserError(f"inputs.vision={vision}: a store of plain text; give that of a vision-examples stage")
    sight = _sight(job, clips, vqgan)
    corpora: dict[str, Examples] = {}
    refused: dict[str, str] = {}
    for corpus in sorted(set(store.index.corpus.tolist())):
        try:
            corpora[corpus] = read_examples(store, corpus, recipe.sequence, wanted.examples, f"mixture.{corpus}")
        except UserError as none_fits:
            refused[corpus] = str(none_fits)
    needle = _needle(wanted.needle, clips, sight, tokenizer, store.info.answers, recipe.sequence, recipe.seed)
    chosen, not_asked = _questions(store, corpora, tokenizer, wanted.asked, recipe.seed)
    wishes = wishes_of(corpora, sight.ids, sight.grid, tokenizer, wanted.drawn, wanted.frames)
    not_drawn = one_process("captions are drawn") or ("" if wishes else "no held-out example has a caption to draw")
    if not wanted.drawn:
        not_drawn = "vision.drawn=0"
    return HeldOutVision(
        corpora, refused, needle, chosen, not_asked, () if not_drawn else tuple(wishes), not_drawn, sight
    )


def _sight(job: EvaluateJob, clips: TokenStore, vqgan: str) -> Sight:
    """The run's VQGAN at the sides that its clips were encoded at. UserError for codes of another one."""
    sizes = read_vqgan_config(vqgan)
    made_by, given = clips.info.tokenizer_hash, weights_sha256(vqgan)
    if made_by != given:
        raise UserError(
            f"inputs.codes={clips.url} is of the VQGAN {made_by[:12]}, and inputs.vqgan={vqgan} is {given[:12]}; give "
            f"the VQGAN that made them"
        )
    # A frame is as many codes as come before the first end of one.
    grid = round(float(np.flatnonzero(clips.read(0) >= VisionIds(0, sizes.codebook).eof)[0]) ** 0.5)
    return open_sight(job.recipe.model, Shown(vqgan, grid * sizes.factor))


def _needle(
    config: VideoNeedleConfig,
    clips: TokenStore,
    sight: Sight,
    tokenizer: Tokenizer,
    chat: bool,
    sequence: int,
    seed: int,
) -> VideoNeedle:
    def encode(frames: Sequence[MarkedFrame]) -> np.ndarray:
        return sight.codec.encode(np.stack([draw_marked(frame, sight.side) for frame in frames]))

    haystack = _haystack(clips, sight, max(config.frames) * 4)
    prompts: list[VideoPrompt] = []
    try:
        ask = asker(tokenizer, chat)
        prompts, refused = make_video_prompts(config, haystack, encode, ask, sight.ids, sequence, seed)
    except UserError as cannot_be_asked:  # of no length; all else is still measured
        refused = dict.fromkeys(config.frames, str(cannot_be_asked))
    rows, places = pack_prompts([prompt.tokens for prompt in prompts], sequence, [prompt.answer for prompt in prompts])
    choices = pack_choices(prompts, places, len(rows.tokens))
    return VideoNeedle(config.colours, tuple(prompts), refused, rows, tuple(places), choices)


def _haystack(clips: TokenStore, sight: Sight, need: int) -> np.ndarray:
    """int32 [frames, grid, grid]: the frames of held-out clips in turn, `need` or a few more where there are."""
    found, ids, size = [np.zeros((0, sight.grid, sight.grid), np.int32)], VisionIds(0, sight.ids.codebook), 0
    for document in clips.index.documents("held_out").tolist():
        found.append(frames_of(clips.read(document), ids, sight.grid))
        size += len(found[-1])
        if size >= need:
            break
    return np.concatenate(found)


def _questions(
    store: TokenStore, corpora: Mapping[str, Examples], tokenizer: Tokenizer, most: int, seed: int
) -> tuple[tuple[Answer, ...], str]:
    """Those to ask, and why there are none."""
    if not store.info.answers:
        return (), "the stage trains on pairs, which ask nothing"
    ends, first_seen = ends_of(tokenizer), store.info.vision_offset
    chosen: list[Answer] = []
    for corpus, examples in corpora.items():
        answers = [
            answer
            for example in examples.examples
            for answer in answers_in(example, corpus, tokenizer, ends, first_seen)
        ]
        chosen += choose(answers, most, seed)
    return tuple(chosen), "" if chosen else "vision.asked=0" if not most else "no held-out example has a question"
