"""Prompts in, text out: the engine with a tokenizer. What evaluation, synthesis, the chat and the server call.

    sampler = open_sampler(checkpoint, mesh, slots=8)
    for index, reply in sampler.run([Prompt(ids, max_tokens=100, stop=("\n\n",)), ...]):
        ...

A request ends at the tokenizer's end of text, at one of its stop strings, or at max_tokens; by the finish "error" where
the model's logits are not finite numbers, with the text that came before. `run` hands replies out as they finish;
`submit` and `step` are the same with pieces of text as they come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import jax
import numpy as np
from jax.sharding import Mesh

from ringworld.data.tokenizers import Tokenizer
from ringworld.errors import UserError
from ringworld.generate.checkpoint import Checkpoint
from ringworld.generate.engine import Engine, Finish, Request, TokenLikelihood
from ringworld.generate.programs import Programs
from ringworld.generate.sampling import GREEDY, Sampling
from ringworld.generate.text import Characters, Stops
from ringworld.model.sharding import check
from ringworld.train.weights import load_weights

# OpenAI's limit is 4; more cost a little at every token.
MOST_STOPS = 16


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt as token ids, int32 [tokens], and how to go on from it. max_tokens None: all that the context leaves.

    most, score: see engine.Request.
    """

    ids: np.ndarray
    max_tokens: int | None = None
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    most: int = 0
    score: bool = False

    def __post_init__(self) -> None:
        if len(self.stop) > MOST_STOPS or not all(self.stop):
            raise UserError(f"stop={list(self.stop)!r}: at most {MOST_STOPS} texts, none of them empty")


@dataclass(frozen=True)
class Piece:
    """What a step brought a request: text that can be shown, the token behind it, and the end where it is one.

    token None: the prompt was read on (`read` of `of` tokens), or nothing was drawn. The text may belong to earlier
    tokens, and a token's text may come later. Counted as drawn are all tokens, the end-of-text one too.
    """

    ticket: int
    text: str
    token: int | None
    read: int
    of: int
    finish: Finish | None
    likelihood: TokenLikelihood | None
    prompt: tuple[TokenLikelihood, ...] | None


@dataclass(frozen=True)
class Reply:
    """A finished request. tokens: the ids that were drawn; likelihoods and prompt as asked for."""

    text: str
    finish: Finish
    tokens: tuple[int, ...]
    prompt_tokens: int
    likelihoods: tuple[TokenLikelihood, ...] = ()
    prompt: tuple[TokenLikelihood, ...] | None = None


@dataclass
class _Text:
    characters: Characters
    stops: Stops


@dataclass
class _Collected:
    text: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    likelihoods: list[TokenLikelihood] = field(default_factory=list)
    prompt: tuple[TokenLikelihood, ...] | None = None


class Sampler:
    """Text of many requests at a time. Not for several threads."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, stop_ids: frozenset[int]) -> None:
        self.engine, self.tokenizer, self.stop_ids = engine, tokenizer, stop_ids
        self._texts: dict[int, _Text] = {}

    def request(self, prompt: Prompt) -> Request:
        """The engine's request of a prompt. UserError where it cannot be answered."""
        left = self.engine.context - len(prompt.ids)
        if prompt.max_tokens is None and left < 1:
            raise UserError(
                f"the prompt has {len(prompt.ids)} tokens; the context of {self.engine.context} leaves no room for an "
                f"answer; shorten it, or use a longer --context"
            )
        request = Request(
            ids=np.asarray(prompt.ids, np.int32),
            max_tokens=left if prompt.max_tokens is None else prompt.max_tokens,
            sampling=prompt.sampling,
            stop_ids=self.stop_ids,
            most=prompt.most,
            score=prompt.score,
        )
        self.engine.check(request)
        return request

    def submit(self, prompt: Prompt) -> int:
        """Line a prompt up; its ticket. UserError where it cannot be answered."""
        ticket = self.engine.submit(self.request(prompt))
        self._texts[ticket] = _Text(Characters(self.tokenizer, prompt.ids[-16:].tolist()), Stops(prompt.stop))
        return ticket

    def cancel(self, ticket: int) -> None:
        """Forget a request: no further piece of it comes."""
        self.engine.cancel(ticket)
        self._texts.pop(ticket, None)

    def step(self) -> list[Piece]:
        """Go on with all requests; one piece for each that went on."""
        pieces = []
        for event in self.engine.step():
            text, finish = self._texts[event.ticket], event.finish
            shown = ""
            if event.token is not None and event.token not in self.stop_ids:
                shown = text.stops.push(text.characters.push(event.token))
            if finish:
                shown += text.stops.push(text.characters.end())
            if text.stops.found is not None:
                if not finish:
                    self.engine.cancel(event.ticket)
                finish = "stop"
            elif finish:
                shown += text.stops.end()
            if finish:
                del self._texts[event.ticket]
            pieces.append(
                Piece(event.ticket, shown, event.token, event.read, event.of, finish, event.likelihood, event.prompt)
            )
        return pieces

    def run(
        self, prompts: Iterable[Prompt], on_piece: Callable[[int, Piece], None] = lambda index, piece: None
    ) -> Iterator[tuple[int, Reply]]:
        """(index of the prompt, its reply) in the order in which they finish. Prompts are drawn as slots come free.

        Leaving early cancels what is under way.
        """
        remaining = enumerate(prompts)
        under_way: dict[int, tuple[int, _Collected]] = {}
        try:
            while True:
                while len(under_way) < 2 * self.engine.slots and (item := next(remaining, None)) is not None:
                    under_way[self.submit(item[1])] = (item[0], _Collected())
                if not under_way:
                    return
                for piece in self.step():
                    index, found = under_way[piece.ticket]
                    on_piece(index, piece)
                    reply = _collect(found, piece)
                    if reply is not None:
                        del under_way[piece.ticket]
                        yield index, reply
        finally:
            for ticket in under_way:
                self.cancel(ticket)


def _collect(found: _Collected, piece: Piece) -> Reply | None:
    found.text.append(piece.text)
    found.prompt = found.prompt or piece.prompt
    if piece.token is not None:
        found.tokens.append(piece.token)
    if piece.likelihood is not None:
        found.likelihoods.append(piece.likelihood)
    if piece.finish is None:
        return None
    return Reply(
        "".join(found.text), piece.finish, tuple(found.tokens), piece.of, tuple(found.likelihoods), found.prompt
    )


def open_sampler(
    checkpoint: Checkpoint, mesh: Mesh, *, slots: int = 1, context: int | None = None, dtype: str | None = None,
    chunk: int = 2048,
) -> Sampler:  # fmt: skip
    """A checkpoint's weights on a mesh, ready to sample.

    context: tokens of a slot; the checkpoint's own when None. dtype: float32 | bfloat16, of products and of the cache;
    that of the checkpoint's training when None.
    """
    programs = open_programs(checkpoint, mesh, dtype, context)
    engine = Engine(programs, slots=slots, context=context or checkpoint.context, chunk=chunk)
    return Sampler(engine, checkpoint.tokenizer, checkpoint.stop_ids)


def open_programs(checkpoint: Checkpoint, mesh: Mesh, dtype: str | None = None, context: int | None = None) -> Programs:
    """A checkpoint's weights on a mesh; dtype and context as `open_sampler`'s."""
    if jax.process_count() > 1:
        raise UserError("ringworld.generate runs in one process; give it one host's devices")
    check(checkpoint.config, mesh.shape)
    params = load_weights(checkpoint.weights, checkpoint.config, mesh, sequence=context or checkpoint.context)
    return Programs(checkpoint.config, params, checkpoint.rope, mesh, dtype or checkpoint.dtype)
