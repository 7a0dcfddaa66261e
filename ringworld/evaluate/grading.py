"""Whether an answer says what it should: exact match and token F1, as SQuAD measures them.

Both compare words: lower case, without punctuation and without articles (Rajpurkar et al. 2016, arXiv:1606.05250,
section 6.1; the rule for answers of no words is SQuAD 2.0's, arXiv:1806.03822).
"""

from __future__ import annotations

import re
import string
from collections import Counter

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def words(text: str) -> list[str]:
    """What is compared of a text."""
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def exact_match(said: str, truth: str) -> bool:
    """Whether both have the same words in the same order."""
    return words(said) == words(truth)


def token_f1(said: str, truth: str) -> float:
    """The harmonic mean of the share of said words that are true and of true words that are said, 0..1.

    A word counts as often as both have it. Where one of them has no words: 1 when neither has, else 0.
    """
    mine, right = Counter(words(said)), Counter(words(truth))
    if not mine or not right:
        return float(mine == right)
    # 2pr / (p + r) with p = same / said and r = same / true.
    return 2 * (mine & right).total() / (mine.total() + right.total())
