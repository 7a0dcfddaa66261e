"""Documents to look things up in: windows of text with needles and questions, or with a passage that comes again.

A small model does not learn from text alone to look anything up. Needles teach it with sentence, question and kind of
number of the test (`ringworld.evaluate.needle`), of other cities and numbers each time. Copying a passage is the same
skill, with hundreds of tokens to learn it from instead of five; every other passage is of random tokens, which nothing
but copying predicts. What is learned first, in the shortest rows, is such passages alone.

A document is (ids, marks), a mark for each token that the loss counts, and ends with two end-of-text ids, of which the
first counts: where documents of a row see each other, the other separates them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ringworld.data.tokenizers import Tokenizer
from ringworld.evaluate.needle import CITIES, QUESTION, SENTENCE, SENTENCE_END

ROOM = 1.5  # tokens of a document with needles, at least, for each token of needles and questions
NUMBERS = 20_000


@dataclass(frozen=True, eq=False)
class Phrases:
    """Ids of everything that is put into text: by city the sentence before its number and the question, what ends a
    sentence, and numbers. ordinary: int [n], the ids of which random passages are made."""

    sentences: Sequence[np.ndarray]
    questions: Sequence[np.ndarray]
    end: np.ndarray
    numbers: Sequence[np.ndarray]
    ordinary: np.ndarray
    end_of_text: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, seed: int) -> Phrases:
        rng = np.random.default_rng((seed, 2))
        numbers = [f" {magic_number(rng)}" for _ in range(NUMBERS)]
        special = [given for given in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) if given is not None]
        return cls(
            tokenizer.encode_batch([SENTENCE.format(city=city) for city in CITIES]),
            tokenizer.encode_batch([QUESTION.format(city=city) for city in CITIES]),
            tokenizer.encode(SENTENCE_END),
            tokenizer.encode_batch(numbers),
            np.setdiff1d(np.arange(tokenizer.vocabulary_size), special),
            tokenizer.eos_id,
        )

    @cached_property
    def pair(self) -> int:
        """Tokens of a needle and its question, the longest ones."""
        longest = [max(map(len, part)) for part in (self.sentences, self.questions, self.numbers)]
        return longest[0] + longest[1] + 2 * (longest[2] + len(self.end))


def needle_document(
    text: np.ndarray, length: int, phrases: Phrases, counted: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(ids, marks) of `length` tokens and one: text with needles of different cities, each asked for once, later.

    text: int [at least length]. In half of the documents all questions stand at the end, as in the test, and needles
    at any depth, often at the very ends; in the others a question stands anywhere after its needle. marks: 1 for the
    tokens of answers, and for this share of the text's tokens.
    """
    most = min(len(CITIES), max(1, int(length / (ROOM * phrases.pair))))
    # The test has one needle; most is learned of many.
    cities = rng.permutation(len(CITIES))[: 1 if rng.integers(2) else int(rng.integers(1, most + 1))]
    at_end = bool(rng.integers(2))
    put: list[tuple[float, np.ndarray, np.ndarray]] = []
    for number, city in enumerate(cities.tolist()):
        value = phrases.numbers[int(rng.integers(len(phrases.numbers)))]
        needle = np.concatenate([phrases.sentences[city], value, phrases.end])
        asked = np.concatenate([phrases.questions[city], value, phrases.end])
        marks = np.zeros(len(asked), np.int32)
        marks[len(phrases.questions[city]) : len(asked) - len(phrases.end)] = 1
        first, second = (_depth(rng), 2.0 + number) if at_end else sorted(rng.random(2))
        put += [(first, needle, np.zeros(len(needle), np.int32)), (second, asked, marks)]
    taken = sum(len(ids) for _, ids, _ in put)
    room = length - 1 - taken
    seen = (rng.random(room) < counted).astype(np.int32)
    ids, marks, used = [], [], 0
    for place, piece, answer in sorted(put, key=lambda item: item[0]):
        end = round(min(place, 1.0) * room)
        ids += [text[used:end], piece]
        marks += [seen[used:end], answer]
        used = end
    ids += [text[used:room], np.full(2, phrases.end_of_text)]
    marks += [seen[used:], np.array([1, 0])]
    return np.concatenate(ids), np.concatenate(marks)


def _depth(rng: np.random.Generator) -> float:
    """0..1, and each end as often as a tenth between them: nothing drawn evenly ever hits an end, where the test asks
    too, and a needle right before its question was the one that models missed."""
    return float(np.clip(rng.uniform(-0.1, 1.1), 0.0, 1.0))


def passage_document(
    text: np.ndarray, length: int, phrases: Phrases, counted: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(ids, marks) of `length` tokens and one: text in which a passage comes again and again, at any distance.

    The passage has a sixteenth to a quarter of the tokens, its copies have about three quarters; in every other
    document, by chance, it is of random tokens. Arguments as in `needle_document`. marks: 1 for every copy but the
    first one and but its first token, and for the share `counted` of the text.
    """
    size = max(2, int(length * rng.uniform(1 / 16, 1 / 4)))
    copies = max(2, int(0.75 * length / size))
    room = length - 1 - copies * size
    passage = text[room : room + size] if rng.integers(2) else _random(size, phrases, rng)
    copied = np.append(0, np.ones(size - 1, np.int32))
    seen = (rng.random(room) < counted).astype(np.int32)
    ids, marks, used = [], [], 0
    for number, place in enumerate(np.sort(rng.integers(room + 1, size=copies)).tolist()):
        ids += [text[used:place], passage]
        marks += [seen[used:place], copied if number else np.zeros(size, np.int32)]
        used = place
    ids += [text[used:room], np.full(2, phrases.end_of_text)]
    marks += [seen[used:], np.array([1, 0])]
    return np.concatenate(ids), np.concatenate(marks)


def copy_document(length: int, phrases: Phrases, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(ids, marks) of `length` tokens and one: a passage of random tokens, an eighth to a half of them, over and over.

    marks: 1 from its second coming on.
    """
    size = int(rng.integers(length // 8, length // 2 + 1))
    ids = np.append(np.resize(_random(size, phrases, rng), length - 1), np.full(2, phrases.end_of_text))
    marks = np.concatenate([np.zeros(size, np.int32), np.ones(length - size, np.int32), np.zeros(1, np.int32)])
    return ids, marks


def _random(size: int, phrases: Phrases, rng: np.random.Generator) -> np.ndarray:
    return phrases.ordinary[rng.integers(len(phrases.ordinary), size=size)]


def magic_number(rng: np.random.Generator) -> str:
    """A number as the needle test draws them."""
    return str(rng.integers(1_000_000, 10_000_000))
