"""Questions without a model: a sentence of the chunk with a gap where a name or a number stood.

Of prose it takes a sentence, of code a line. What is asked for stands there once, and the rest is enough to find the
place by. It comes as a reply in the very form that `replies.parse` reads, and goes the same way as a model's.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ringworld.data.language import identify
from ringworld.data.words import words
from ringworld.synthesis.chunks import LINE, boundaries
from ringworld.synthesis.verify import anchors

GAP = "____"

# What is asked, by language (ISO 639-1) and by what the gap is in; English for all others.
_ASKED = {
    "en": ("What fills the gap in this sentence of the text", "What fills the gap in this line of the text"),
    "de": ("Was füllt die Lücke in diesem Satz des Textes", "Was füllt die Lücke in dieser Zeile des Textes"),
    "fr": ("Que faut-il à la place du blanc dans cette phrase du texte", "Que manque-t-il dans cette ligne du texte"),
    "es": ("¿Qué falta en esta frase del texto", "¿Qué falta en esta línea del texto"),
    "it": ("Che cosa manca in questa frase del testo", "Che cosa manca in questa riga del testo"),
    "pt": ("O que falta nesta frase do texto", "O que falta nesta linha do texto"),
    "nl": ("Wat ontbreekt in deze zin van de tekst", "Wat ontbreekt in deze regel van de tekst"),
}
_SENTENCE_WORDS = (8, 40)
_LONGEST_LINE = 160
_QUOTED = 5  # words on one side of a gap: by fewer no place is found
_CONSTANTS = frozenset(("none", "true", "false", "null"))
_PROSE = 0.92  # of a sentence's characters: letters, digits, spaces and the marks of prose
_MARKS = frozenset(" ,;.:!?'\u2018\u2019\u201c\u201d-\u2013\u2014()")
_TOKEN = re.compile(r"(?<!\w)(?:\d+(?:[.,:/-]\d+)*(?!\w)|\d\w*|[^\W\d_][^\W_]*(?:[-'\u2019][^\W_]+)*)")
_NAME_OF_CODE = re.compile(r"\w+(?:\.\w+)*")
_SENTENCE_END = re.compile(r"[.!?\u2026][\"')\]\u201d\u2019\u00bb*_]*\Z")
_POSSESSIVE = re.compile(r"['\u2019]s\Z")


@dataclass(frozen=True)
class _Place:
    """text[start:end], a name or number of a sentence, or of a line of code, that a gap may take the place of."""

    text: str
    start: int
    end: int
    line: bool

    def asks(self) -> bool:
        """Whether what is left leads to the place, and does not say what stood there."""
        sides = [words(self.text[: self.start]).hashes, words(self.text[self.end :]).hashes]
        said = np.isin(words(self.text[self.start : self.end]).hashes, np.concatenate(sides))
        return max(map(len, sides)) >= _QUOTED and not said.all()

    def reply(self, language: str) -> str:
        asked = _ASKED.get(language, _ASKED["en"])[self.line]
        mark = "`" if self.line else '"'
        left = f"{self.text[: self.start]}{GAP}{self.text[self.end :]}"
        return f"Question: {asked}: {mark}{left}{mark}?\nAnswer: {self.text[self.start : self.end]}"


def write(text: str, seed: int) -> str:
    """A reply about a chunk's text; empty where it has nothing to ask for. Deterministic in both.

    `prompts.passage(ask)` and `ask.seed` are what a provider has.
    """
    known = anchors(text)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    drawn = int.from_bytes(hashlib.sha256(f"{seed}:{digest}".encode()).digest()[:8], "big")
    for found in (list(_in_sentences(text, known)), list(_in_lines(text, known))):
        first = drawn % max(1, len(found))
        for place in (*found[first:], *found[:first]):
            if place.asks():
                return place.reply(identify(text).code)
    return ""


def _in_sentences(text: str, known: frozenset[str]) -> Iterator[_Place]:
    begins = [0, *(end for end, kind in boundaries(text) if kind > LINE)]
    for begin, end in zip(begins, [*begins[1:], len(text)], strict=True):
        sentence = " ".join(text[begin:end].split())
        if _is_prose(sentence):
            yield from _gaps(sentence, known)


def _is_prose(sentence: str) -> bool:
    least, most = _SENTENCE_WORDS
    if not sentence[:1].isupper() or not _SENTENCE_END.search(sentence) or not least <= sentence.count(" ") + 1 <= most:
        return False
    plain = sum(letter.isalnum() or letter in _MARKS for letter in sentence)
    return (
        '"' not in sentence and plain >= _PROSE * len(sentence) and sentence.count("\u201c") == sentence.count("\u201d")
    )


def _gaps(sentence: str, known: frozenset[str]) -> Iterator[_Place]:
    """A gap for each name or number; a name is all of its words, `Captain Ahab`."""
    tokens = list(_TOKEN.finditer(sentence))
    place = 0
    while place < len(tokens):
        first = place
        place += 1
        if tokens[first][0] == "I" or not (_is_known(tokens[first][0], known) or tokens[first][0][0].isupper()):
            continue
        while place < len(tokens) and _continues(sentence, tokens[place - 1], tokens[place]):
            place += 1
        # The capital of a sentence's first word says nothing.
        while first < place and first == 0 and not _is_known(tokens[first][0], known):
            first += 1
        if any(_is_known(token[0], known) for token in tokens[first:place]):
            name = _POSSESSIVE.sub("", sentence[tokens[first].start() : tokens[place - 1].end()])
            yield _Place(sentence, tokens[first].start(), tokens[first].start() + len(name), line=False)


def _continues(sentence: str, token: re.Match[str], after: re.Match[str]) -> bool:
    if sentence[token.end() : after.start()] not in (" ", ". ") or _POSSESSIVE.search(token[0]) or after[0] == "I":
        return False
    return token[0][0].isupper() and after[0][0].isupper() and (len(token[0]) < 5 or sentence[token.end()] != ".")


def _is_known(token: str, known: frozenset[str]) -> bool:
    return token[0].isdigit() or (token[0].isupper() and _POSSESSIVE.sub("", token).lower() in known)


def _in_lines(text: str, known: frozenset[str]) -> Iterator[_Place]:
    """A gap for each name of a thing in a line of code that stands once in the chunk."""
    lines = Counter(line.strip() for line in text.splitlines())
    for line, count in lines.items():
        if count > 1 or "`" in line or len(line) > _LONGEST_LINE:
            continue
        for match in _NAME_OF_CODE.finditer(line):
            name = match[0].lower()
            looks = "_" in name.strip("_") or name in known
            if looks and len(name) > 3 and not name[0].isdigit() and name not in _CONSTANTS:
                yield _Place(line, match.start(), match.end(), line=True)
