"""The stream of codes and its grammar: the one place that knows how images and videos stand among text ids.

    <vision> codes of frame 1  eof  codes of frame 2  eof  ...  codes of the last frame  eov </vision>

- A frame is its codes row by row, no sides said: whoever reads knows the grid. eof ends every frame but the last, eov
  the last (Liu et al. 2024, arXiv 2402.08268). An image is a clip of one frame.
- Codes and the two ends are ids of their own, `offset` and up; text ids lie below. `<vision>` and `</vision>` are
  ordinary text, in the tokenizer's ids.
- In a conversation the character `CLIP` stands for a clip in a turn's text, until `VisionTemplate` has rendered it.
- Ids that are no such stream are refused with the place where they are not; nothing is mended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ringworld.data.conversations import Refused, Turn
from ringworld.data.templates import Encoded, Part, Template
from ringworld.data.tokenizers import Tokenizer
from ringworld.errors import UserError

OPENING, CLOSING = "<vision>", "</vision>"
CLIP = "\ufdd0"  # one of Unicode's noncharacters, which no text may hold

_HERE = -1  # where a clip's ids are to stand, among ids


@dataclass(frozen=True)
class VisionIds:
    """Which ids are codes: offset + code for the `codebook` codes, then eof and eov.

    offset: the text vocabulary of the model; 0 in a store of nothing but codes.
    """

    offset: int
    codebook: int

    def __post_init__(self) -> None:
        if self.offset < 0 or self.codebook < 2:
            raise UserError(f"offset={self.offset}, codebook={self.codebook}: 0 or more, and 2 codes or more")

    @property
    def eof(self) -> int:
        """Ends every frame but a clip's last."""
        return self.offset + self.codebook

    @property
    def eov(self) -> int:
        """Ends a clip."""
        return self.offset + self.codebook + 1

    @property
    def vocabulary(self) -> int:
        """The rows that a table for these ids needs at least."""
        return self.codebook + 2

    def check_fits(self, vision_vocabulary: int) -> None:
        """UserError where a model's vision vocabulary has no room for these ids."""
        if vision_vocabulary < self.vocabulary:
            raise UserError(
                f"vision_vocabulary={vision_vocabulary}: {self.codebook} codes, eof and eov need {self.vocabulary}; "
                f"raise model.vision_vocabulary"
            )


def clip_ids(codes: np.ndarray, ids: VisionIds) -> np.ndarray:
    """Codes, integers [frames, h, w], to int32 [frames * (h * w + 1)]. UserError for no frames or unknown codes."""
    if codes.ndim != 3 or not codes.size:
        raise UserError(f"codes {list(codes.shape)}: expected [frames, h, w], one frame or more")
    wrong = codes[(codes < 0) | (codes >= ids.codebook)]
    if len(wrong):
        raise UserError(f"code {wrong[0]}: a codebook of {ids.codebook} has codes 0..{ids.codebook - 1}")
    stream = np.full((len(codes), codes[0].size + 1), ids.eof, np.int32)
    stream[:, :-1] = codes.reshape(len(codes), -1) + ids.offset
    stream[-1, -1] = ids.eov
    return stream.reshape(-1)


def frames_of(tokens: np.ndarray, ids: VisionIds, grid: int) -> np.ndarray:
    """What `clip_ids` was given, int32 [frames, grid, grid]. UserError, with the place, for anything else."""
    size = grid * grid + 1
    if tokens.ndim != 1 or not len(tokens) or len(tokens) % size:
        raise UserError(
            f"a clip of {list(tokens.shape)} ids: expected a multiple of {size}, {grid} x {grid} codes and an end each"
        )
    frames = tokens.astype(np.int64).reshape(-1, size)
    codes, ends = frames[:, :-1] - ids.offset, frames[:, -1]
    wanted = np.full(len(frames), ids.eof)
    wanted[-1] = ids.eov
    for frame in np.flatnonzero(ends != wanted)[:1]:
        name = "eov" if frame == len(frames) - 1 else "eof"
        raise UserError(
            f"frame {frame + 1} of {len(frames)} ({grid} x {grid} codes) ends with id {ends[frame]}, not with "
            f"{name}={wanted[frame]}"
        )
    for at in np.flatnonzero((codes < 0) | (codes >= ids.codebook))[:1]:
        frame, place = divmod(int(at), size - 1)
        raise UserError(
            f"frame {frame + 1}, place {place + 1}: id {codes.flat[at] + ids.offset} is no code; those are "
            f"{ids.offset}..{ids.eof - 1}"
        )
    return codes.astype(np.int32).reshape(-1, grid, grid)


def vision_span(codes: np.ndarray, ids: VisionIds, tokenizer: Tokenizer) -> np.ndarray:
    """int32: a clip with `<vision>` before and `</vision>` after it, as it stands beside text outside conversations.

    UserError as `clip_ids`, and for a tokenizer whose ids reach into those of the codes.
    """
    check_apart(ids, tokenizer)
    opening, closing = tokenizer.encode_batch([OPENING, CLOSING])
    return np.concatenate([opening, clip_ids(codes, ids), closing])


def spans_of(tokens: np.ndarray, ids: VisionIds) -> list[tuple[int, int]]:
    """Where the clips of a mixed stream lie, each from its first code to after its eov; `frames_of` reads each.

    UserError for a clip without eov, and for ids beyond those of the codes.
    """
    for at in np.flatnonzero(tokens > ids.eov)[:1]:
        raise UserError(f"place {at}: id {tokens[at]} is neither text (below {ids.offset}) nor vision (to {ids.eov})")
    vision = np.concatenate([[False], tokens >= ids.offset, [False]])
    edges = np.flatnonzero(vision[1:] != vision[:-1])
    spans = []
    for begin, end in edges.reshape(-1, 2).tolist():
        ends = begin + 1 + np.flatnonzero(tokens[begin:end] == ids.eov)
        if not len(ends) or ends[-1] != end:
            raise UserError(f"the clip at places {begin}..{end - 1} has no eov={ids.eov} at its end")
        begins = [begin, *ends[:-1].tolist()]
        spans += list(zip(begins, ends.tolist(), strict=True))
    return spans


def check_apart(ids: VisionIds, tokenizer: Tokenizer) -> None:
    """UserError where ids of the tokenizer would be taken for codes."""
    if tokenizer.vocabulary_size > ids.offset:
        raise UserError(
            f"offset={ids.offset}: the tokenizer has {tokenizer.vocabulary_size} ids, which codes must come after; "
            f"raise model.vocabulary"
        )


def without_clips(text: str) -> str:
    """A text from outside, where the character that stands for a clip has no business."""
    return text.replace(CLIP, "")


class VisionTemplate(Template):
    """A template of text for turns that hold clips, each as one `CLIP` in a turn's text.

    What is rendered is `<vision>`, the clip, `</vision>`; what stands around them is tokenised as it is without them.
    `encode` and `prompt` give -1 for each clip, which `spliced` fills in.
    """

    def __init__(self, template: Template, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._template = template
        self.name, self.hash = template.name, template.hash

    def ends(self) -> frozenset[int]:
        return self._template.ends()

    def check(self) -> None:
        self._template.check()

    def parts(self, turns: Sequence[Turn], waiting: bool = False) -> list[Part] | Refused:
        shown = f"{OPENING}{CLIP}{CLOSING}"
        found = self._template.parts([replace(turn, text=turn.text.replace(CLIP, shown)) for turn in turns], waiting)
        if isinstance(found, Refused):
            return found
        return [Part(tuple(_cut(part.pieces)), part.answer) for part in found]

    def drawing(self, turns: Sequence[Turn]) -> np.ndarray:
        """int32: `prompt`, and what an answer that is a clip begins with: its first code comes next.

        turns: end with the user's. UserError as `prompt`.
        """
        [encoded] = self.encode([[*turns, Turn("assistant", CLIP)]])
        if isinstance(encoded, Refused):
            raise UserError(encoded.detail)
        [*_, last] = np.flatnonzero(encoded.ids == _HERE)
        return encoded.ids[:last]

    def _begins_anew(self) -> bool:
        return self._template._begins_anew()


def spliced(encoded: Encoded, clips: Sequence[np.ndarray]) -> Encoded:
    """With the ids of clips (`clip_ids`) in their places, in order; those of an answer are answers.

    ValueError for another number of clips than of places.
    """
    places = np.flatnonzero(encoded.ids == _HERE)
    if len(places) != len(clips):
        raise ValueError(f"{len(clips)} clips for {len(places)} places")
    ids, answer, done = [], [], 0
    for place, clip in zip(places.tolist(), clips, strict=True):
        ids += [encoded.ids[done:place], clip]
        answer += [encoded.answer[done:place], np.full(len(clip), encoded.answer[place])]
        done = place + 1
    return Encoded(
        np.concatenate([*ids, encoded.ids[done:]]).astype(np.int32), np.concatenate([*answer, encoded.answer[done:]])
    )


def _cut(pieces: Sequence[str | int]) -> list[str | int]:
    """Texts cut where a clip stands."""
    found: list[str | int] = []
    for piece in pieces:
        if isinstance(piece, int):
            found.append(piece)
            continue
        for number, text in enumerate(piece.split(CLIP)):
            found += [_HERE] * (number > 0) + [text] * bool(text)
    return found
