"""Single-needle retrieval: one sentence about a city's magic number, hidden in held-out text, asked for at its end.

The sentence and the question are LWM's. Its list of cities held 69 distinct names among 100, so that needles collided;
these are all distinct. Lengths are exact in the model's own tokens, and the number is tokenized alike in sentence and
answer, so that retrieval is copying.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ringworld.data.token_store import TokenStore
from ringworld.data.tokenizers import Tokenizer
from ringworld.evaluate.recipe import NeedleConfig
from ringworld.evaluate.scorer import Rows

_CITY_NAMES = (
    "Accra Addis-Ababa Algiers Almaty Amman Amsterdam Ankara Athens Auckland Baghdad Baku Bamako Bangkok Barcelona "
    "Beirut Belgrade Berlin Bogota Boston Brisbane Brussels Bucharest Budapest Cairo Calgary Caracas Casablanca "
    "Chennai Chicago Copenhagen Dakar Damascus Delhi Denver Dhaka Doha Dubai Dublin Durban Edinburgh Geneva Glasgow "
    "Guayaquil Hamburg Hanoi Harare Havana Helsinki Houston Istanbul Jakarta Kabul Kampala Karachi Kathmandu "
    "Khartoum Kigali Kingston Krakow Kyiv Lagos Lahore Lausanne Lima Lisbon Ljubljana London Luanda Lusaka Lyon "
    "Madrid Manila Maputo Marseille Melbourne Miami Milan Minsk Montreal Mumbai Munich Nairobi Naples Osaka Oslo "
    "Ottawa Palermo Paris Perth Prague Quito Reykjavik Riga Rome Santiago Seoul Stockholm Tallinn Tunis Vienna "
)
CITIES = tuple(_CITY_NAMES.split())
SENTENCE = "\nThe special magic {city} number is:"  # then a space and the number
SENTENCE_END = ".\n"
QUESTION = "\nWhat is the special magic {city} number? The special magic {city} number is:"
BOUNDARY_REACH = 64  # tokens that a needle may move towards the beginning to follow the end of a sentence


@dataclass(frozen=True)
class Prompt:
    """One question. tokens int32 [length + 1]: the last `answer` of them are the number; depth as asked for."""

    length: int
    depth: float
    city: str
    number: str
    tokens: np.ndarray
    answer: int


@dataclass(frozen=True)
class Cell:
    """One cell of the grid: shares 0..1 of prompts answered exactly and of answer tokens said rightly."""

    length: int
    depth: float
    prompts: int
    exact: float
    digits: float


def needle_prompts(
    config: NeedleConfig, store: TokenStore, tokenizer: Tokenizer, seed: int
) -> tuple[list[Prompt], dict[int, str]]:
    """The grid's prompts over the held-out documents in a row, and the lengths that cannot be asked."""
    need = max(config.lengths) * 4
    pieces, have = [], 0
    for document in store.index.documents("held_out").tolist():
        length = int(store.index.tokens[document]) - 1  # without its end-of-document token
        pieces.append(store.read(document, 0, length))
        have += length
        if have >= need:
            break
    ends: dict[int, bool] = {}

    def ends_sentence(token: int) -> bool:
        if token not in ends:
            ends[token] = tokenizer.decode(np.array([token])).endswith((".", "\n", "!", "?"))
        return ends[token]

    haystack = np.concatenate(pieces) if pieces else np.zeros(0, np.int64)
    return make_prompts(config, haystack, tokenizer.encode, ends_sentence, seed)


def make_prompts(
    config: NeedleConfig,
    haystack: np.ndarray,
    encode: Callable[[str], np.ndarray],
    ends_sentence: Callable[[int], bool],
    seed: int,
) -> tuple[list[Prompt], dict[int, str]]:
    """Prompts of the whole grid, and for each length that cannot be asked, why.

    haystack: int [tokens] of held-out documents in a row; it is never repeated to make a longer one. encode: the
    tokenizer, text to ids. ends_sentence: whether a token id may stand before the needle. The same seed gives the same
    prompts.
    """
    prompts: list[Prompt] = []
    refused: dict[int, str] = {}
    for length in config.lengths:
        made = [
            _make(length, depth, haystack, encode, ends_sentence, np.random.default_rng((seed, length, index, turn)))
            for index, depth in enumerate(config.depths)
            for turn in range(config.rounds)
        ]
        reasons = [item for item in made if isinstance(item, str)]
        if reasons:
            refused[length] = reasons[0]
        prompts += [item for item in made if isinstance(item, Prompt)] if not reasons else []
    return prompts, refused


def _make(length, depth, haystack, encode, ends_sentence, rng: np.random.Generator) -> Prompt | str:
    city, number = CITIES[rng.integers(len(CITIES))], str(rng.integers(1_000_000, 10_000_000))
    value = encode(f" {number}")
    needle = np.concatenate([encode(SENTENCE.format(city=city)), value, encode(SENTENCE_END)])
    question = encode(QUESTION.format(city=city))
    room = length + 1 - len(needle) - len(question) - len(value)
    if room < length // 4:
        return f"question and needle take {length + 1 - room} of {length} tokens in this tokenizer"
    if room > len(haystack):
        return f"the held-out documents have {len(haystack)} tokens, the prompt needs {room} of them"
    start = rng.integers(len(haystack) - room + 1)
    text = haystack[start : start + room]
    place = round(depth * room)
    for candidate in range(place, max(place - BOUNDARY_REACH, 0), -1):
        if ends_sentence(int(text[candidate - 1])):
            place = candidate
            break
    tokens = np.concatenate([text[:place], needle, text[place:], question, value]).astype(np.int32)
    return Prompt(length, depth, city, number, tokens, len(value))


def pack_prompts(
    prompts: Sequence[np.ndarray], sequence: int, answers: Sequence[int] | None = None
) -> tuple[Rows, list[tuple[int, int]]]:
    """Prompts, each int32 [length + 1], as segments of rows of `sequence` slots, longest first; and (row, slot) of each
    in the order given.

    answers: how many of a prompt's last tokens are asked for, of each; None: all are. What is not asked for has no
    target (-1).
    """
    places: list[tuple[int, int]] = [(0, 0)] * len(prompts)
    used: list[int] = []
    for index in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
        length = len(prompts[index]) - 1
        row = next((row for row, filled in enumerate(used) if filled + length <= sequence), len(used))
        if row == len(used):
            used.append(0)
        places[index] = (row, used[row])
        used[row] += length
    rows = Rows(*(np.zeros((len(used), sequence), np.int32) for _ in range(4)))
    rows.targets[:] = -1
    for number, (tokens, (row, slot)) in enumerate(zip(prompts, places, strict=True), start=1):
        end = slot + len(tokens) - 1
        asked = len(tokens) - 1 if answers is None else answers[number - 1]
        span = slice(slot, end)
        rows.tokens[row, span], rows.targets[row, end - asked : end] = tokens[:-1], tokens[len(tokens) - asked :]
        rows.segments[row, span], rows.positions[row, span] = number, np.arange(len(tokens) - 1)
    return rows, places


def grade(prompts: Sequence[Prompt], places: Sequence[tuple[int, int]], hit: np.ndarray) -> list[Cell]:
    """The grid's cells from hit bool [rows, sequence] of the packed prompts."""
    answers: dict[tuple[int, float], list[np.ndarray]] = {}
    for prompt, (row, offset) in zip(prompts, places, strict=True):
        end = offset + prompt.length
        answers.setdefault((prompt.length, prompt.depth), []).append(hit[row, end - prompt.answer : end])
    return [
        Cell(length, depth, len(said), float(np.mean([a.all() for a in said])), float(np.concatenate(said).mean()))
        for (length, depth), said in answers.items()
    ]
