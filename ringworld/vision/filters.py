"""Which clips are worth training on: rules with bounds, each with a reason that is counted. Pure.

- `judge` decides on one clip; `repeated` and `duplicates` on all of them at once, by what they say and look like.
- Bounds that others have published: a side of at least 256 pixels (LWM, of LAION-2B-en and COYO-700M), sides of a ratio
  of at most 3, captions of at most 256 words and 1,000 characters that no more than 10 images share (COYO-700M, whose
  least is 3 words; ALIGN has the same ratio and the same 10), captions of at least 5 characters (LAION-5B). The bounds
  on stillness, on the length of videos and on the distance of looks are our own.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ringworld.data.conversations import Turn
from ringworld.errors import UserError
from ringworld.vision.clips import SUFFIXES, Clip
from ringworld.vision.inspection import FRAMES, Seen
from ringworld.vision.looks import BITS, alike
from ringworld.vision.pixels import Refused

REASONS = (
    "too small", "aspect", "too short", "static", "caption missing", "caption empty", "caption too short",
    "caption too long", "caption without words", "caption is a file name", "caption is an address",
    "caption repeated", "duplicate", "near duplicate",
)  # fmt: skip

_ADDRESS = re.compile(r"(?:https?://|ftp://|www\.)\S+|\S+\.(?:com|org|net)(?:/\S*)?", re.IGNORECASE)
_FILE = re.compile(
    rf"[^\n]{{0,200}}(?:{'|'.join(map(re.escape, (*SUFFIXES, '.svg', '.heic')))})"
    r"|(?:IMG|DSC[NF]?|PICT?|MVI|VID|PXL|GOPR|P\d)[-_]?\d{3,}[-_\d]*|Screenshot[-_ ]?[\d][\d._ -]*|[0-9a-f]{16,}",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class CaptionRules:
    """characters, words: at least and at most; repeated: clips that may share a caption; None: any number."""

    characters: tuple[int, int] = (5, 1000)
    words: tuple[int, int] = (1, 256)
    repeated: int | None = 10

    def __post_init__(self) -> None:
        for name in ("characters", "words"):
            bounds = getattr(self, name)
            if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1]:
                raise UserError(f"{name}={bounds!r}: give the least and the most, such as 1, 256")
        if self.repeated is not None and self.repeated < 1:
            raise UserError(f"repeated={self.repeated}: at least 1, or null for any number")


@dataclass(frozen=True)
class Filters:
    """minimum_side: pixels of the shorter side. aspect: longer side over shorter, at most. seconds: of a video, at
    least.

    still: the share of a video's frames looked at that may be as the one before; 1: a static one stays. distance: bits
    of 64 in which the looks of near duplicates differ at most; None: only equal files are duplicates.
    """

    minimum_side: int = 256
    aspect: float = 3.0
    seconds: float = 0.5
    still: float = 0.9
    distance: int | None = 4
    caption: CaptionRules = field(default_factory=CaptionRules)

    def __post_init__(self) -> None:
        if self.minimum_side < 1:
            raise UserError(f"minimum_side={self.minimum_side}: pixels, at least 1")
        if not self.aspect >= 1:
            raise UserError(f"aspect={self.aspect}: the longer side over the shorter, at least 1")
        if not 0 <= self.still <= 1:
            raise UserError(f"still={self.still}: a share, from 0 to 1")
        if self.distance is not None and not 0 <= self.distance < BITS // 4:
            raise UserError(f"distance={self.distance}: bits of {BITS}, at least 0 and below {BITS // 4}, or null")


def judge(clip: Clip, seen: Seen, filters: Filters) -> Refused | None:
    """Why a clip is left out for what it alone is; None for one that may stay."""
    short, long = sorted((seen.width, seen.height))
    if short < filters.minimum_side:
        return Refused("too small", f"{seen.width} x {seen.height}, minimum_side={filters.minimum_side}")
    if long > filters.aspect * short:
        return Refused("aspect", f"{seen.width} x {seen.height}, aspect={filters.aspect}")
    if seen.seconds is not None and seen.seconds < filters.seconds:
        return Refused("too short", f"{seen.seconds:.2f} s, seconds={filters.seconds}")
    if seen.still is not None and seen.still > filters.still:
        return Refused("static", f"{seen.still:.0%} of {FRAMES} frames are as the one before")
    return None if clip.conversation else judge_caption(clip.caption, filters.caption)


def judge_caption(caption: str | None, rules: CaptionRules) -> Refused | None:
    """caption: in form (`ringworld.vision.rows.caption_of`)."""
    if caption is None:
        return Refused("caption missing")
    if not caption:
        return Refused("caption empty")
    for pattern, reason in ((_ADDRESS, "caption is an address"), (_FILE, "caption is a file name")):
        if pattern.fullmatch(caption):
            return Refused(reason, caption[:200])
    if not any(character.isalpha() for character in caption):
        return Refused("caption without words", caption[:200])
    for amount, bounds, unit in (
        (len(caption), rules.characters, "characters"),
        (len(caption.split()), rules.words, "words"),
    ):
        if amount < bounds[0]:
            return Refused("caption too short", f"{amount} {unit}, at least {bounds[0]}")
        if amount > bounds[1]:
            return Refused("caption too long", f"{amount} {unit}, at most {bounds[1]}")
    return None


def repeated(captions: Sequence[str | None], contents: Sequence[str], most: int | None) -> np.ndarray:
    """bool [n]: whether a caption, capitals aside, is that of more than `most` different contents (their digests).

    Such a text says what a page always says, and not what is seen; None: a clip without one.
    """
    folded = [None if caption is None else caption.casefold() for caption in captions]
    if most is None:
        return np.zeros(len(folded), bool)
    pairs = {(text, digest) for text, digest in zip(folded, contents, strict=True) if text is not None}
    counts = Counter(text for text, _ in pairs)
    return np.array([text is not None and counts[text] > most for text in folded], bool)


def text_of(caption: str | None, conversation: Sequence[Turn]) -> str:
    """What is said, as one string that is equal where all of it is."""
    return json.dumps([caption, [[turn.role, turn.text] for turn in conversation]])


@dataclass(frozen=True, eq=False)
class Same:
    """of: int64 [n], for each clip the one it is dropped for, itself where it stays. equal: bool [n], whether that one
    has the same content; else it only looks alike."""

    of: np.ndarray
    equal: np.ndarray


def duplicates(
    names: Sequence[str],
    digests: Sequence[str],
    texts: Sequence[str],
    looks: Sequence[tuple[int, ...]],
    sizes: Sequence[int],
    distance: int | None,
) -> Same:
    """Copies with the same text, and clips that look like a larger one. Which stays depends on no order.

    One content with several texts stays with each of them: data sets give a picture several captions and conversations.
    Contents that look alike are decided as contents: all clips of the one that is dropped go. sizes: pixels of a frame.
    looks: of one length for images and another for videos, which are never alike.
    """
    number = len(names)
    of = np.arange(number)
    first: dict[str, int] = {}  # of each content, the clip with the smallest name
    copies: dict[tuple[str, str], int] = {}
    for one in sorted(range(number), key=lambda one: names[one]):
        first.setdefault(digests[one], one)
        of[one] = copies.setdefault((digests[one], texts[one]), one)
    equal = of != np.arange(number)
    if distance is None:
        return Same(of, equal)
    for length in sorted({len(look) for look in looks}):
        contents = [one for one in sorted(first.values()) if len(looks[one]) == length]
        found = alike(
            np.array([looks[one] for one in contents], np.uint64).reshape(len(contents), length),
            [sizes[one] for one in contents],
            [names[one] for one in contents],
            distance,
        )
        stays = {digests[one]: contents[kept] for one, kept in zip(contents, found.tolist(), strict=True)}
        for one in range(number):
            kept = stays.get(digests[one])
            if kept is not None and digests[kept] != digests[one]:
                of[one], equal[one] = kept, False
    return Same(of, equal)
