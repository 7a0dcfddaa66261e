"""Prose that asks and answers by itself: dialogue of novels, and questions that a text puts above their answers.

- Dialogue: paragraphs that begin with a quotation mark, one right below the other, are spoken by turns, as printed
  novels have it. A conversation begins with one that ends in a question, and goes on as long as there is speech. Of a
  paragraph only what is spoken is taken: `"Yes," said he. "I am."` says `Yes. I am.`
- Questions: `Q:` with `A:`, and a heading that asks with the paragraph below.

Block quotes, verses and speeches over several paragraphs are left out: what stands below them is no reply.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ringworld.synthesis.exchanges import Exchange, TalkRules, unwrapped

_PARAGRAPH = re.compile(r"[^\n]+(?:\n(?![ \t]*\n)[^\n]+)*")
_MARKS = {"\u201c": ("\u201c", "\u201d"), '"': ('"', '"')}
_SPEECH = {"\u201c": re.compile(r"\u201c([^\u201c\u201d]*)\u201d"), '"': re.compile(r'"([^"]*)"')}
_MOST_PARAGRAPH = 2000
_MOST_NARRATED = 160  # characters of a paragraph of speech that are not spoken: more is a scene
_SENTENCE_ENDS = (".", "!", "?", ";", ":")
_ENDS = (".", "!", "?", "\u2014", "-", "\u2026", "'", "\u2019", ")")
_LEAST_QUESTION_WORDS = 3

_Q = r"[ \t>*#-]*(?:Q|Question)[ \t]*\d*[.:)][ \t*]*"
_A = r"[ \t>*#-]*(?:A|Answer)[ \t]*\d*[.:)][ \t*]*"
_ASKED = re.compile(
    rf"^{_Q}(?P<question>[^\n]+(?:\n(?!{_A})[^\n]+){{0,5}})\n{{1,3}}{_A}"
    rf"(?P<answer>[^\n]+(?:\n(?!{_Q})(?![ \t]*\n)[^\n]+)*)",
    re.MULTILINE,
)
_HEADED = re.compile(
    r"^(?:#{1,6}[ \t]+(?P<markdown>[^\n#]+\?)[ \t]*#*[ \t]*"
    r"|(?P<underlined>[^\n]+\?)[ \t]*\n[=\-~^\"'*+#.`]{4,}[ \t]*"
    r"|\*\*(?P<bold>[^\n*]+\?)\*\*[ \t]*)\n{1,3}"
    r"(?P<answer>[^\n]+(?:\n(?![ \t]*\n)[^\n]+)*)",
    re.MULTILINE,
)
_NO_PROSE = re.compile(r"[ \t>|+*\-#=`<.:]|\d+[.)]")
_NEAR = 4000  # characters between questions of one conversation
_LEAST_LETTERS = 0.75


@dataclass(frozen=True)
class _Spoken:
    words: str
    start: int
    end: int


def dialogues(text: str, begin: int, rules: TalkRules) -> Iterator[list[Exchange]]:
    """Runs of exchanges, each a question and what follows it. begin: where the text begins in its document."""
    run: list[_Spoken] = []
    for paragraph in _PARAGRAPH.finditer(text):
        words = _spoken(paragraph.group()) if paragraph.end() - paragraph.start() <= _MOST_PARAGRAPH else None
        if words is not None:
            run.append(_Spoken(words, begin + paragraph.start(), begin + paragraph.end()))
        else:
            yield from _exchanged(run, rules)
            run = []
    yield from _exchanged(run, rules)


def questions(text: str, begin: int, rules: TalkRules) -> Iterator[list[Exchange]]:
    """Runs of exchanges that stand near each other."""
    near: list[Exchange] = []
    for exchange in sorted(_all_asked(text, begin, rules), key=lambda exchange: exchange.start):
        if near and exchange.start < near[-1].end:
            continue
        if near and exchange.start - near[-1].end > _NEAR:
            yield near
            near = []
        near.append(exchange)
    if near:
        yield near


def _exchanged(run: list[_Spoken], rules: TalkRules) -> Iterator[list[Exchange]]:
    """A run of speeches as conversations, each of which a question opens."""
    found: list[Exchange] = []
    at = 0
    while at + 1 < len(run):
        asked, replied = run[at], run[at + 1]
        answer = rules.answer(replied.words)
        opens = asked.words.endswith("?") and len(asked.words.split()) >= _LEAST_QUESTION_WORDS
        within = len(asked.words) <= rules.question_characters[1] and answer is not None
        if within and answer is not None and (found or (opens and rules.is_question(asked.words))):
            found.append(Exchange(asked.words, answer, asked.start, replied.end))
            at += 2
            if len(found) == rules.exchanges:
                yield found
                found = []
        elif found:
            yield found
            found = []
        else:
            at += 1
    if found:
        yield found


def _spoken(paragraph: str) -> str | None:
    """What is spoken in a paragraph that begins with speech and ends the speech that it begins; else None."""
    mark = paragraph[0]
    if mark not in _MARKS:
        return None
    opening, closing = _MARKS[mark]
    if mark == closing:
        if paragraph.count(mark) % 2:
            return None
    elif paragraph.count(opening) != paragraph.count(closing):
        return None
    said, told, done = [], 0, 0
    for speech in _SPEECH[mark].finditer(paragraph):
        between = paragraph[done : speech.start()].strip()
        _close(said, between)
        said.append(unwrapped(speech.group(1)))
        told += len(between)
        done = speech.end()
    rest = paragraph[done:].strip()
    _close(said, rest or ".")
    words = " ".join(said).replace("_", "").strip()
    if told + len(rest) > _MOST_NARRATED or not words or "[" in words or words[-1] not in _ENDS:
        return None
    first = next((character for character in words if character.isalnum()), "")
    return words if first.isupper() or first.isdigit() else None


def _close(said: list[str], narrated: str) -> None:
    """Where the narrator ends a sentence, the comma before him ends one too."""
    if said and said[-1].endswith(",") and narrated.endswith((".", "!", "?")):
        said[-1] = f"{said[-1][:-1]}."


def _all_asked(text: str, begin: int, rules: TalkRules) -> Iterator[Exchange]:
    for pattern in (_ASKED, _HEADED):
        for found in pattern.finditer(text):
            groups = found.groupdict()
            question = unwrapped(next(groups[name] for name in groups if name != "answer" and groups[name])).strip("* ")
            answer = rules.answer(unwrapped(found["answer"])) if _is_prose(found["answer"]) else None
            if answer and rules.is_question(question) and len(question.split()) >= _LEAST_QUESTION_WORDS:
                yield Exchange(question, answer, begin + found.start(), begin + found.end())


def _is_prose(paragraph: str) -> bool:
    letters = sum(character.isalpha() or character.isspace() for character in paragraph)
    return (
        not _NO_PROSE.match(paragraph)
        and letters >= _LEAST_LETTERS * len(paragraph)
        and paragraph.rstrip().rstrip("*_`\"')").endswith((".", "!", "?"))
    )
