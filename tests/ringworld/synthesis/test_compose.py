"""Examples fit, tile their document, ask evenly over the depth of their text, and say where all of it is from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from ringworld.data.conversations import Refused, Turn, parse
from ringworld.data.templates import PlainTemplate
from ringworld.data.tokenizers import ByteTokenizer
from ringworld.errors import UserError
from ringworld.synthesis.chunks import chunks_of
from ringworld.synthesis.compose import NOT_DRAWN, TOO_FEW, TOO_LONG, Asked, Composition, Example, examples
from ringworld.synthesis.records import Chunk, Pair
from tests.ringworld.corpus import prose

BYTES = ByteTokenizer()
PLAIN = PlainTemplate(BYTES)


def measure(turns: Sequence[Turn]) -> int:
    [encoded] = PLAIN.encode([turns])
    assert not isinstance(encoded, Refused)
    return len(encoded.ids)


def book(
    name: str = "book.txt", seed: int = 0, sentences: int = 150, pairs: int = 1
) -> tuple[list[Chunk], list[Asked]]:
    """A document whose chunks each hold marked words, at places that differ, and as many pairs that ask for them."""
    rng = np.random.default_rng(seed)
    chunks = chunks_of(name, f"{seed:064x}", "train", prose(seed, sentences), BYTES, 300)
    text, asked = "", []
    for chunk in chunks:
        said, number = chunk.text, chunk.number
        for turn in range(pairs):
            at = int(rng.choice([place for place, letter in enumerate(said) if letter == " "])) + 1
            said = f"{said[:at]}Mark{number:04d}x{turn} {said[at:]}"
        for turn in range(pairs):
            answer = f"Mark{number:04d}x{turn}"
            pair = Pair(f"Which mark {turn} is in part {number} of it?", answer)
            asked.append(Asked(number, pair, f"{number:032x}{turn:032x}", said.index(answer)))
        text += said
        chunks[number] = replace(chunk, start=len(text) - len(said), end=len(text), text=said, tokens=len(said))
    return chunks, asked


def check_depths(example: Example) -> None:
    """Each answer stands where the example says, and questions follow the text as turns."""
    first = example.turns[0].text
    text = first[: first.rindex("\n\n")]
    assert [turn.role for turn in example.turns] == ["user", "assistant"] * len(example.pairs)
    for place, pair in enumerate(example.pairs):
        answer = example.turns[2 * place + 1].text
        assert abs(text.index(answer) - pair.depth * len(text)) <= 1
        assert example.turns[2 * place].text.endswith(f"is in part {pair.number} of it?")
        assert f"{pair.number:032x}" == pair.prompt_sha256[:32]
    assert first[len(text) + 2 :].startswith("Which mark")


def test_windows_tile_the_document_and_every_pair_is_asked_once_at_most() -> None:
    chunks, asked = book(sentences=300, pairs=2)
    how = Composition(sequence=2500, pairs_per_example=5)
    made = examples(chunks, asked, how, measure)
    assert len(made.examples) >= 4
    spans = [span for example in made.examples for span in example.chunks]
    assert spans == [(chunk.number, chunk.start, chunk.end) for chunk in chunks]
    used = [pair.prompt_sha256 for example in made.examples for pair in example.pairs]
    assert len(used) == len(set(used))
    assert made.unused == {NOT_DRAWN: len(asked) - len(used)}
    for example in made.examples:
        check_depths(example)
        window = "".join(chunks[number].text for number, _, _ in example.chunks).strip()
        assert example.turns[0].text.startswith(f"{window}\n\n")
        assert example.tokens == measure(example.turns) <= how.sequence
        following = example.chunks[-1][0] + 1
        if following < len(chunks):  # the next chunk would not have fitted
            assert len(example.pairs) == 5
            assert example.tokens + chunks[following].tokens > how.sequence
    assert examples(chunks, asked[::-1], how, measure) == made
    assert examples(chunks, asked, replace(how, seed=1), measure) != made


@pytest.mark.parametrize("distractors", [0, 2])
def test_depths_are_even_and_the_order_of_questions_tells_nothing_of_them(distractors: int) -> None:
    how = Composition(2600, pairs_per_example=4, distractors=distractors)
    depths, first, last = [], [], []
    for seed in range(60):
        chunks, asked = book(f"book-{seed}", seed, sentences=200)
        for example in examples(chunks, asked, how, measure).examples:
            if len(example.chunks) + distractors < 5:
                continue  # the rest of a document
            found = [pair.depth for pair in example.pairs]
            parts = sorted(int(depth * 4) for depth in found)
            assert len(set(parts)) >= (2 if distractors else 3)  # spread within an example too
            depths += found
            first.append(found[0])
            last.append(found[-1])
    assert len(depths) > 700
    counts = np.histogram(depths, 10, (0, 1))[0]
    # 4 standard deviations of a multinomial; the draw by parts has less.
    assert np.abs(counts - len(depths) / 10).max() <= 4 * np.sqrt(len(depths) * 0.09), counts
    assert abs(np.mean(first) - 0.5) < 4 * 0.29 / np.sqrt(len(first))
    assert abs(np.mean(last) - 0.5) < 4 * 0.29 / np.sqrt(len(last))


def test_a_short_document_is_one_short_example_if_it_has_enough_pairs() -> None:
    chunks, asked = book(sentences=20)
    how = Composition(sequence=8000, pairs_per_example=8, least_pairs=2)
    [example] = examples(chunks, asked, how, measure).examples
    assert len(example.pairs) == len(chunks) == len(asked)
    assert example.tokens < 2000
    few = examples(chunks, asked[:1], how, measure)
    assert (few.examples, few.unused) == ((), {TOO_FEW: 1})
    assert examples(chunks, [], how, measure).unused == {}
    assert examples([], [], how, measure).examples == ()


def test_a_window_is_as_long_as_fits_whatever_its_chunks_are_said_to_have() -> None:
    """Token counts of chunks are near, and the pairs of a window may be fewer than were reckoned with."""
    chunks, asked = book(sentences=300)
    how = Composition(sequence=2500, pairs_per_example=3)
    for share in (0.8, 1.25):
        said = [replace(chunk, tokens=int(chunk.tokens * share)) for chunk in chunks]
        made = examples(said, asked, how, measure)
        assert all(example.tokens <= how.sequence for example in made.examples)
        assert [span[0] for example in made.examples for span in example.chunks] == list(range(len(chunks)))
        assert max(example.tokens for example in made.examples) > how.sequence - 600
    alone = [one for one in asked if one.number in (0, 8, 16, 24, 32)]
    sparse = examples(chunks, alone, replace(how, pairs_per_example=40), measure)
    assert all(example.tokens > how.sequence - 400 for example in sparse.examples[:-1])


def test_what_does_not_fit_loses_pairs_first_and_is_counted_then() -> None:
    chunks, asked = book(sentences=6, pairs=3)
    [chunk] = chunks
    whole = measure([Turn("user", chunk.text)])
    tight = Composition(sequence=whole + 110, pairs_per_example=3)
    [example] = examples(chunks, asked, tight, measure).examples
    assert 1 <= len(example.pairs) < 3
    assert example.tokens <= tight.sequence
    none = examples(chunks, asked, replace(tight, sequence=whole), measure)
    assert (none.examples, none.unused) == ((), {TOO_LONG: 3})


def test_distractors_are_the_likest_chunks_of_the_book_without_the_answers() -> None:
    chunks, asked = book(sentences=240)
    # Far away: one chunk that is all but the asked one, one that would be but holds the answer.
    like = "Queequeg polished the old harpoon of bone beside the copper lantern until the dawn. "
    for number in (1, 20, 25):
        said = like * 3 + (f"{asked[1].pair.answer} " if number == 25 else "") + chunks[number].text
        chunks[number] = replace(chunks[number], text=said, end=chunks[number].start + len(said), tokens=len(said))
    one = [replace(asked[1], start=chunks[1].text.index(asked[1].pair.answer))]
    how = Composition(sequence=3000, pairs_per_example=4, distractors=2)
    [example] = examples(chunks, one, how, measure).examples
    assert len(example.distractors) == 2
    check_depths(example)
    numbers = [found.number for found in example.distractors]
    window = [number for number, _, _ in example.chunks]
    assert 20 in numbers
    assert 25 not in numbers
    assert not set(numbers) & set(window)
    assert {found.like for found in example.distractors} == {1}
    text = example.turns[0].text
    for found in example.distractors:
        said = chunks[found.number].text.strip()
        assert (found.start, found.end) == (chunks[found.number].start, chunks[found.number].end)
        following = 0 if found.after is None else found.after + 1
        if following > 0:
            assert text.index(chunks[following - 1].text.strip()) < text.index(said)
        if following <= window[-1]:
            assert text.index(said) < text.index(chunks[following].text.strip())
    assert example.tokens <= how.sequence
    assert len(examples(chunks[:4], one, how, measure).examples[0].distractors) == 0  # there is no elsewhere


def test_a_record_is_a_conversation_with_its_origin() -> None:
    chunks, asked = book()
    example = examples(chunks, asked, Composition(sequence=2000, distractors=1), measure).examples[0]
    record = example.record()
    assert parse(record) == example.turns
    assert (record["split"], set(record)) == ("train", {"messages", "split", "origin"})
    origin = record["origin"]
    assert set(origin) == {"document", "sha256", "chunks", "pairs", "distractors"}
    assert origin["chunks"][0] == [0, 0, chunks[0].end]
    assert set(origin["pairs"][0]) == {"number", "depth", "prompt_sha256"}
    assert set(origin["distractors"][0]) == {"number", "start", "end", "after", "like"}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"sequence": 0}, "sequence=0"),
        ({"least_pairs": 9}, "least_pairs=9, pairs_per_example=4"),
        ({"distractors": -1}, "distractors=-1"),
    ],
)
def test_what_cannot_be_meant_is_refused(wrong: dict[str, int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        replace(Composition(100), **wrong)
