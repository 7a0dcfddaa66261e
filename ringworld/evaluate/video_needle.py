"""The needle of a video: one marked frame among the frames of held-out clips, asked about after the last of them.

The marked frame (`ringworld.evaluate.marked_frames`) takes the place of one frame, at a depth, and comes through the
run's VQGAN as every other. What is asked is the colour of its shape. The answer is teacher forced, as the text
needle's is. Besides whether a greedy reader says it there is which of the colours' names is the likeliest, at the first
token in which they differ: that has a meaning for a model that is too small to answer in words. The right colours are
dealt so that over the grid each name is right equally often: who always says the same is right by chance alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ringworld.data.conversations import Refused, Turn
from ringworld.data.templates import template_of
from ringworld.data.tokenizers import Tokenizer
from ringworld.errors import UserError
from ringworld.evaluate.marked_frames import SHAPES, MarkedFrame
from ringworld.evaluate.recipe import VideoNeedleConfig
from ringworld.evaluate.scorer import Choices
from ringworld.vision.stream import CLIP, CLOSING, OPENING, VisionIds, VisionTemplate, clip_ids, spliced

# (shape, colour, ids of a clip) to the ids of prompt and answer, int32 [length + 1], and how many of them, the last
# ones, are the colour's name.
Ask = Callable[[str, str, np.ndarray], tuple[np.ndarray, int]]


@dataclass(frozen=True, eq=False)
class VideoPrompt:
    """One question. codes: int32 [frames, grid, grid] of the clip, whose frame number `place` is the marked one.

    tokens: int32 [length + 1], the last `answer` of them are the colour's name. choices: the ids by which the colours'
    names go on after the token at `asked`, in the configuration's order; `right` is the true one's number.
    """

    depth: float
    place: int
    marked: MarkedFrame
    codes: np.ndarray
    tokens: np.ndarray
    answer: int
    asked: int
    choices: tuple[int, ...]
    right: int

    @property
    def frames(self) -> int:
        return len(self.codes)

    @property
    def length(self) -> int:
        return len(self.tokens) - 1


@dataclass(frozen=True)
class VideoCell:
    """One cell of the grid. tokens: of its longest prompt. Shares 0..1: exact, of prompts whose answer a greedy reader
    gives; said, of answer tokens that it gives; ranked, of prompts whose right colour is the likeliest of all."""

    frames: int
    tokens: int
    depth: float
    prompts: int
    exact: float
    said: float
    ranked: float


def make_video_prompts(
    config: VideoNeedleConfig,
    haystack: np.ndarray,
    encode: Callable[[Sequence[MarkedFrame]], np.ndarray],
    ask: Ask,
    ids: VisionIds,
    sequence: int,
    seed: int,
) -> tuple[list[VideoPrompt], dict[int, str]]:
    """Prompts of the whole grid, and for each number of frames that cannot be asked about, why.

    haystack: int32 [frames, grid, grid], codes of held-out clips one after another; it is never repeated to make a
    longer one. encode: marked frames to their codes [n, grid, grid]. sequence: slots of a row. The same seed gives the
    same prompts.
    """
    prompts: list[VideoPrompt] = []
    refused: dict[int, str] = {}
    each = len(config.depths) * config.rounds
    turns = np.random.default_rng(seed).permutation(len(config.colours))
    for number, frames in enumerate(config.frames):
        if frames > len(haystack):
            refused[frames] = f"the held-out clips have {len(haystack)} frames, the prompt needs {frames}"
            continue
        rng = np.random.default_rng((seed, frames))
        dealt = rng.permutation(turns[(number * each + np.arange(each)) % len(turns)])
        made = _of_length(frames, config, dealt.tolist(), haystack, encode, ask, ids, rng)
        longest = max(prompt.length for prompt in made)
        if longest > sequence:
            refused[frames] = f"{frames} frames are {longest} tokens with the question, a row has {sequence}"
            continue
        prompts += made
    return prompts, refused


def _of_length(
    frames: int,
    config: VideoNeedleConfig,
    dealt: Sequence[int],
    haystack: np.ndarray,
    encode: Callable[[Sequence[MarkedFrame]], np.ndarray],
    ask: Ask,
    ids: VisionIds,
    rng: np.random.Generator,
) -> list[VideoPrompt]:
    """dealt: the right colour's number, of each depth and round."""
    marked = []
    for right in dealt:
        others = [colour for colour in config.colours if colour != config.colours[right]]
        shape, background = rng.choice(SHAPES), rng.choice(others)
        marked.append(MarkedFrame(str(shape), config.colours[right], str(background)))
    prompts = []
    depths = [depth for depth in config.depths for _ in range(config.rounds)]
    for depth, right, frame, code in zip(depths, dealt, marked, encode(marked), strict=True):
        start, place = rng.integers(len(haystack) - frames + 1), round(depth * (frames - 1))
        codes = haystack[start : start + frames].copy()
        codes[place] = code
        clip = clip_ids(codes, ids)
        written = [ask(frame.shape, colour, clip) for colour in config.colours]
        at, choices = _differing([tokens for tokens, _ in written], config.colours)
        tokens, answer = written[right]
        prompts.append(VideoPrompt(depth, place, frame, codes, tokens, answer, at - 1, choices, right))
    return prompts


def _differing(written: Sequence[np.ndarray], colours: Sequence[str]) -> tuple[int, tuple[int, ...]]:
    """Where ids that are the same up to a colour's name differ first, and by which ids."""
    shortest = min(map(len, written))
    [*_, at] = [0, *np.flatnonzero(np.stack([ids[:shortest] != written[0][:shortest] for ids in written]).any(0))[:1]]
    choices = tuple(int(ids[at]) for ids in written)
    if len(set(choices)) < len(choices):
        raise UserError(
            f"vision.needle.colours={list(colours)}: in this tokenizer not all of these names differ at their first "
            f"token that is not the same in all; take other colours"
        )
    return int(at), choices


def asker(tokenizer: Tokenizer, chat: bool) -> Ask:
    """How the question is put: as text that goes on after the clip, or in the turns of a chat model's template.

    UserError where the template has no place for such a conversation.
    """
    if not chat:
        return lambda shape, colour, clip: _plainly(tokenizer, shape, colour, clip)
    template = VisionTemplate(template_of(tokenizer), tokenizer)
    ends = template.ends()

    def ask(shape: str, colour: str, clip: np.ndarray) -> tuple[np.ndarray, int]:
        question = f"{CLIP}\n{_scene(shape)} What is the colour of the {shape}?"
        [encoded] = template.encode([[Turn("user", question), Turn("assistant", colour)]])
        if isinstance(encoded, Refused):
            raise UserError(f"the question about a video: {encoded.detail}")
        whole = spliced(encoded, [clip])
        answer = np.flatnonzero(whole.answer)
        while int(whole.ids[answer[-1]]) in ends:
            answer = answer[:-1]
        return whole.ids[: answer[-1] + 1], len(answer)

    return ask


def _plainly(tokenizer: Tokenizer, shape: str, colour: str, clip: np.ndarray) -> tuple[np.ndarray, int]:
    opening, closing, question, answer = tokenizer.encode_batch(
        [OPENING, CLOSING, f"\n{_scene(shape)} The colour of the {shape} is:", f" {colour}"]
    )
    return np.concatenate([opening, clip, closing, question, answer]).astype(np.int32), len(answer)


def _scene(shape: str) -> str:
    return f"One frame shows a large {shape} on a plain background."


def pack_choices(prompts: Sequence[VideoPrompt], places: Sequence[tuple[int, int]], rows: int) -> Choices:
    """What is asked of `rows` rows that hold these prompts at (row, slot), in the order of the prompts in each row."""
    most = max(Counter(row for row, _ in places).values(), default=0)
    slots = np.zeros((rows, most), np.int32)
    ids = np.zeros((*slots.shape, len(prompts[0].choices) if prompts else 0), np.int32)
    for prompt, (row, slot), number in zip(prompts, places, _turns(places), strict=True):
        slots[row, number], ids[row, number] = slot + prompt.asked, prompt.choices
    return Choices(slots, ids)


def grade_video(
    prompts: Sequence[VideoPrompt], places: Sequence[tuple[int, int]], hit: np.ndarray, chosen: np.ndarray
) -> list[VideoCell]:
    """The grid's cells from hit bool [rows, sequence] and chosen float32 [rows, questions, colours] of the packed
    prompts. places: (row, slot) of each."""
    cells: dict[tuple[int, float], list[tuple[int, np.ndarray, bool]]] = {}
    for prompt, (row, slot), number in zip(prompts, places, _turns(places), strict=True):
        end = slot + prompt.length
        losses = chosen[row, number]
        # Of two that are equally likely neither is the likeliest.
        first = bool((losses[prompt.right] < np.delete(losses, prompt.right)).all())
        graded = prompt.length, hit[row, end - prompt.answer : end], first
        cells.setdefault((prompt.frames, prompt.depth), []).append(graded)
    return [
        VideoCell(
            frames,
            max(length for length, _, _ in graded),
            depth,
            len(graded),
            float(np.mean([said.all() for _, said, _ in graded])),
            float(np.concatenate([said for _, said, _ in graded]).mean()),
            float(np.mean([first for _, _, first in graded])),
        )
        for (frames, depth), graded in cells.items()
    ]


def _turns(places: Sequence[tuple[int, int]]) -> list[int]:
    """How many came before each of them in its row."""
    before: Counter[int] = Counter()
    turns = []
    for row, _ in places:
        turns.append(before[row])
        before[row] += 1
    return turns
