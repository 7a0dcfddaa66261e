"""Whether a question and its answer are kept: grounded in their chunk, and answerable with it only.

- Words are those of `ringworld.data.words`: letters and digits in lower case, so that case, punctuation, quotation
  marks and line ends never decide whether an answer stands in a text.
- What anchors a question to its chunk among all others is a name, a number or a rare word (`anchors`, `Holders`), or
  some words of the chunk in a row, quoted.
- The first rule that fails, in the order of `REASONS`, is the reason of a verdict.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ringworld.data.language import UNKNOWN, identify
from ringworld.data.minhash import Bands, Signer, low_bytes
from ringworld.data.near import Pairs, decide, similar_pairs
from ringworld.data.words import Words, runs, words
from ringworld.errors import UserError
from ringworld.synthesis.chunks import boundaries
from ringworld.synthesis.records import Chunk, Pair, Verdict

NEAR_DUPLICATE = "near duplicate"
REASONS = (
    "question too short",
    "question too long",
    "answer too long",
    "no question mark",
    "answer says nothing",
    "not supported",
    "answer in the question",
    "refers to the passage",
    "no name or number",
    "other language",
    NEAR_DUPLICATE,
)

_WORD = re.compile(r"\w+")
_FUNCTION_WORDS = frozenset(
    _WORD.findall(
        """
        a about after all also am an and any are as at be because been before being but by can could did do does for
        from had has have he her here hers him his how i if in into is it its just me more most my no nor not of off on
        one only or our out over she so some such than that the their them then there these they this those to too up us
        very was we were what when where which while who whom whose why will with would yes you your
        """
    )
)
_PASSAGE = re.compile(
    r"\b(?:the|this|that|above|following|given|provided)\s+(?:(?:above|following|given|provided|short|first|last)\s+)?"
    r"(?:passage|text|excerpt|paragraph|extract|snippet|chapter|section|story|context|document|article|quotation|"
    r"dialogue|conversation|scene)\b|\bthe\s+(?:author|narrator|writer|speaker)\b",
    re.IGNORECASE,
)
_ENDS = ("?", "\uff1f", "\u061f", "\u037e")  # the last two: Arabic and Greek
_CLOSING = "\"')]\u201d\u2019\u00bb\u300d*`"
_STRETCH = 4  # an answer in other words lies within so many times its own length
_AROUND = (4, 16)  # words on each side of an answer, among which the question's are looked for
_LEAST_RARE = 4  # letters of a rare word
_LEAST_LETTERS = 40  # of a question whose language can be told
_SURE = 0.75  # of a chunk's places in one language
_CASED = 0.5  # of the letters: below, a script has no capitals
_PERMUTATIONS, _RECALL, _SEED = 128, 0.95, 1
_SLACK = 0.15  # similarity is estimated, then counted


@dataclass(frozen=True)
class Rules:
    """What a pair must keep; part of a recipe. Shares are of 1.

    question_words, answer_words: fewest and most. support: of the answer's words that say something, the least share
    that one stretch of the chunk holds, where the answer does not stand there word for word. told: the share of them
    that may not be in the question already. quoted: so many words of the chunk in a row are as good as a name. rare:
    so is a word that stands in at most this share of its document's chunks. similar: Jaccard similarity, of words and
    pairs of words, from which two questions are one.
    """

    question_words: tuple[int, int] = (4, 80)
    answer_words: tuple[int, int] = (1, 40)
    support: float = 0.8
    told: float = 0.8
    quoted: int = 5
    rare: float = 0.02
    similar: float = 0.8
    same_language: bool = True

    def __post_init__(self) -> None:
        for name in ("question_words", "answer_words"):
            least, most = getattr(self, name)
            if not 1 <= least <= most:
                raise UserError(f"{name}=[{least},{most}]: the fewest and the most words, 1 or more")
        if self.quoted < 1:
            raise UserError(f"quoted={self.quoted}: words in a row, 1 or more, such as 5")
        for name in ("support", "told", "similar"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)}: a share, above 0 and at most 1")
        if not 0 <= self.rare < 1:
            raise UserError(
                f"rare={self.rare}: a share of a document's chunks, at least 0 and below 1; 0: no rare words"
            )


@dataclass(frozen=True)
class Holders:
    """How many of a document's chunks hold each word: what few hold is specific to them (Sp\u00e4rck Jones 1972)."""

    chunks: int
    held: Counter[str]

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> Holders:
        """chunks: all of one document."""
        return cls(len(chunks), Counter(word for chunk in chunks for word in set(_spelled(chunk.text))))

    def rare(self, share: float) -> int:
        """The most chunks that may hold a rare word; 0 in a document so short that every word would be one."""
        return max(1, int(share * self.chunks)) if share * self.chunks >= 0.5 else 0


def verify(chunk: Chunk, pair: Pair, rules: Rules, holders: Holders | None = None) -> Verdict:
    """Kept or not, and where the answer stands in the chunk's text. holders: of its document; None: no word is rare."""
    question, answer = words(pair.question), words(pair.answer)
    for name, found, (least, most) in (
        ("question", question, rules.question_words),
        ("answer", answer, rules.answer_words),
    ):
        if len(found) > most:
            return _refused(f"{name} too long", f"{len(found)} words, at most {most}")
        if name == "question" and len(found) < least:
            return _refused("question too short", f"{len(found)} words, at least {least}")
    if not pair.question.rstrip(_CLOSING + " ").endswith(_ENDS):
        return _refused("no question mark", pair.question[-40:])
    text, anchored = words(chunk.text), anchors(chunk.text)
    says = _says(pair.answer, answer, anchored)
    if len(answer) < rules.answer_words[0] or not says.any():
        return _refused("answer says nothing", pair.answer[:80])
    place, why = _support(text, question, pair.answer, answer, says, rules.support)
    if place is None:
        return _refused("not supported", why)
    told = float(np.isin(answer.hashes[says], question.hashes).mean())
    if told >= rules.told:
        return _refused("answer in the question", f"{told:.2f} of its words")
    asked, answered = set(_spelled(pair.question)), set(_spelled(pair.answer))
    quotes = bool(np.isin(runs(question.hashes, rules.quoted), runs(text.hashes, rules.quoted)).any())
    if (found := _PASSAGE.search(pair.question)) and not (quotes or asked & anchored):
        return _refused("refers to the passage", found[0])
    known = anchored | _rare(chunk, holders, rules.rare)
    if not (quotes or (asked | answered) & known) and _has_capitals(chunk.text):
        return _refused("no name or number", "nor a rare word or a quotation of the chunk")
    if rules.same_language and (other := _other_language(chunk.text, pair.question)):
        return _refused("other language", other)
    return Verdict(True, start=place[0], end=place[1])


def anchors(text: str) -> frozenset[str]:
    """The words, in lower case, that are names or numbers by the look of them:

    - with a digit; with a capital inside, or an underscore: names of things in code;
    - with a capital although no sentence or line begins there, and nowhere in the text without: names of people and
      places (truecasing, Lita et al. 2003). Of words that are all capitals, as in headings, the first may be a name.
      German writes all nouns with one, and each of them counts.
    """
    begins = {0, *(end for end, _ in boundaries(text))}
    found: set[str] = set()
    small: set[str] = set()
    shouting = False  # the word before is all capitals
    for match in _WORD.finditer(text):
        word = match[0]
        if word.islower() or not any(map(str.isupper, word)):
            small.add(word)
            if _is_marked(word):
                found.add(word)
        elif _is_marked(word) or (
            len(word) > 1
            and word[0].isupper()
            and not (shouting and word.isupper())
            and match.start() not in begins
            and _goes_on(text, match.start())
        ):
            found.add(word.lower())
        shouting = len(word) > 1 and word.isupper()
    return frozenset(word for word in found if word not in small or _is_marked(word)) - _FUNCTION_WORDS


def stands_in(text: Words, sought: Words) -> np.ndarray:
    """int64: the numbers of the words of `text` where `sought` stands, word for word; ascending, empty for no words."""
    if not 0 < len(sought) <= len(text):
        return np.zeros(0, np.int64)
    return np.flatnonzero(runs(text.hashes, len(sought)) == runs(sought.hashes, len(sought))[0])


def near_duplicates(questions: Sequence[str], rules: Rules) -> np.ndarray:
    """int64 [questions]: for each the earlier question that it is a near duplicate of, -1 for one that stays.

    questions: of all kept pairs of the corpus, in order of (document, number), so that the first of those alike stays.
    """
    stays = np.full(len(questions), -1, np.int64)
    shingles = [np.unique(np.concatenate([found, runs(found, 2)])) for found in (words(q).hashes for q in questions)]
    close = _similar(shingles, rules.similar)
    if len(close.first):
        numbers = np.unique(np.concatenate([close.first, close.second]))
        verdict = decide(close, np.zeros(len(numbers)), [f"{number:012d}" for number in numbers.tolist()])
        dropped = verdict.document != verdict.kept
        stays[verdict.document[dropped]] = verdict.kept[dropped]
    return stays


def _refused(reason: str, detail: str) -> Verdict:
    return Verdict(False, reason, detail)


def _spelled(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _is_marked(word: str) -> bool:
    if any(map(str.isdigit, word)):
        return True
    if not any(map(str.isalpha, word)):
        return False
    return "_" in word.strip("_") or (not word.isupper() and any(map(str.isupper, word[1:])))


def _goes_on(text: str, at: int) -> bool:
    """Whether a sentence that has begun goes on at `at`: after a word, a comma or the point of `Dr.`"""
    before = text[max(0, at - 3) : at].rstrip()
    return bool(before) and (before[-1].isalnum() or before[-1] in ",;.'\u2019)")


def _has_capitals(text: str) -> bool:
    letters = [letter for letter in text[:2000] if letter.isalpha()]
    return sum(letter.islower() or letter.isupper() for letter in letters) >= _CASED * len(letters)


def _says(text: str, found: Words, anchored: frozenset[str]) -> np.ndarray:
    """bool [words]: those that say something by themselves: names, and all but function words, English or short."""
    names = [match.span() for match in _WORD.finditer(text) if match[0].lower() in anchored]
    says = np.zeros(len(found), bool)
    for number, (start, end) in enumerate(zip(found.starts.tolist(), found.ends.tolist(), strict=True)):
        word = text[start:end].lower()
        long = len(word) > 2 or not word.isascii() or word.isdigit()
        # `out_im` is two words and one name.
        says[number] = (long and word not in _FUNCTION_WORDS) or any(a <= start < b for a, b in names)
    return says


def _support(
    whole: Words, question: Words, said: str, answer: Words, says: np.ndarray, least: float
) -> tuple[tuple[int, int] | None, str]:
    """Where in the chunk, of all these words, the answer stands: (start, end) in characters; or None, and why not."""
    found = stands_in(whole, answer)
    if len(found):
        at = _nearest(whole, question, found, len(answer))
        return (int(whole.starts[at]), int(whole.ends[at + len(answer) - 1])), ""
    for start, end in zip(answer.starts.tolist(), answer.ends.tolist(), strict=True):
        number = said[start:end]
        if any(map(str.isdigit, number)) and not len(stands_in(whole, words(number))):
            return None, f"{number} is not in the passage"
    sought = np.unique(answer.hashes[says])
    if len(sought) < 2 or not len(whole):
        return None, "not there word for word"
    hits = whole.hashes == sought[:, None]
    size = min(len(whole), _STRETCH * len(answer))
    passed = np.concatenate([np.zeros((len(sought), 1), np.int64), hits.cumsum(axis=1)], axis=1)
    held = (passed[:, size:] > passed[:, :-size]).sum(axis=0)
    begin = int(held.argmax())
    share = held[begin] / len(sought)
    if share < least:
        return None, f"{share:.2f} of its words in one stretch, at least {least}"
    there = np.flatnonzero(hits[:, begin : begin + size].any(axis=0)) + begin
    return (int(whole.starts[there[0]]), int(whole.ends[there[-1]])), ""


def _nearest(whole: Words, question: Words, found: np.ndarray, length: int) -> int:
    """Of the places where an answer stands the one with most of the question around it; a word of it weighs less the
    more often the chunk has it."""
    _, which, counts = np.unique(whole.hashes, return_inverse=True, return_counts=True)
    passed = np.append(0, np.cumsum(np.isin(whole.hashes, question.hashes) / counts[which]))
    near = np.zeros(len(found))
    for reach in _AROUND:
        near += passed[np.minimum(found + length + reach, len(whole))] - passed[np.maximum(found - reach, 0)]
    return int(found[np.argmax(np.round(near, 6))])


def _rare(chunk: Chunk, holders: Holders | None, share: float) -> set[str]:
    if holders is None or not (most := holders.rare(share)):
        return set()
    return {word for word in _spelled(chunk.text) if len(word) >= _LEAST_RARE and holders.held[word] <= most}


def _other_language(text: str, question: str) -> str | None:
    """What the question is in, where both can be told and differ."""
    if sum(map(str.isalpha, question)) < _LEAST_LETTERS:
        return None
    here = identify(text)
    if here.code == UNKNOWN or here.share < _SURE:
        return None
    asked = identify(question)
    return f"{asked.code}, the passage {here.code}" if asked.code not in (UNKNOWN, here.code) else None


def _similar(shingles: Sequence[np.ndarray], threshold: float) -> Pairs:
    """Pairs whose Jaccard similarity is at least the threshold: candidates by MinHash, each then counted."""
    bands = Bands.for_threshold(threshold, _PERMUTATIONS, _RECALL)
    signatures = np.empty((len(shingles), _PERMUTATIONS), np.uint32)
    for number, found in enumerate(shingles):
        signer = Signer(_PERMUTATIONS, _SEED)
        signer.add(found)
        signatures[number] = signer.signature()
    low = np.repeat(low_bytes(signatures), bands.count, axis=0)
    rows = pa.table(
        {
            "band": bands.hashes(signatures).ravel(),
            "document": np.repeat(np.arange(len(shingles)), bands.count),
            "bytes": np.zeros(len(low), np.int64),
            "low": pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(_PERMUTATIONS), len(low), [None, pa.py_buffer(low.tobytes())]
            ),
        }
    )
    close = similar_pairs(rows, max(0.0, threshold - _SLACK))
    alike = np.array(
        [
            _jaccard(shingles[one], shingles[other])
            for one, other in zip(close.first.tolist(), close.second.tolist(), strict=True)
        ]
    )
    kept = alike >= threshold
    return Pairs(close.first[kept], close.second[kept], alike[kept]) if len(alike) else close


def _jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Of two sets of hashes; 0 where both are empty."""
    return len(np.intersect1d(one, other)) / max(1, len(np.union1d(one, other)))
