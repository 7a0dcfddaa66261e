"""A raw text made fit for training, or the reason why it is not. Pure functions of one text and a `Cleaning`.

- In order: form (newlines, controls, Unicode), repair of wrongly decoded text, boilerplate, language, rules of quality,
  masks. What is hashed is the result, so two copies that differ in line endings, in a byte order mark or in the
  licence that Project Gutenberg wraps around a book are the same document.
- A `Cleaning` says which of these are done. `PRESETS` has one for each kind of text; `cleaning_from` changes one.
- Every step costs time linear in the text and memory of a few copies of it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ringworld.data.boilerplate import CUTS, license_of
from ringworld.data.language import identify
from ringworld.data.pii import KINDS, mask
from ringworld.data.quality import GOPHER, Rules, assess, windows
from ringworld.errors import UserError
from ringworld.strict import from_mapping, to_mapping

# Controls, DEL and C1 (tab and newline stay), byte order marks, and halves of surrogate pairs, which no UTF-8 can hold.
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_NEWLINES = re.compile("\r\n|\r|\x85|\u2028|\u2029")
_BLANK_LINES = re.compile(r"\n[ \t]*\n(?:[ \t]*\n){2,}")
# What ftfy would never change: no entity, no control, nothing beyond ASCII but quotes, dashes and no-break spaces.
_SOUND = re.compile("[\t\n\x20-\x25\x27-\x7e\u2013\u2014\u2018\u2019\u201c\u201d\u2026]*")
_ENTITY = re.compile("&[#A-Za-z0-9]{2,30};")


@dataclass(frozen=True)
class Cleaning:
    """What is done to a text.

    repair         undo wrong decodings and HTML entities, by ftfy
    cut            boilerplate that is cut, of `ringworld.data.boilerplate.CUTS`, in this order
    identify       the language is found out
    languages      documents in another language are dropped (ISO 639-1); empty: none is
    language_share of the places looked at that must be in the document's language, where `languages` are given
    rules          of quality; None: none
    mask           kinds of `ringworld.data.pii.KINDS` that are masked
    """

    repair: bool = False
    cut: tuple[str, ...] = ("gutenberg",)
    identify: bool = False
    languages: tuple[str, ...] = ()
    language_share: float = 0.5
    rules: Rules | None = None
    mask: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, allowed in (("cut", tuple(CUTS)), ("mask", KINDS)):
            if unknown := [given for given in getattr(self, name) if given not in allowed]:
                raise UserError(f"{name}: unknown {unknown[0]!r}; allowed: {', '.join(allowed)}")
        if not 0 <= self.language_share <= 1:
            raise UserError(f"language_share={self.language_share}: a share, from 0 to 1")
        if self.languages and not self.identify:
            raise UserError(f"languages={list(self.languages)} needs identify: true")


@dataclass(frozen=True)
class Cleaned:
    """text, or else reason and detail. language: ISO 639, None where it was not asked for.

    license: what the text says of its own. masked: how many of each kind.
    """

    text: str | None
    reason: str | None = None
    detail: str = ""
    language: str | None = None
    license: str | None = None
    masked: Mapping[str, int] = field(default_factory=dict)


# Gopher made its rules for pages: a book may be long, and a play names its speakers on lines of their own, again and
# again. The bounds for code are on the mean of a document, which may be a whole package; none is on its longest line,
# since one table of constants would cost the package.
PRESETS: Mapping[str, Cleaning] = {
    "prose": Cleaning(
        repair=True,
        cut=("gutenberg", "pages"),
        identify=True,
        rules=replace(GOPHER, words=(50, None), duplicate_lines=None),
        mask=("key", "email", "ip", "phone"),
    ),
    "web": Cleaning(
        repair=True,
        cut=("web_lines",),
        identify=True,
        rules=replace(GOPHER, sentences=5, no_braces=True, no_lorem_ipsum=True),
        mask=("key", "email", "ip", "phone"),
    ),
    "code": Cleaning(
        cut=("license_headers",), rules=Rules(mean_line=100.0, alphanumeric=0.25), mask=("key", "email", "ip")
    ),
    "none": Cleaning(),
}


def cleaning_from(given: Any, at: str = "cleaning") -> Cleaning:
    """A preset by its name, or a mapping of what differs from the preset that its key `preset` names.

    Raises UserError naming the key, the value and what is allowed.
    """
    if isinstance(given, str):
        given = {"preset": given}
    if not isinstance(given, Mapping):
        raise UserError(f"{at}={given!r}: expected one of {', '.join(PRESETS)}, or a mapping with preset and changes")
    changes = dict(given)
    name = changes.pop("preset", "none")
    if name not in PRESETS:
        raise UserError(f"{at}.preset={name!r}: allowed: {', '.join(PRESETS)}")
    base = to_mapping(PRESETS[name])
    if isinstance(base["rules"], Mapping) and isinstance(changes.get("rules"), Mapping):
        changes["rules"] = {**base["rules"], **changes["rules"]}
    return from_mapping(Cleaning, {**base, **changes}, at)


def clean(raw: str, cleaning: Cleaning, minimum_bytes: int) -> Cleaned:
    """The document that a raw text becomes, or why it becomes none."""
    stated = license_of(raw)
    text = _NEWLINES.sub("\n", raw)
    del raw
    if cleaning.repair:
        text = repair(text)
    text = _well_formed(text)
    for name in cleaning.cut:
        text = CUTS[name](text)
    text = _BLANK_LINES.sub("\n\n\n", text).strip()
    if (reason := unusable(text, minimum_bytes)) is not None:
        return Cleaned(None, reason)
    language = None
    if cleaning.identify:
        language, share = identify(text)
        if cleaning.languages and (language not in cleaning.languages or share < cleaning.language_share):
            return Cleaned(None, "language", f"{language} in {share:.0%} of it", language, stated)
    if cleaning.rules and (failure := assess(text, cleaning.rules, language)) is not None:
        return Cleaned(None, failure.reason, failure.detail, language, stated)
    text, masked = mask(text, cleaning.mask)
    return Cleaned(text, language=language, license=stated, masked=masked)


def normalize(text: str) -> str:
    """Newlines as \\n, Unicode NFC, no control characters, no halves of surrogate pairs."""
    return _well_formed(_NEWLINES.sub("\n", text))


def _well_formed(text: str) -> str:
    text = _SURROGATES.sub("\ufffd", _CONTROLS.sub("", text))
    return unicodedata.normalize("NFC", text)


def repair(text: str) -> str:
    """The text as it was before it was decoded wrongly, or escaped for HTML without being HTML, by ftfy, line by line.

    Quotes, ligatures and the width of characters stay as they are: they are no errors.
    """
    # A text with tags is HTML, and its entities may be what it is about.
    escaped = "<" not in text and _ENTITY.search(text) is not None
    parts, done, place = [], 0, 0
    for window in windows(text):
        begin, place = place, place + len(window)
        if not _SOUND.fullmatch(window) and (repaired := _repaired(window, escaped)) != window:
            parts += [text[done:begin], repaired]
            done = place
    return "".join([*parts, text[done:]]) if parts else text


def _repaired(window: str, escaped: bool) -> str:
    import ftfy

    config = ftfy.TextFixerConfig(
        unescape_html=escaped,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        fix_surrogates=False,
        remove_control_chars=False,
        normalization=None,
        explain=False,
    )
    return "".join(
        line if _SOUND.fullmatch(line) or (not escaped and line.isascii() and "\x1b" not in line)
        else ftfy.fix_text(line, config)
        for line in window.splitlines(keepends=True)
    )  # fmt: skip


def unusable(text: str, minimum_bytes: int) -> str | None:
    """Why a cleaned text cannot be a document (`empty`, `too short`); None when it can."""
    if not text:
        return "empty"
    # A character takes at most four bytes: encode only what may be too short.
    if len(text) < minimum_bytes and len(text.encode()) < minimum_bytes:
        return "too short"
    return None
