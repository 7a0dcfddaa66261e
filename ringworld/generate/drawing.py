"""Images and videos as codes, drawn from prompts with classifier-free guidance, many clips at a time.

    drawer = Drawer(programs, ids, grid, context=4096, at_once=8)
    for index, codes in drawer.draw([Drawing(prompt, without), ...], frames=30):
        ...

- A clip is drawn by two rows that advance together: one that was asked with the caption, one without it. Where no later
  frame is guided, the second row is given up.
- A frame has grid x grid codes and then eof, the last one eov, by construction. So any number of frames can be drawn.
- A clip's random numbers come from its seed and its positions.

This file knows token ids only: how a caption becomes a prompt is `ringworld.generate.chat`'s business, and pixels are
made of codes by `ringworld.vision.codec`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ringworld.errors import UserError
from ringworld.generate.cache import Cache
from ringworld.generate.chunks import chunk_of, chunk_sizes, slot_length
from ringworld.generate.engine import check_ids
from ringworld.generate.frames import FramePrograms
from ringworld.generate.programs import Chunk, Programs
from ringworld.generate.sampling import Sampling, knobs_of
from ringworld.vision.stream import VisionIds


@dataclass(frozen=True)
class Guidance:
    """How the codes of a frame are drawn.

    scale: of the guidance; 1: none. temperature: 0 is greedy. top_k: only the k likeliest codes; 0: all.
    """

    scale: float
    top_k: int
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.scale <= 100:
            raise UserError(f"scale={self.scale}: of the guidance, from 0 (the caption is ignored) to 100; 1 is none")
        Sampling(self.temperature, self.top_k)  # refuses what is wrong


# What LWM draws with (scripts/run_sample_video.sh of its repository): an image and the first frame of a video; others.
IMAGE, VIDEO = Guidance(5.0, 8192), Guidance(1.0, 1000)


@dataclass(frozen=True, eq=False)
class Drawing:
    """A clip to be drawn: prompts that its first code follows on, with its caption and without; int32 [tokens]."""

    ids: np.ndarray
    without: np.ndarray
    seed: int = 0


class Drawer:
    """Clips of a model that sees.

    grid: codes of a side of a frame. context: the most tokens of prompt and clip together. at_once: clips at a time, a
    multiple of the mesh's data x fsdp. chunk: tokens of a prompt that one program sees.
    """

    def __init__(
        self, programs: Programs, ids: VisionIds, grid: int, *, context: int, at_once: int = 1, chunk: int = 2048
    ) -> None:
        if not programs.config.vision_vocabulary:
            raise UserError("the model is a text model (model.vision_vocabulary=0), and cannot draw")
        ids.check_fits(programs.config.vision_vocabulary)
        if at_once < 1 or at_once % programs.batch_shards:
            raise UserError(
                f"at_once={at_once}: a multiple of the {programs.batch_shards} that data x fsdp of the mesh hold apart"
            )
        self._programs, self._grid, self._context, self._at_once = programs, grid, context, at_once
        self._frame, self._codes = FramePrograms(programs, ids, grid * grid), grid * grid
        self._chunk = chunk

    def draw(
        self,
        drawings: Sequence[Drawing],
        frames: int = 1,
        first: Guidance = IMAGE,
        following: Guidance = VIDEO,
        on_progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(index of a drawing, its codes int32 [frames, grid, grid]), in order.

        first, following: how the first frame is drawn, and the others. on_progress: told of steps done, and of all.
        UserError where a clip does not fit the context, and where the model's output is no number.
        """
        if frames < 1:
            raise UserError(f"frames={frames}: 1 (an image) or more")
        for drawing in drawings:
            self._check(drawing, frames)
        groups = range(0, len(drawings), self._at_once)
        steps = frames * (self._codes + 1) - 1
        # Of all groups the longest, so that they share their programs.
        longest = max((len(ids) for drawing in drawings for ids in (drawing.ids, drawing.without)), default=0)
        for number, start in enumerate(groups):
            group = list(drawings[start : start + self._at_once])
            filled = [*group, *group[-1:] * (self._at_once - len(group))]

            def told(done: int, before: int = number * steps) -> None:
                on_progress(before + done, len(groups) * steps)

            codes = self._group(filled, [first, *[following] * (frames - 1)], longest + steps, told)
            for index in range(len(group)):
                yield start + index, codes[index]

    def _check(self, drawing: Drawing, frames: int) -> None:
        for ids in (drawing.ids, drawing.without):
            if not len(ids):
                raise UserError("the prompt of a picture is empty; it ends with what opens a clip")
            check_ids(ids, self._programs.config)
        longest = max(len(drawing.ids), len(drawing.without))
        room = (self._context - longest) // (self._codes + 1)
        if frames > room:
            raise UserError(
                f"{frames} frames of {self._codes + 1} tokens after a prompt of {longest} are more than the context of "
                f"{self._context}, where {max(0, room)} fit; draw fewer, or give a longer --context than the model was "
                f"trained at"
            )

    def _group(
        self, group: Sequence[Drawing], guidance: Sequence[Guidance], context: int, on_step: Callable[[int], None]
    ) -> np.ndarray:
        """int32 [clips, frames, grid, grid]. context: tokens of the longest prompt and its clip."""
        guided = any(how.scale != 1 for how in guidance)
        prompts = [drawing.ids for drawing in group] + [drawing.without for drawing in group] * guided
        cache = self._read(prompts, context)
        tokens = np.array([ids[-1] for ids in prompts], np.int32)
        state = self._frame.state(tokens, np.array([len(ids) - 1 for ids in prompts], np.int32), len(group))
        found, done = [], 0
        for number, how in enumerate(guidance):
            if guided and all(later.scale == 1 for later in guidance[number:]):
                cache, state = self._frame.with_captions(cache, state)
                guided = False
            knobs = knobs_of([Sampling(how.temperature, how.top_k, seed=drawing.seed) for drawing in group])
            last = number == len(guidance) - 1
            # A row of the grid at a time, so that there is news of a large picture too; eof along with the last one.
            for begin in range(0, self._codes, self._grid):
                end = begin + self._grid
                end += end == self._codes and not last
                cache, state = self._frame.advance(cache, state, how.scale, knobs, begin, end)
                if not np.asarray(state.sound).all():
                    raise UserError(
                        "the model's output is no number (NaN or infinite): its weights are broken, or try "
                        "--dtype float32"
                    )
                done += end - begin
                on_step(done)
            found.append(np.asarray(state.codes)[:, :-1].reshape(-1, self._grid, self._grid))
        return np.stack(found, axis=1)

    def _read(self, prompts: Sequence[np.ndarray], context: int) -> Cache:
        """A cache with a slot for each prompt that holds all of it but the last token, which the first step looks at.

        Of prompts that are the same, as those without a caption are, one is read and the others are copies.
        """
        programs, shards = self._programs, self._programs.batch_shards
        sizes = chunk_sizes(min(self._chunk, context), programs.unit)
        cache = programs.make_cache(len(prompts), slot_length(context, sizes, programs.stripes.count))
        held = len(prompts) // shards
        known = [[ids[:-1] for ids in prompts[shard * held : (shard + 1) * held]] for shard in range(shards)]
        for slot in range(held):
            read, copied = np.full(shards, -1, np.int32), np.zeros((3, shards), np.int32)
            for shard, of_shard in enumerate(known):
                ids = of_shard[slot]
                same = next((n for n in range(slot) if np.array_equal(of_shard[n], ids)), None)
                if same is None:
                    read[shard] = slot
                else:
                    copied[:, shard] = same, slot, len(ids)
            cache = self._read_slots(cache, [of_shard[slot] for of_shard in known], read, sizes)
            if copied[2].any():
                cache = programs.copy(cache, *copied)
        return cache

    def _read_slots(
        self, cache: Cache, prompts: Sequence[np.ndarray], slots: np.ndarray, sizes: Sequence[int]
    ) -> Cache:
        """The cache with one prompt of each batch shard in its slot; -1: this one has nothing to read."""
        lengths = np.array([len(ids) for ids in prompts], np.int32) * (slots >= 0)
        start = 0
        while start < lengths.max():
            size = chunk_of(int(lengths.max()) - start, sizes)
            # Padding is a token of the prompt itself, as in the engine.
            tokens = np.stack([np.full(size, ids[-1] if len(ids) else 0, np.int32) for ids in prompts])
            for row, ids in enumerate(prompts):
                part = ids[start : start + size]
                tokens[row, : len(part)] = part
            chunk = Chunk(
                tokens=tokens,
                next_tokens=np.zeros_like(tokens),
                slot=np.where(start < lengths, slots, -1).astype(np.int32),
                start=np.full(len(prompts), start, np.int32),
                end=lengths,
            )
            cache, _ = self._programs.chunk(cache, chunk)
            start += size
        return cache
