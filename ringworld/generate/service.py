"""The sampler in a thread of its own, for callers on an event loop: many requests at a time, each its own queue.

Only the thread touches the sampler. A caller asks, gets the pieces of what it asked for as they come, and whatever it
leaves unfinished is cancelled. More than `capacity` requests at a time are refused, never stored.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from ringworld.generate.sampler import Piece, Prompt, Sampler

_log = logging.getLogger(__name__)


class Full(Exception):
    """There are as many requests as are taken at a time."""


class Failed(Exception):
    """The sampler died of an error, which is in the log; nothing more can be answered."""


class Gone(Exception):
    """The one who asked has left."""


class Answers:
    """What one caller asked for, piece by piece. Everything but `pieces.put` is for the event loop's thread."""

    def __init__(self, service: Service, prompts: Sequence[Prompt]) -> None:
        self.prompts, self.loop = prompts, asyncio.get_running_loop()
        self.pieces: asyncio.Queue[tuple[int, Piece] | Exception] = asyncio.Queue()
        self.tickets: dict[int, int] = {}  # of the unfinished, by index; the sampler's thread alone looks
        self.unfinished = len(prompts)
        self._service = service

    async def next(self) -> tuple[int, Piece]:
        """(index of a prompt, its next piece). Raises Failed when the sampler died, Gone after `leave`."""
        found = await self.pieces.get()
        if isinstance(found, Exception):
            raise found
        if found[1].finish:
            self._release(1)
        return found

    def leave(self) -> None:
        """Wake up who waits in `next`, by Gone."""
        self.pieces.put_nowait(Gone())

    def close(self) -> None:
        """Cancel what is unfinished. Never waits, so that it also works where the caller is being cancelled."""
        if self.unfinished:
            self._release(self.unfinished)
            self._service.forget(self)

    def _release(self, count: int) -> None:
        self.unfinished -= count
        self._service.taken -= count


class Service:
    """Answers for an event loop. A context manager: leaving stops the thread, and forgets what is under way."""

    def __init__(self, sampler: Sampler, capacity: int) -> None:
        self.sampler, self.capacity = sampler, capacity
        self._wake = threading.Condition()
        self._orders: deque[tuple[Callable[[Answers], None], Answers]] = deque()
        self._under_way: dict[int, tuple[Answers, int]] = {}
        self.taken = 0  # requests asked for and not yet finished or left; for the event loop's thread
        self._stopping, self._ended, self.failed = False, False, False
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self) -> Service:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def ask(self, prompts: Sequence[Prompt]) -> Answers:
        """Line up prompts that the sampler can answer; the caller must close what it gets.

        Raises Full when there is no room for all of them, Failed when the sampler has died.
        """
        if self.taken + len(prompts) > self.capacity:
            raise Full
        answers = Answers(self, prompts)
        if not self._order(self._submit, answers):
            raise Failed
        self.taken += len(prompts)
        return answers

    def forget(self, answers: Answers) -> None:
        """Cancel what is unfinished of them."""
        self._order(self._cancel, answers)

    def _order(self, what: Callable[[Answers], None], answers: Answers) -> bool:
        """Have the sampler's thread do it; False where that has ended."""
        with self._wake:
            if not self._ended:
                self._orders.append((what, answers))
                self._wake.notify()
            return not self._ended

    def _submit(self, answers: Answers) -> None:
        for index, prompt in enumerate(answers.prompts):
            ticket = self.sampler.submit(prompt)
            answers.tickets[index] = ticket
            self._under_way[ticket] = (answers, index)

    def _cancel(self, answers: Answers) -> None:
        for ticket in answers.tickets.values():
            self.sampler.cancel(ticket)
            self._under_way.pop(ticket, None)

    def _run(self) -> None:
        try:
            while True:
                with self._wake:
                    while not (self._orders or self._under_way or self._stopping):
                        self._wake.wait()
                    if self._stopping:
                        return
                    orders, self._orders = self._orders, deque()
                for what, answers in orders:
                    what(answers)
                for piece in self.sampler.step():
                    self._hand_out(piece)
        except Exception:
            _log.exception("the sampler died")
            self.failed = True
        finally:
            with self._wake:
                self._ended = True
            left = {answers for _, answers in self._orders} | {answers for answers, _ in self._under_way.values()}
            for answers in left:
                self._send(answers, Failed())

    def _hand_out(self, piece: Piece) -> None:
        answers, index = self._under_way[piece.ticket]
        if piece.finish:
            del self._under_way[piece.ticket], answers.tickets[index]
        self._send(answers, (index, piece))

    def _send(self, answers: Answers, item: tuple[int, Piece] | Exception) -> None:
        try:
            answers.loop.call_soon_threadsafe(answers.pieces.put_nowait, item)
        except RuntimeError:  # the loop has been closed: no one is left to hear it
            self.forget(answers)
