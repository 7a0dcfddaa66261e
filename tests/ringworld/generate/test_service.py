"""The sampler's thread: what happens to callers when it dies."""

import asyncio

import numpy as np
import pytest

from ringworld.generate.sampler import Prompt
from ringworld.generate.service import Failed, Full, Gone, Service


class Dying:
    """A sampler whose second step fails."""

    def __init__(self) -> None:
        self.steps = 0

    def submit(self, prompt) -> int:
        return self.steps + id(prompt)

    def step(self) -> list:
        self.steps += 1
        if self.steps == 2:
            raise RuntimeError("out of memory")
        return []

    def cancel(self, ticket) -> None: ...


PROMPT = Prompt(np.zeros(1, np.int32))


def test_a_sampler_that_dies_fails_those_who_wait_and_those_who_come():
    async def work() -> None:
        with Service(Dying(), capacity=3) as service:  # type: ignore[arg-type]
            answers = service.ask([PROMPT])
            with pytest.raises(Full):
                service.ask([PROMPT] * 3)
            with pytest.raises(Failed):
                await asyncio.wait_for(answers.next(), 20)
            answers.close()
            assert service.failed
            with pytest.raises(Failed):
                service.ask([PROMPT])
            assert service.taken == 0

    asyncio.run(work())


async def _listen(answers) -> None:
    while True:
        await answers.next()


def test_who_leaves_is_woken_and_gives_its_place_back(model):
    async def work() -> None:
        with Service(model.sampler(), capacity=2) as service:
            answers = service.ask([Prompt(np.ones(5, np.int32), max_tokens=250)] * 2)
            await answers.next()
            answers.leave()
            with pytest.raises(Gone):
                await _listen(answers)
            answers.close()
            again = service.ask([Prompt(np.ones(5, np.int32), max_tokens=2)] * 2)
            while again.unfinished:
                await again.next()
            assert service.taken == 0

    asyncio.run(work())
