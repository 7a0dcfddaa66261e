"""Each rule drops what its paper says, and no book; counts agree with a slow and plain reference."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from ringworld.data.quality import GOPHER, Rules, assess, measure, windows
from ringworld.data.repetition import DUPLICATE_NGRAMS, TOP_NGRAMS, WINDOW, repetition
from ringworld.data.words import words
from ringworld.errors import UserError

WEB = replace(GOPHER, sentences=5, no_braces=True, no_lorem_ipsum=True)
CODE = Rules(mean_line=100, alphanumeric=0.25)
STOP = ("the", "be", "to", "of", "and", "that", "have", "with")


def prose(seed: int, count: int, vocabulary: int = 3000) -> str:
    """Sentences over words of three to eight letters, with stop words among them."""
    rng = random.Random(seed)
    known = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 8))) for _ in range(vocabulary)]
    said = [rng.choice(STOP) if rng.random() < 0.3 else rng.choice(known) for _ in range(count)]
    return "\n".join(" ".join(said[at : at + 12]).capitalize() + "." for at in range(0, count, 12))


GOOD = prose(0, 400)


@pytest.mark.parametrize(
    ("text", "rules", "reason"),
    [
        (GOOD, WEB, None),
        (prose(1, 48), GOPHER, "gopher: number of words"),
        (prose(1, 100_100), GOPHER, "gopher: number of words"),
        ("it is so as we do " + prose(2, 60).replace(" ", " a I is "), GOPHER, "gopher: mean word length"),
        (GOOD.replace(" ", "xyzxyz"), replace(GOPHER, words=None), "gopher: mean word length"),
        (GOOD.replace(". ", "."). replace(" ", " # ", 60), GOPHER, "gopher: hash signs"),
        (GOOD.replace(" ", "... ", 60), GOPHER, "gopher: ellipses"),
        ("\n".join(f" - {line}" for line in GOOD.split("\n")), GOPHER, "gopher: bullet lines"),
        ("\n".join(f"{line[:-1]}\u2026" for line in GOOD.split("\n")), GOPHER, "gopher: ellipsis lines"),
        (GOOD + " 12 345 6789" * 60, GOPHER, "gopher: words with letters"),
        (GOOD + "\nAnd again the same." * 30, GOPHER, "gopher: duplicate lines"),
        (GOOD + ("\n" + GOOD[:200].replace("\n", " ")) * 6, GOPHER, "gopher: characters in duplicate lines"),
        ("\n\n".join([GOOD, *["Yes, that is so."] * 2]), GOPHER, "gopher: duplicate paragraphs"),
        (f"{GOOD} {'of that ' * 120}", GOPHER, "gopher: most frequent 2-gram"),
        (GOOD + " " + " ".join(GOOD[900:1500].split()), GOPHER, "gopher: duplicate 5-grams"),
        (" ".join(word for word in GOOD.split() if word.lower() not in STOP), GOPHER, "gopher: stop words"),
        (GOOD + " { return; }", WEB, "c4: curly bracket"),
        (GOOD + " Lorem Ipsum dolor.", WEB, "c4: lorem ipsum"),
        (GOOD.replace(".", ",") + ". End.", WEB, "c4: number of sentences"),
        ("x = 1\n" * 50 + "data = [" + "0, " * 5000 + "]", CODE, "code: mean line length"),
        ("\n".join(["{ } [ ] ( ) ; , . = +"] * 20), CODE, "code: alphanumeric"),
        ("def f(x):\n    return x + 1\n" * 20, CODE, None),
    ],
)  # fmt: skip
def test_the_rule_that_fails_is_the_reason(text: str, rules: Rules, reason: str | None) -> None:
    failure = assess(text, rules)
    assert (failure.reason if failure else None) == reason, failure


def test_a_failure_says_what_was_measured_and_what_is_allowed() -> None:
    failure = assess(prose(1, 48), GOPHER)
    assert failure is not None
    assert failure.detail == "48, at least 50"


def test_stop_words_are_asked_of_english_alone() -> None:
    german = "Das ist ein Satz ohne englische Wörter und er steht hier nur zum Prüfen der Regel. "
    text = " ".join(f"{german[:-2]} {number} {word}." for number, word in enumerate(prose(3, 90).split()[::2]))
    text = " ".join(word for word in text.split() if word.lower() not in STOP)
    rules = Rules(stop_words=2)
    assert assess(text, rules, "de") is None
    assert assess(text, rules, "en") is not None


def test_scripts_without_spaces_are_not_judged_by_their_words() -> None:
    rng = random.Random(0)
    chinese = "".join(chr(rng.randint(0x4E00, 0x8000)) + ("。\n" if at % 30 == 29 else "") for at in range(3000))
    assert assess(chinese, replace(GOPHER, stop_words=None), "zh") is None


def test_a_book_is_judged_as_its_pages_are() -> None:
    """A million words from few: each window is fine, so the whole is, at any length; one that repeats itself is not."""
    book = prose(5, 300_000)
    rules = replace(GOPHER, words=(50, None))
    assert assess(book, rules) is None
    assert assess(prose(6, 300) * 1000, rules) is not None


def test_windows_hold_the_text_in_lines() -> None:
    text = prose(7, 40_000) + "x" * 200_000 + "\n" + prose(8, 100)
    parts = list(windows(text))
    assert "".join(parts) == text
    assert max(map(len, parts)) == WINDOW
    assert parts[0].endswith("\n")
    assert list(windows("")) == []


def test_counts_agree_with_plain_python() -> None:
    text = "\u2022 Stra\u00dfe #1...\n\n  - two, 3.14 \u20ac\u2026\n\n\nthree\u00a0four\n" * 3 + GOOD[:300]
    found, lines = measure(text), [line for line in text.split("\n") if line.strip()]
    pieces = text.split()
    assert found.characters == len(text)
    assert found.words == len(pieces)
    assert found.word_characters == sum(map(len, pieces))
    assert found.words_with_letters == sum(any(map(str.isalpha, piece)) for piece in pieces)
    assert found.alphanumeric == sum(map(str.isalnum, text))
    assert found.lines == len(lines)
    assert found.bullet_lines == sum(line.strip()[0] in "\u2022-" for line in lines)
    assert found.ellipsis_lines == sum(line.rstrip().endswith(("...", "\u2026")) for line in lines)
    assert found.duplicate_lines == len(lines) - len(set(lines))


def reference_ngrams(text: str) -> tuple[list[list[int]], list[int]]:
    """Marks characters one by one."""
    found = words(text)
    spans = list(zip(found.starts.tolist(), found.ends.tolist(), strict=True))
    said = [text[start:end].lower() for start, end in spans]

    def marked(places: list[int], length: int) -> int:
        marks = np.zeros(len(text), bool)
        for place in places:
            marks[spans[place][0] : spans[place + length - 1][1]] = True
        return int(marks.sum())

    def grams(length: int) -> list[tuple[str, ...]]:
        return [tuple(said[at : at + length]) for at in range(len(said) - length + 1)]

    top, duplicate = [], []
    for length in TOP_NGRAMS:
        counts = Counter(grams(length))
        most = max(counts.values(), default=0)
        sizes = [
            marked([at for at, gram in enumerate(grams(length)) if gram == common], length)
            for common, count in counts.items()
            if count == most > 1
        ]
        top.append(sizes)
    for length in DUPLICATE_NGRAMS:
        seen: set[tuple[str, ...]] = set()
        again = []
        for at, gram in enumerate(grams(length)):
            if gram in seen:
                again.append(at)
            seen.add(gram)
        duplicate.append(marked(again, length))
    return top, duplicate


@pytest.mark.parametrize("seed", range(5))
def test_repetition_agrees_with_plain_python(seed: int) -> None:
    rng = random.Random(seed)
    passages = [
        " ".join(rng.choices(["alpha", "beta", "gamma", "Epsilon", "zeta,", "eta;", "theta"], k=12)) for _ in range(6)
    ]
    text = prose(seed, 60) + "\n".join(rng.choices(passages, k=8)) + " \u4e00\u4e8c"
    found = repetition(text, words(text))
    top, duplicate = reference_ngrams(text)
    assert list(found.duplicate) == duplicate
    # Of several that are as frequent the hash decides which one is measured.
    assert all(size in sizes for size, sizes in zip(found.top, top, strict=True))


def test_bounds_below_nothing_are_refused() -> None:
    with pytest.raises(UserError, match=r"mean_word=\(-1, 3\): bounds are 0 or more"):
        Rules(mean_word=(-1, 3))
