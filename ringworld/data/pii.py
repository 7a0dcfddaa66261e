"""What reaches a person or opens a door, replaced by a word for its kind: `<email>`, `<phone>`, `<ip>`, `<key>`.

Patterns only, so names and street addresses stay. They are tuned to leave numbers of other kinds alone (dates, ISBNs,
versions, sections, tables): what is masked wrongly is lost, so a pattern asks for more than digits. Left as they are:
- addresses at names that are reserved for examples (RFC 2606), and `git@host:` of clone commands;
- IP addresses that are not reachable from everywhere, such as 127.0.0.1, 10.0.0.8 and 2001:db8::1;
- phone numbers without a plus sign, a North American area code, or a word such as `tel.` before them.

Each kind first looks for a cheap sign of itself (an `@`, a run of digits, a known prefix), so clean text costs little.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

Span = tuple[int, int]

_LOCAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+-]*\Z")
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+([A-Za-z]{2,24})(?![\w-])")
# Two letters are a country. Of the longer ones those in wide use, since `x@self.weight` is a product of matrices.
_TOP_LEVEL = re.compile(
    "academy|app|arpa|art|biz|blog|cat|center|church|cloud|club|com|community|coop|design|dev|digital|edu|email|events|"
    "finance|foundation|gov|group|health|info|inc|institute|int|jobs|law|life|live|ltd|media|mil|mobi|museum|name|net|"
    "network|news|ngo|online|org|page|press|pro|school|science|services|shop|site|social|software|solutions|space|"
    "store|studio|systems|team|tech|tel|today|tools|training|university|vip|wiki|work|world|xyz|[a-z]{2}",
    re.IGNORECASE,
)
_EXAMPLES = re.compile(r"(?:^|\.)(?:example(?:\.(?:com|net|org))?|invalid|localhost|test)$", re.IGNORECASE)

# Where a number of a telephone may begin; what it is is asked there, after the sign or bracket before it.
_DIGITS = re.compile(r"[0-9][0-9 .()/\-]{5}")
_INTERNATIONAL = re.compile(r"\+(?:\d{8,15}|\d{1,3}(?:[ .\-/]{1,2}\(?\d{1,5}\)?){2,6})(?!\w)")
_NORTH_AMERICAN = re.compile(r"(?:1[ .\-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[.\-])[2-9]\d\d[.\-]\d{4}(?!\w|[.\-/]\d)")
_AFTER_A_WORD = re.compile(r"\(?\d(?:[ .\-/()]{0,3}\d{1,5}){2,6}(?!\w)")
_PHONE_WORD = re.compile(r"\b(?:tele(?:ph|f)one?|tel|phone|fax|mobile|cell|call)\b[.:]{0,2}[ \t]{0,3}\Z", re.IGNORECASE)
_WORD_REACH = 16
_PHONE_DIGITS = range(7, 16)  # E.164 allows 15
_IN_A_NUMBER = frozenset("0123456789_.-/+=")

_IPV4 = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}(?![\w\-]|\.[0-9])")
_IPV6_SIGN = re.compile(r":[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]")
_IPV6_REACH = 45  # characters of the longest form
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{3,}(?![\w:])")  # 2000::/3 is all that is assigned

# By the sign that each begins with, which is found fast: prefixes and lengths as the providers document them.
_KEYS = {
    sign: re.compile(pattern)
    for signs, pattern in (
        ("AKIA ASIA ABIA ACCA", r"[A-Z]{4}[A-Z2-7]{16}(?![A-Z0-9])"),  # AWS
        ("ghp_ gho_ ghu_ ghs_ ghr_", r"gh[a-z]_[A-Za-z0-9]{36,255}(?!\w)"),
        ("github_pat_", r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}(?!\w)"),
        ("glpat-", r"glpat-[A-Za-z0-9_\-]{20,}"),
        ("xoxa- xoxb- xoxp- xoxr- xoxs-", r"xox[a-z]-[A-Za-z0-9-]{10,}"),  # Slack
        ("AIza", r"AIza[A-Za-z0-9_\-]{35}(?![A-Za-z0-9_\-])"),  # Google
        ("sk_live_ rk_live_", r"[a-z]k_live_[A-Za-z0-9]{16,}"),  # Stripe
        ("sk-", r"sk-[A-Za-z0-9_\-]{32,}"),
        ("hf_", r"hf_[A-Za-z0-9]{34,}(?!\w)"),
        ("npm_", r"npm_[A-Za-z0-9]{36}(?!\w)"),
        ("pypi-AgE", r"pypi-AgE[A-Za-z0-9_\-]{50,}"),
        ("eyJ", r"eyJ[A-Za-z0-9_\-]{10,}\.eyJ[A-Za-z0-9_\-]{10,}\.[A-Za-z0-9_\-]{10,}"),  # a JSON web token
        (
            "-----BEGIN",
            r"-----BEGIN (?:[A-Z]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----[A-Za-z0-9+/=\s\\:,.\-]{16,20000}?"
            r"-----END (?:[A-Z]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----",
        ),
    )
    for sign in signs.split()
}
_QUOTED = re.compile(r"""["']([A-Za-z0-9_\-/+=.]{20,200})["']""")
_SECRET_NAME = re.compile(
    r"""(?:secret|token|passw(?:or)?d|api[_-]?key|access[_-]?key|private[_-]?key|credentials?)["'\]]?\s{0,3}[:=]{1,2}\s{0,3}\Z""",
    re.IGNORECASE,
)
_SECRET_NAME_REACH = 48


def mask(text: str, kinds: Sequence[str]) -> tuple[str, dict[str, int]]:
    """The text with everything of these kinds replaced, and how many of each there were; of `KINDS`.

    Where two overlap, the kind that comes first in `KINDS` has it.
    """
    found: list[tuple[int, int, str]] = []
    for kind in kinds:
        found += [(start, end, kind) for start, end in _FINDERS[kind](text)]
    counts = dict.fromkeys(kinds, 0)
    if not found:
        return text, counts
    parts, done = [], 0
    for start, end, kind in _disjoint(found):
        parts += [text[done:start], f"<{kind}>"]
        done = end
        counts[kind] += 1
    return "".join([*parts, text[done:]]), counts


def _disjoint(found: Iterable[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    order = {kind: rank for rank, kind in enumerate(KINDS)}
    kept: list[tuple[int, int, str]] = []
    for span in sorted(found, key=lambda span: (span[0], order[span[2]])):
        if kept and span[0] < kept[-1][1]:
            if order[span[2]] < order[kept[-1][2]]:
                kept[-1] = span
            continue
        kept.append(span)
    return kept


def _emails(text: str) -> Iterator[Span]:
    at = text.find("@")
    while at >= 0:
        host = _HOST.match(text, at + 1)
        if host and _TOP_LEVEL.fullmatch(host[1]) and not _EXAMPLES.search(host[0]):
            begin = max(0, at - 64)
            local = _LOCAL.search(text[begin:at])
            if local and not (local[0] == "git" and text[host.end() : host.end() + 1] in (":", "/")):
                yield begin + local.start(), host.end()
        at = text.find("@", at + 1)


def _phones(text: str) -> Iterator[Span]:
    digits = _DIGITS.search(text)
    while digits:
        span = _phone_at(text, digits.start())
        if span:
            yield span
        digits = _DIGITS.search(text, span[1] if span else digits.end())


def _phone_at(text: str, digit: int) -> Span | None:
    """The telephone number whose first digit is this one."""
    start = digit - 1 if digit and text[digit - 1] in "+(" else digit
    before = text[start - 1 : start]
    if before.isalnum() or before in _IN_A_NUMBER:
        return None
    if found := _INTERNATIONAL.match(text, start) or _NORTH_AMERICAN.match(text, start):
        pass
    elif not (
        _PHONE_WORD.search(text[max(0, start - _WORD_REACH) : start]) and (found := _AFTER_A_WORD.match(text, start))
    ):
        return None
    count = sum(map(str.isdigit, found[0]))
    return found.span() if count in _PHONE_DIGITS else None


def _addresses(text: str) -> Iterator[Span]:
    for match in _IPV4.finditer(text):
        before = text[max(0, match.start() - 1) : match.start()]
        if before.isalnum() or before in _IN_A_NUMBER or _counts(match[0]):
            continue
        if _reaches(match[0]):
            yield match.span()
    end = 0
    for sign in _IPV6_SIGN.finditer(text):
        if sign.start() < end:
            continue
        match = _IPV6.search(text, max(end, sign.start() - _IPV6_REACH), sign.start() + _IPV6_REACH)
        if match and _reaches(match[0]):
            end = match.end()
            yield match.span()


def _counts(numbers: str) -> bool:
    """Whether four numbers are more often a section or a version; those of 1 and 2 are the identifiers of ASN.1."""
    parts = [int(part) for part in numbers.split(".")]
    large = sum(part > 9 for part in parts)
    return large < (3 if parts[0] <= 2 else 2)


def _reaches(address: str) -> bool:
    """Whether it is the address of one machine that everyone can reach."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return found.is_global and not found.is_multicast


def _keys(text: str) -> Iterator[Span]:
    for sign, pattern in _KEYS.items():
        at = text.find(sign)
        while at >= 0:
            found = None if text[max(0, at - 1) : at].isalnum() else pattern.match(text, at)
            if found:
                yield found.span()
            at = text.find(sign, found.end() if found else at + 1)
    for match in _QUOTED.finditer(text):
        before = text[max(0, match.start() - _SECRET_NAME_REACH) : match.start()]
        # A word or a path in quotes has no digits.
        if any(map(str.isdigit, match[1])) and _SECRET_NAME.search(before):
            yield match.span(1)


_FINDERS: dict[str, Callable[[str], Iterator[Span]]] = {
    "key": _keys,
    "email": _emails,
    "ip": _addresses,
    "phone": _phones,
}
KINDS = tuple(_FINDERS)
