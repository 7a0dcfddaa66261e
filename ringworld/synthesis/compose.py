"""Long examples from a document's chunks and the pairs asked about them: text first, then questions and answers.

- A document is cut into windows of adjacent chunks, as many as fit with their questions, without overlap: each chunk,
  and so each pair, is in one window. A window with fewer than `least_pairs` pairs makes no example.
- Which pairs are asked is drawn by depth: one from each of as many equal parts of the window as pairs are wanted. They
  are asked in random order, so the place of a question in the conversation says nothing about where its answer stands.
- Distractors are chunks of the same document from outside the window, most like an asked one, without any answer.
- The first user turn is the text and then the first question, as in LWM (Liu et al. 2024, arXiv:2402.08268, 3.3).
- Every draw is a hash of the seed and of what it decides: the same on any machine.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np

from ringworld.data.assemble import BUCKETS, vector, word_counts
from ringworld.data.conversations import Turn
from ringworld.data.words import Words, words
from ringworld.errors import UserError
from ringworld.synthesis.records import Chunk, Pair, Split
from ringworld.synthesis.verify import stands_in

# Why a pair is in no example.
TOO_FEW, TOO_LONG, NOT_DRAWN = "too few pairs in the window", "longer than the sequence", "not drawn"

_SAMPLED = 64  # pairs, to know about how many tokens one takes
_DIMENSIONS = 1024  # of a chunk's vector of words
_BETWEEN = "\n\n"  # around a distractor, and before the first question

Measure = Callable[[Sequence[Turn]], int]


@dataclass(frozen=True)
class Composition:
    """How examples are made. sequence: the most tokens of one. distractors: chunks of each from elsewhere."""

    sequence: int
    pairs_per_example: int = 4
    least_pairs: int = 1
    distractors: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sequence < 1:
            raise UserError(f"sequence={self.sequence}: an example has at least one token")
        if not 1 <= self.least_pairs <= self.pairs_per_example:
            raise UserError(
                f"least_pairs={self.least_pairs}, pairs_per_example={self.pairs_per_example}: "
                "1 or more, and no more than pairs_per_example"
            )
        if self.distractors < 0:
            raise UserError(f"distractors={self.distractors}: chunks of each example, 0 or more")


@dataclass(frozen=True)
class Asked:
    """A kept pair. number: of its chunk. start: where in the chunk's text its answer stands; None: not told."""

    number: int
    pair: Pair
    prompt_sha256: str
    start: int | None = None


@dataclass(frozen=True)
class Placed:
    """A pair in an example. depth: the share of the text, in characters, before the place of its answer."""

    number: int
    depth: float
    prompt_sha256: str


@dataclass(frozen=True)
class Distractor:
    """A chunk from elsewhere, put after chunk `after` (None: before the first) because it is like chunk `like`."""

    number: int
    start: int
    end: int
    after: int | None
    like: int


@dataclass(frozen=True)
class Example:
    """turns: user and assistant by turns. tokens: of all of them under the template. pairs: in the order asked."""

    turns: tuple[Turn, ...]
    document: str
    sha256: str
    split: Split
    chunks: tuple[tuple[int, int, int], ...]
    pairs: tuple[Placed, ...]
    distractors: tuple[Distractor, ...]
    tokens: int

    def record(self) -> dict[str, Any]:
        """As it is written: `messages` as in any file of conversations, `split`, and all of where it is from."""
        return {
            "messages": [{"role": turn.role, "content": turn.text} for turn in self.turns],
            "split": self.split,
            "origin": {
                "document": self.document,
                "sha256": self.sha256,
                "chunks": [list(chunk) for chunk in self.chunks],
                "pairs": [vars(pair) for pair in self.pairs],
                "distractors": [vars(chunk) for chunk in self.distractors],
            },
        }


@dataclass(frozen=True)
class Composed:
    """examples: in the order of the document. unused: pairs that are in none, by reason, also those not drawn."""

    examples: tuple[Example, ...] = ()
    unused: Mapping[str, int] = field(default_factory=dict)


def examples(chunks: Sequence[Chunk], asked: Iterable[Asked], how: Composition, measure: Measure) -> Composed:
    """The examples of one document.

    chunks: all of it, in order. measure: the tokens of a conversation under the template that training uses.
    """
    pairs: dict[int, list[Asked]] = {}
    for one in asked:
        pairs.setdefault(one.number, []).append(one)
    document = _Document(chunks, pairs, how, measure)
    made: list[Example] = []
    unused: Counter[str] = Counter()
    begin = 0
    while begin < len(chunks):
        end, example, reason = document.example(begin)
        here = sum(len(pairs.get(chunk.number, ())) for chunk in chunks[begin:end])
        if example is not None:
            made.append(example)
        unused[reason] += here - (len(example.pairs) if example is not None else 0)
        begin = end
    return Composed(tuple(made), dict(sorted((+unused).items())))


class _Document:
    """A document's chunks and pairs, and what is worked out about them once."""

    def __init__(
        self, chunks: Sequence[Chunk], pairs: Mapping[int, Sequence[Asked]], how: Composition, measure: Measure
    ) -> None:
        self._chunks, self._pairs, self._how, self._measure = chunks, pairs, how, measure
        self._before = [0, *accumulate(chunk.tokens for chunk in chunks)]
        # Room that a window leaves: for its questions with their answers, and for its distractors.
        some = [one.pair for asked in pairs.values() for one in asked][:_SAMPLED]
        turns = [turn for pair in some for turn in (Turn("user", pair.question), Turn("assistant", pair.answer))]
        asking = measure(turns) * how.pairs_per_example // len(some) if some else 0
        self._reserve = asking + how.distractors * self._before[-1] // max(1, len(chunks))
        self._vectors: np.ndarray | None = None
        self._read: dict[int, Words] = {}

    def example(self, begin: int) -> tuple[int, Example | None, str]:
        """(end, example, reason): of the window that begins there; the reason why its other pairs are unused."""
        most = self._how.sequence
        end = max(begin + 1, self._end(begin, most - self._reserve))
        made = self._made(begin, end, self._how.pairs_per_example)
        if made is not None and made.tokens < most:  # what was reserved may be more than was needed
            further = self._end(end, most - made.tokens)
            longer = self._made(begin, further, self._how.pairs_per_example) if further > end else None
            if longer is not None and longer.tokens <= most:
                end, made = further, longer
        while made is not None and made.tokens > most and end - begin > 1:
            fitting = self._end(begin, self._before[end] - self._before[begin] - (made.tokens - most))
            end = max(begin + 1, min(end - 1, fitting))
            made = self._made(begin, end, self._how.pairs_per_example)
        while made is not None and made.tokens > most:
            if len(made.pairs) == self._how.least_pairs:
                return end, None, TOO_LONG
            made = self._made(begin, end, len(made.pairs) - 1)
        return end, made, TOO_FEW if made is None else NOT_DRAWN

    def _end(self, begin: int, room: int) -> int:
        """The chunk before which `room` tokens from `begin` on are full."""
        return max(begin, bisect_right(self._before, self._before[begin] + room) - 1)

    def _made(self, begin: int, end: int, pairs: int) -> Example | None:
        """The example of a window with at most so many pairs, however long it becomes; None for too few pairs."""
        window = self._chunks[begin:end]
        # Where in its chunk each answer stands; of one that is not told, the middle.
        places = {
            one: len(chunk.text) // 2 if one.start is None else one.start
            for chunk in window
            for one in self._pairs.get(chunk.number, ())
        }
        if len(places) < self._how.least_pairs:
            return None
        drawn = self._draw(begin, end, places, pairs)
        text, begins, distractors = self._text(begin, end, drawn)
        turns: list[Turn] = []
        for one in drawn:
            asked = one.pair.question if turns else f"{text}{_BETWEEN}{one.pair.question}"
            turns += [Turn("user", asked), Turn("assistant", one.pair.answer)]
        return Example(
            turns=tuple(turns),
            document=window[0].document,
            sha256=window[0].sha256,
            split=window[0].split,
            chunks=tuple((chunk.number, chunk.start, chunk.end) for chunk in window),
            pairs=tuple(
                Placed(one.number, round((begins[one.number] + places[one]) / len(text), 6), one.prompt_sha256)
                for one in drawn
            ),
            distractors=tuple(distractors),
            tokens=self._measure(turns),
        )

    def _draw(self, begin: int, end: int, places: Mapping[Asked, int], most: int) -> list[Asked]:
        """Pairs in the order in which they are asked: one of each part of the window, then others of any part."""
        count = min(most, len(places))
        first, length = self._chunks[begin].start, self._chunks[end - 1].end - self._chunks[begin].start
        shuffled = sorted(places, key=lambda one: self._hash("draw", one.number, one.prompt_sha256))
        parts: dict[int, Asked] = {}
        for one in shuffled:
            parts.setdefault((self._chunks[one.number].start - first + places[one]) * count // length, one)
        spread = set(parts.values())
        others = [one for one in shuffled if one not in spread]
        return sorted(
            [*spread, *others[: count - len(spread)]],
            key=lambda one: self._hash("order", one.number, one.prompt_sha256),
        )

    def _text(self, begin: int, end: int, drawn: Sequence[Asked]) -> tuple[str, dict[int, int], list[Distractor]]:
        """The text of a window with its distractors, where in it each chunk begins, and the distractors in order."""
        distractors = self._distractors(begin, end, drawn)
        found = list(zip(self._gaps(begin, end, len(distractors)), distractors, strict=True))
        text = ""
        begins: dict[int, int] = {}
        put: list[Distractor] = []
        for index in range(begin, end + 1):
            for one, like in [distractor for gap, distractor in found if gap == index]:
                text = _BETWEEN.join([*([text.rstrip()] if text else []), one.text.strip(), ""])
                after = None if index == begin else self._chunks[index - 1].number
                put.append(Distractor(one.number, one.start, one.end, after, like))
            if index < end:
                chunk = self._chunks[index]
                said = chunk.text if text else chunk.text.lstrip()
                begins[chunk.number] = len(text) - (len(chunk.text) - len(said))
                text += said
        return text.rstrip(), begins, put

    def _gaps(self, begin: int, end: int, count: int) -> list[int]:
        """Before which chunks (or at the end) so many distractors stand: any order of all is as likely as any other.

        So no part of the text has more of them than another, and the depths of what is asked stay even.
        """
        slots = sorted(range(end - begin + count), key=lambda slot: self._hash("slot", begin, slot))[:count]
        return [begin + slot - before for before, slot in enumerate(sorted(slots))]

    def _distractors(self, begin: int, end: int, drawn: Sequence[Asked]) -> list[tuple[Chunk, int]]:
        """Chunks from outside the window, each with the number of the asked one that it is most like, by turns."""
        outside = np.array([*range(begin), *range(end, len(self._chunks))], np.int64)
        if not self._how.distractors or not len(outside):
            return []
        answers = [words(one.pair.answer) for one in drawn]
        numbers = list(dict.fromkeys(one.number for one in drawn))
        ranked = [iter(self._like(number, outside)) for number in numbers]
        taken: dict[int, int] = {}
        for turn in range(self._how.distractors):
            for index in ranked[turn % len(ranked)]:
                if index not in taken and not self._holds(index, answers):
                    taken[index] = numbers[turn % len(ranked)]
                    break
        return [(self._chunks[index], like) for index, like in taken.items()]

    def _like(self, number: int, others: np.ndarray) -> list[int]:
        """The others, int64 [chunks], from the most similar to chunk `number` on: the cosine of TF-IDF vectors."""
        if self._vectors is None:
            counted = [word_counts(chunk.text) for chunk in self._chunks]
            holders = np.bincount(np.concatenate([bucket for bucket, _ in counted]), minlength=BUCKETS)
            self._vectors = np.stack([vector(*found, holders, len(counted), _DIMENSIONS) for found in counted])
        # Rounded, so that the last bits of a sum decide nothing.
        similarity = np.round(self._vectors[others] @ self._vectors[number], 5)
        return others[np.argsort(-similarity, kind="stable")].tolist()

    def _holds(self, index: int, answers: Iterable[Words]) -> bool:
        """Whether any of the answers stands in a chunk."""
        if index not in self._read:
            self._read[index] = words(self._chunks[index].text)
        return any(len(stands_in(self._read[index], answer)) for answer in answers)

    def _hash(self, *drawn: object) -> int:
        first = self._chunks[0]
        told = "/".join(map(str, (self._how.seed, first.sha256, first.document, *drawn)))
        return int.from_bytes(hashlib.sha256(told.encode("utf-8", "surrogatepass")).digest()[:8], "big")
