"""How replies are graded: by RULER's string matches, and its effective length.

RULER (arXiv 2404.06654, section 4): an answer counts where it stands in the reply, case aside. `all` is the share of
the answers that do, `part` whether any does. lm-eval 0.4.13 takes the share for `part` as well, which gives less for a
question with several accepted answers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ringworld.evaluate.tasks.names import RULER_THRESHOLD
from ringworld.evaluate.tasks.task import Scored

_CONTROLS = re.compile(r"[\x00-\x1f]")


def score(reply: str, answers: Sequence[str], scored: Scored) -> float:
    """0..1."""
    said = _CONTROLS.sub("\n", reply.strip()).strip().lower()
    found = [answer.lower() in said for answer in answers]
    return float(any(found)) if scored == "part" else sum(found) / len(found)


def effective_length(means: Mapping[int, float], threshold: float = RULER_THRESHOLD) -> int:
    """The longest length that reaches the threshold together with all shorter ones that were asked; 0 where none does.

    means: of each length, the mean over tasks of their scores, in percent.
    """
    longest = 0
    for length in sorted(means):
        if means[length] < threshold:
            break
        longest = length
    return longest
