"""Continuous batching: requests come and go between steps, a finished one's slot goes to the next.

- A step reads at most one chunk's worth of waiting prompts into their slots, then draws one token for every slot that
  is past its prompt. So a long prompt delays the others' next tokens by one chunk, not by itself.
- What a request gets depends on itself alone: the shapes of all programs are fixed, a prompt is cut where its own
  length says, and random numbers come from its seed and its positions.
- A slot remembers which whole chunks of a prompt it holds, and a prompt that it holds to the end with the logits after
  it. A prompt that begins with the same chunks goes on from there, in that slot or in a copy of it; several choices of
  one prompt read it once. Only chunks that were cut the same way count, so the answer is bitwise the one that it would
  be without.
- Logits that are not finite end their request, and no other: its slot is wiped.

The engine knows token ids only, and no threads: one caller submits, cancels and steps. On a mesh of several processes
every process has an engine, and all of them are told the same; no decision depends on a clock.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import jax
import numpy as np

from ringworld.errors import UserError
from ringworld.generate.chunks import chunk_of, chunk_sizes, slot_length
from ringworld.generate.programs import Chunk, Drawn, Programs, State, fetched
from ringworld.generate.sampling import GREEDY, Likelihoods, Sampling, knobs_of
from ringworld.model.config import ModelConfig

# error: the model's logits were not finite numbers.
Finish = Literal["stop", "length", "error"]
# The most likely tokens that can be asked for.
MOST = 20


@dataclass(frozen=True, eq=False)
class Request:
    """A prompt and how to go on from it.

    ids int32 [tokens]; at most max_tokens are drawn, fewer where one of stop_ids is (it is the last one then).
    most: how many of the likeliest tokens to tell of at each place; 0: tell nothing. score: tell of the prompt too.
    """

    ids: np.ndarray
    max_tokens: int
    sampling: Sampling = GREEDY
    stop_ids: frozenset[int] = frozenset()
    most: int = 0
    score: bool = False


@dataclass(frozen=True)
class TokenLikelihood:
    """The natural log-probability of a token, and of the likeliest ones in its place, best first: (id, logprob)."""

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Event:
    """What happened to a request in a step.

    token: drawn just now, None when the prompt was read on, or ended without a token. read, of: tokens of the prompt
    that are in the cache, and all. prompt: of each token of the prompt but the first, once, where it was asked for.
    """

    ticket: int
    token: int | None
    read: int
    of: int
    finish: Finish | None = None
    likelihood: TokenLikelihood | None = None
    prompt: tuple[TokenLikelihood, ...] | None = None


@dataclass(frozen=True, eq=False)
class _Held:
    """What a slot holds: the ids of a prompt's whole chunks; of a prompt that was read to its end, all ids, and the
    logits [batch shards, vocabulary] that came with its last chunk."""

    chunks: np.ndarray
    whole: np.ndarray | None = None
    logits: jax.Array | None = None

    def of(self, request: Request, chunk: int) -> int:
        """Tokens of a prompt that need not be read again: all, or whole chunks without the last token, which must be
        computed."""
        if request.score:
            return 0
        if self.whole is not None and np.array_equal(self.whole, request.ids):
            return len(request.ids)
        shared = min(len(self.chunks), len(request.ids) - 1)
        differ = np.flatnonzero(self.chunks[:shared] != request.ids[:shared])
        return (int(differ[0]) if len(differ) else shared) // chunk * chunk


_NOTHING = _Held(np.zeros(0, np.int32))


@dataclass(eq=False)
class _Running:
    ticket: int
    request: Request
    slot: int = -1
    read: int = 0
    drawn: int = 0
    newest: int = 0
    scores: list[TokenLikelihood] = field(default_factory=list)

    @property
    def prompt(self) -> int:
        return len(self.request.ids)

    @property
    def reading(self) -> bool:
        return self.read < self.prompt


class Engine:
    """Requests in, tokens out, over one cache.

    slots: requests at a time, a multiple of the mesh's data x fsdp. context: the most tokens of prompt and answer
    together. chunk: tokens of a prompt that one program sees.
    """

    def __init__(self, programs: Programs, *, slots: int, context: int, chunk: int = 2048) -> None:
        if slots < 1 or slots % programs.batch_shards:
            raise UserError(
                f"slots={slots}: a multiple of the {programs.batch_shards} that data x fsdp of the mesh hold apart"
            )
        if context < 2:
            raise UserError(f"context={context}: at least a token of a prompt and one of an answer")
        if chunk < 1:
            raise UserError(f"chunk={chunk}: at least 1 token")
        self._programs, self.context, self.slots = programs, context, slots
        self._sizes = chunk_sizes(min(chunk, context), programs.unit)
        self.chunk = self._sizes[-1]
        self.length = slot_length(context, self._sizes, programs.stripes.count)
        self.cache_shape = programs.cache_shape(slots, self.length)
        self._cache = programs.make_cache(slots, self.length)
        self._tickets = itertools.count(1)
        self._waiting: deque[_Running] = deque()
        self._running: list[_Running | None] = [None] * slots
        self._held = [_NOTHING] * slots
        self._state: State | None = None  # on the device; None: make it anew from _running

    @property
    def busy(self) -> bool:
        return bool(self._waiting) or any(self._running)

    @property
    def waiting(self) -> int:
        """Requests that have no slot yet."""
        return len(self._waiting)

    def submit(self, request: Request) -> int:
        """Line a request up; its ticket. UserError where it cannot be answered within the context."""
        self.check(request)
        # A copy: what a slot holds is compared with later prompts, whatever the caller does with its array.
        running = _Running(next(self._tickets), replace(request, ids=np.array(request.ids, np.int32)))
        self._waiting.append(running)
        return running.ticket

    def check(self, request: Request) -> None:
        """UserError where `submit` would raise it."""
        tokens, config = len(request.ids), self._programs.config
        if tokens == 0:
            raise UserError("the prompt is empty; give at least one token to go on from")
        if request.max_tokens < 0 or (request.max_tokens == 0 and not request.score):
            raise UserError(f"max_tokens={request.max_tokens}: at least 1")
        if tokens + request.max_tokens > self.context:
            raise UserError(
                f"the prompt has {tokens} tokens and max_tokens is {request.max_tokens}, together more than the "
                f"context of {self.context}; shorten the prompt or max_tokens, or serve with a longer --context"
            )
        if not 0 <= request.most <= MOST:
            raise UserError(f"likeliest tokens asked for: {request.most}; from 0 to {MOST}")
        check_ids(request.ids, config)

    def cancel(self, ticket: int) -> None:
        """Forget a request; its slot is free at once. Nothing happens where it has ended."""
        self._waiting = deque(running for running in self._waiting if running.ticket != ticket)
        for running in self._running:
            if running is not None and running.ticket == ticket:
                if 0 < running.read < running.prompt:  # no one has seen yet what these chunks lead to
                    self._wipe_unless_finite(running)
                self._free(running)

    def step(self) -> list[Event]:
        """Go on with every request that has a slot. Returns at once when there is none."""
        events: list[Event] = []
        budget = self.chunk * self._programs.batch_shards
        while budget > 0:
            self._admit()
            group = self._next_group()
            if not group:
                break
            taken = [running for running in group if self._take_over(running)]
            for running in taken:
                if (logits := self._held[running.slot].logits) is not None:
                    events += self._first([running], logits)
            if taken:
                continue
            budget -= sum(self._size(running) for running in group)
            events += self._read(group)
        if any(running is not None and not running.reading for running in self._running):
            events += self._draw()
        return events

    def _admit(self) -> None:
        """Give free slots to those who wait, each the slot that holds most of its prompt."""
        while self._waiting and None in self._running:
            running = self._waiting.popleft()
            free = [slot for slot, occupant in enumerate(self._running) if occupant is None]
            kept = {slot: self._held[slot].of(running.request, self.chunk) for slot in free}
            # Among equals the one that holds least, so that what a later prompt may need stays.
            running.slot = min(free, key=lambda slot: (-kept[slot], len(self._held[slot].chunks), slot))
            self._running[running.slot] = running

    def _take_over(self, running: _Running) -> bool:
        """Have what a slot of the same batch shard, its own first, holds of a prompt beyond what was read."""
        size = self.slots // self._programs.batch_shards
        first = running.slot // size * size
        kept = {slot: self._held[slot].of(running.request, self.chunk) for slot in range(first, first + size)}
        source = max(kept, key=lambda slot: (kept[slot], slot == running.slot))
        if kept[source] <= running.read:
            return False
        running.read = kept[source]
        if source != running.slot:
            rows = np.zeros((3, self._programs.batch_shards), np.int32)
            rows[:, self._shard(running)] = source - first, running.slot - first, running.read
            self._cache = self._programs.copy(self._cache, *rows)
        self._holds(running, self._held[source].logits)
        return True

    def _size(self, running: _Running) -> int:
        """Tokens of the chunk that this prompt is read by next: decided by its length alone."""
        return chunk_of(running.prompt - running.read, self._sizes)

    def _next_group(self) -> list[_Running]:
        """Prompts to read on together: the oldest, and of each other batch shard the oldest that goes with it."""
        reading = sorted((r for r in self._running if r is not None and r.reading), key=lambda r: r.ticket)
        if not reading:
            return []
        first = reading[0]
        group = {self._shard(first): first}
        for running in reading[1:]:
            alike = running.request.score == first.request.score and self._size(running) == self._size(first)
            if alike:
                group.setdefault(self._shard(running), running)
        return list(group.values())

    def _shard(self, running: _Running) -> int:
        return running.slot * self._programs.batch_shards // self.slots

    def _holds(self, running: _Running, logits: jax.Array | None) -> None:
        """Note what a slot holds after so much of a prompt was read; nothing of a scored one, by another program."""
        ids, read = running.request.ids, running.read
        held = _Held(ids[: read // self.chunk * self.chunk])
        if read == len(ids):
            held = replace(held, whole=ids, logits=logits)
        self._held[running.slot] = _NOTHING if running.request.score else held

    def _read(self, group: Sequence[_Running]) -> list[Event]:
        rows, size = self._programs.batch_shards, self._size(group[0])
        chunk = Chunk(
            tokens=np.zeros((rows, size), np.int32),
            next_tokens=np.zeros((rows, size), np.int32),
            slot=np.full(rows, -1, np.int32),
            start=np.zeros(rows, np.int32),
            end=np.zeros(rows, np.int32),
        )
        for running in group:
            row, ids, start = self._shard(running), running.request.ids, running.read
            part, after = ids[start : start + size], ids[start + 1 : start + size + 1]
            # Padding is a token of the prompt itself: whatever that leads to, it does to this request alone.
            chunk.tokens[row] = part[-1]
            chunk.tokens[row, : len(part)], chunk.next_tokens[row, : len(after)] = part, after
            chunk.slot[row] = running.slot % (self.slots // rows)
            chunk.start[row], chunk.end[row] = start, running.prompt
        scored = None
        if group[0].request.score:
            self._cache, logits, scored = self._programs.score(self._cache, chunk, MOST)
        else:
            self._cache, logits = self._programs.chunk(self._cache, chunk)
        events = []
        for running in group:
            before = running.read
            running.read = min(before + size, running.prompt)
            self._holds(running, logits)
            if scored is not None:
                count = min(size, running.prompt - 1 - before)
                running.scores += _told(scored, self._shard(running), count, running.request.most)
            if running.reading:
                events.append(Event(running.ticket, None, running.read, running.prompt))
        ended = [running for running in group if not running.reading]
        return events + self._first(ended, logits) if ended else events

    def _first(self, ended: Sequence[_Running], logits: jax.Array) -> list[Event]:
        """Draw the first tokens of prompts, one of each batch shard, from the logits after them."""
        rows = self._programs.batch_shards
        positions, knobs = np.zeros(rows, np.int32), [GREEDY] * rows
        for running in ended:
            row = self._shard(running)
            positions[row], knobs[row] = running.prompt, running.request.sampling
        most = MOST if any(running.request.most for running in ended) else 0
        told = fetched(self._programs.draw(logits, positions, knobs_of(knobs), most))
        return [self._accept(running, told, self._shard(running)) for running in ended]

    def _draw(self) -> list[Event]:
        active = [r for r in self._running if r is not None and not r.reading]
        if self._state is None:
            tokens, positions, counts = (np.zeros(self.slots, kind) for kind in (np.int32, np.int32, bool))
            knobs = [GREEDY] * self.slots
            for running in active:
                tokens[running.slot], counts[running.slot] = running.newest, True
                positions[running.slot] = running.prompt + running.drawn - 1
                knobs[running.slot] = running.request.sampling
            self._state = self._programs.state(tokens, positions, counts, knobs_of(knobs))
        most = MOST if any(running.request.most for running in active) else 0
        self._cache, self._state, drawn = self._programs.step(self._cache, self._state, most)
        told = fetched(drawn)
        return [self._accept(running, told, running.slot) for running in active]

    def _accept(self, running: _Running, told: Drawn, row: int) -> Event:
        """The event of a token, and the end of its request where it is the last."""
        request, first = running.request, running.drawn == 0
        if not told.sound[row]:
            self._wipe_unless_finite(running)
            self._free(running)
            return Event(running.ticket, None, running.read, running.prompt, "error")
        token, likelihood = _row(told, row, request.most)
        prompt = tuple(running.scores) if first and request.score else None
        if request.max_tokens == 0:
            self._free(running)
            return Event(running.ticket, None, running.read, running.prompt, "length", None, prompt)
        running.drawn, running.newest = running.drawn + 1, token
        finish: Finish | None = None
        if token in request.stop_ids:
            finish = "stop"
        elif running.drawn == request.max_tokens:
            finish = "length"
        if finish:
            self._free(running)
        elif first:
            self._state = None
        return Event(running.ticket, token, running.read, running.prompt, finish, likelihood, prompt)

    def _wipe_unless_finite(self, running: _Running) -> None:
        """What is not finite, no later request of the slot may meet, and no other prompt may go on from."""
        row, slots = self._shard(running), np.full(self._programs.batch_shards, -1, np.int32)
        slots[row] = running.slot % (self.slots // len(slots))
        self._cache, finite = self._programs.wipe_unless_finite(self._cache, slots)
        if not finite[row]:
            self._held[running.slot] = _NOTHING

    def _free(self, running: _Running) -> None:
        self._running[running.slot] = None
        self._state = None


def check_ids(ids: np.ndarray, config: ModelConfig) -> None:
    """UserError where a prompt has ids that a model does not know: a text model, those of a picture."""
    if ids.min() >= 0 and ids.max() < config.vocabulary + config.vision_vocabulary:
        return
    sees = f" and {config.vision_vocabulary} vision ids" if config.vision_vocabulary else ""
    blind = "" if sees or ids.max() < config.vocabulary else "; it is a text model, and cannot be given pictures"
    raise UserError(
        f"the prompt has token ids outside of the model's vocabulary of {config.vocabulary}{sees}, "
        f"{int(ids.min())} to {int(ids.max())}{blind}"
    )


def _row(told: Drawn, row: int, most: int) -> tuple[int, TokenLikelihood | None]:
    if not most or told.likelihoods is None:
        return int(told.tokens[row]), None
    one = Likelihoods(*(np.asarray(x)[None] for x in told.likelihoods))  # type: ignore[arg-type]
    return int(told.tokens[row]), _told(one, 0, row + 1, most)[row]


def _told(found: Likelihoods, row: int, count: int, most: int) -> list[TokenLikelihood]:
    """What was found of the first `count` tokens of a row [rows, tokens]."""
    logprob, ids, top = (np.asarray(x)[row] for x in found)
    return [
        TokenLikelihood(float(logprob[n]), tuple(zip(ids[n, :most].tolist(), top[n, :most].tolist(), strict=True)))
        for n in range(count)
    ]
