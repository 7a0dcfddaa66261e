"""Who answers: the sampler of this process, its prefill split over the mesh, or a server that speaks OpenAI's protocol.

All answers are greedy. A server gets token ids, as our own and vLLM take them, so that it reads exactly what was
measured; or text, for one that takes no ids, which may then add a beginning's id of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ringworld.errors import UserError
from ringworld.evaluate.tasks.prompting import plain_text
from ringworld.evaluate.tasks.task import Example
from ringworld.generate.sampler import Prompt, Sampler

_TIMEOUT_SECONDS = 3600.0  # of a reply to a prompt of a million tokens


@dataclass(frozen=True)
class Said:
    """finish: `stop` where the model ended its answer, `length` where the room did."""

    text: str
    finish: str


class Answerer(Protocol):
    def answers(self, examples: Iterable[Example]) -> Iterator[tuple[int, Said]]:
        """(index, what was said) in the order in which they are done; examples are drawn as they are needed.

        Raises UserError where nothing can be answered.
        """
        ...


@dataclass(frozen=True, eq=False)
class EngineAnswerer:
    """on_step: called after each step of the sampler; it goes on."""

    sampler: Sampler
    on_step: Callable[[], None] = lambda: None

    def answers(self, examples: Iterable[Example]) -> Iterator[tuple[int, Said]]:
        prompts = (Prompt(example.ids, max_tokens=example.room) for example in examples)
        for index, reply in self.sampler.run(prompts, lambda *_: self.on_step()):
            if reply.finish == "error":
                raise UserError(
                    "the model's output is no number (NaN or infinite): its weights are broken, or try --dtype float32"
                )
            yield index, Said(reply.text, reply.finish)


@dataclass(frozen=True)
class ServerOptions:
    """url: as in http://localhost:8000/v1. model: the name that requests give. send: see the module. chat: whether
    texts go to chat completions. concurrency: requests at a time. retries: of a request that finds no server or a busy
    one."""

    url: str
    model: str
    send: Literal["ids", "text"] = "ids"
    chat: bool = False
    concurrency: int = 4
    retries: int = 4


class ServerAnswerer:
    def __init__(self, options: ServerOptions, key: str | None = None) -> None:
        import openai

        self._options = options
        # Without a key the client would take OPENAI_API_KEY, which is not for this server.
        self._client = openai.OpenAI(
            base_url=options.url, api_key=key or "none", max_retries=options.retries, timeout=_TIMEOUT_SECONDS
        )

    def answers(self, examples: Iterable[Example]) -> Iterator[tuple[int, Said]]:
        remaining = enumerate(examples)
        with ThreadPoolExecutor(self._options.concurrency) as pool:
            under_way: dict[Future[Said], int] = {}
            try:
                while True:
                    while len(under_way) < self._options.concurrency and (item := next(remaining, None)) is not None:
                        under_way[pool.submit(self._ask, item[1])] = item[0]
                    if not under_way:
                        return
                    for done in wait(under_way, return_when=FIRST_COMPLETED).done:
                        yield under_way.pop(done), done.result()
            finally:
                for future in under_way:
                    future.cancel()

    def _ask(self, example: Example) -> Said:
        import openai

        options, draft = self._options, example.draft
        sent: dict[str, Any] = {"model": options.model, "max_tokens": example.room, "temperature": 0.0}
        try:
            if options.send == "ids":
                choice = self._client.completions.create(prompt=example.ids.tolist(), **sent).choices[0]
                text = choice.text
            elif options.chat or len(draft.turns) > 1:
                turns: Any = [{"role": turn.role, "content": turn.text} for turn in draft.turns]
                choice = self._client.chat.completions.create(messages=turns, **sent).choices[0]
                text = choice.message.content
            else:
                choice = self._client.completions.create(prompt=plain_text(draft), **sent).choices[0]
                text = choice.text
        except openai.OpenAIError as refused:
            raise UserError(f"{options.model} at {options.url}: {' '.join(str(refused).split())[:500]}") from None
        return Said(text or "", str(choice.finish_reason))
