"""How much may be asked: requests and tokens, taken before anything is sent and given back where they were not used.

Pure bookkeeping. The worst case of a request is taken before it is sent, so what was really used never exceeds the
limits, whoever dies when.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ringworld.errors import UserError


@dataclass(frozen=True)
class Limits:
    """Of a whole stage, all its attempts together; part of a recipe. None: no limit.

    requests: every one sent, also one that fails. tokens: of prompts and replies, as the provider counts them.
    """

    requests: int | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("requests", "tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"budget.{name}={value}: 1 or more, or null for no limit")

    @property
    def any(self) -> bool:
        return self.requests is not None or self.tokens is not None


class Budget:
    """requests, tokens: taken so far. Holders are whoever takes; one that has taken may still give back."""

    def __init__(self, limits: Limits, requests: int = 0, tokens: int = 0) -> None:
        self._limits = limits
        self.requests, self.tokens = requests, tokens
        self._holders: set[int] = set()

    def take(self, holder: int, worst: Sequence[int]) -> int | None:
        """How many of these requests, in order, may be sent, each of at most so many tokens; they are then taken.

        0: none, now or later. None: none now, but others may give back: ask again. Whoever asks has given back what
        it had.
        """
        self._holders.discard(holder)
        count = 0
        for tokens in worst:
            if not self._fits(tokens):
                break
            self.requests += 1
            self.tokens += tokens
            count += 1
        if count:
            self._holders.add(holder)
        return None if not count and worst and self._holders else count

    def again(self, tokens: int) -> bool:
        """Take one more request, or leave it: never waits."""
        if not self._fits(tokens):
            return False
        self.requests += 1
        self.tokens += tokens
        return True

    def give_back(self, holder: int, tokens: int) -> None:
        """What a holder did not use; it holds nothing from then on."""
        self._holders.discard(holder)
        self.tokens -= tokens

    def lost(self, holder: int) -> None:
        """A holder has died: all that it took counts as used."""
        self._holders.discard(holder)

    def _fits(self, tokens: int) -> bool:
        most = self._limits
        return (most.requests is None or self.requests < most.requests) and (
            most.tokens is None or self.tokens + tokens <= most.tokens
        )
