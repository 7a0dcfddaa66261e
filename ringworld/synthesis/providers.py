"""Who answers: the interface of all providers, what they count, when one is given up; and the one without a model.

- A provider is asked for many replies at a time and hands them out as they finish. What goes wrong with one request is
  a `Reply` whose finish is `error` and whose error is one of `REASONS`; its text is then what is known of it.
- A provider that answers nothing any more is down: `ProviderDown`, which another try may cure. One that refuses
  everything was asked wrongly: `UserError`, which no other try cures.
- Providers know no shards, no budget and no Ray; whoever calls them meters what they send (`Meter`).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from ringworld.errors import UserError
from ringworld.synthesis.extractive import write
from ringworld.synthesis.prompts import passage
from ringworld.synthesis.records import Ask, Reply

TIMEOUT = "timeout"
CONNECTION = "connection failed"
SERVER_ERROR = "server error"
RATE_LIMIT = "rate limit"
GARBAGE = "no reply in the body"
REFUSED = "request refused"
NOT_A_NUMBER = "output is no number"
_OF_THE_SERVER = (TIMEOUT, CONNECTION, SERVER_ERROR, RATE_LIMIT)
REASONS = (TIMEOUT, CONNECTION, SERVER_ERROR, RATE_LIMIT, GARBAGE, REFUSED, NOT_A_NUMBER)


class ProviderDown(Exception):
    """Nothing is answered any more, though it was asked rightly."""


class Meter:
    """What a call of `ask` sends. requests: tries of all kinds. failures: tries that failed, by reason.

    unused: tokens that tries were reckoned at and that the provider cannot have used, as it refused them.
    """

    def __init__(self, more: Callable[[int], bool] = lambda tokens: True) -> None:
        """more: whether another request of so many tokens at most may be sent, beyond the first of each ask."""
        self._more = more
        self.requests = 0
        self.unused = 0
        self.failures: Counter[str] = Counter()

    def first(self) -> None:
        self.requests += 1

    def again(self, tokens: int) -> bool:
        """Whether a failed request may be sent again; counts it if so."""
        if not self._more(tokens):
            return False
        self.requests += 1
        return True

    def failed(self, reason: str, unused: int) -> None:
        self.failures[reason] += 1
        self.unused += unused


class Provider(Protocol):
    """model: as rows name it, unless a reply says it more exactly."""

    model: str

    def worst(self, ask: Ask) -> int:
        """The most tokens that one try of it can take, prompt and reply together; 0 where none are counted."""
        ...

    def ask(self, asks: Sequence[Ask], meter: Meter) -> Iterator[tuple[int, Reply]]:
        """(index, reply) of every ask, once each, as they finish. Leaving early cancels the rest.

        Raises ProviderDown and UserError as the module says.
        """
        ...

    def close(self) -> None: ...


class Patience:
    """Watches a provider's replies and raises when what fails is not the requests.

    That is certain once `most` in a row have failed. Fewer leave a doubt at the end of a call, which one request that
    asks for next to nothing settles (`probed`). For several threads.
    """

    def __init__(self, who: str, most: int) -> None:
        self._who, self._most = who, most
        self._row: list[Reply] = []
        self._answered = False
        self._lock = threading.Lock()

    def saw(self, reply: Reply) -> None:
        """Raises UserError where all of the row were refused, else ProviderDown."""
        with self._lock:
            if reply.finish == "error":
                self._row.append(reply)
            else:
                self._row, self._answered = [], True
            if len(self._row) >= self._most:
                raise self._end()

    def in_doubt(self) -> bool:
        """A call has ended. Whether the provider may be down, as nothing was answered since a request failed.

        Raises UserError where it has refused everything so far.
        """
        with self._lock:
            if self._row and not self._answered and all(reply.error == REFUSED for reply in self._row):
                raise self._end()
            return any(reply.error in _OF_THE_SERVER for reply in self._row)

    def probed(self, reply: Reply) -> None:
        """Raises ProviderDown where not even that was answered."""
        with self._lock:
            self._row.append(reply)
            if reply.error in _OF_THE_SERVER:
                raise self._end()
            self._row = []

    def _end(self) -> Exception:
        row, self._row = self._row, []
        counted = ", ".join(f"{count} {reason}" for reason, count in Counter(r.error for r in row).most_common())
        told = f"{self._who} failed {len(row)} requests in a row ({counted}); the last: {row[-1].text[:500]}"
        if all(reply.error == REFUSED for reply in row):
            return UserError(f"{told}; ask for what it can answer: check model, chunk_tokens and prompt.max_tokens")
        return ProviderDown(told)


class Extractive:
    """No model: the question is a sentence of the passage with a gap, see `extractive`."""

    model = "extractive"

    def worst(self, ask: Ask) -> int:
        return 0

    def ask(self, asks: Sequence[Ask], meter: Meter) -> Iterator[tuple[int, Reply]]:
        for index, asked in enumerate(asks):
            meter.first()
            yield index, Reply(write(passage(asked), asked.seed), "stop", self.model)

    def close(self) -> None:
        """Nothing is held."""
