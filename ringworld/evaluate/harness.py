"""What EleutherAI's harness asks of a model, answered by our sampler: likelihoods of continuations and of whole texts,
and greedy or drawn text. Knows nothing of the package lm_eval; `lm_eval.py` joins the two.

- A request that is longer than the model's context loses its beginning, as with the harness' own models: the last
  `context` tokens are read, and the one that they predict.
- A chat is handed through the harness as a text that spells its turns (`spell_chat`), since a template makes token ids
  here, not text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ringworld.data.conversations import Turn
from ringworld.errors import UserError
from ringworld.generate.chat import Prompts
from ringworld.generate.sampler import Prompt, Sampler
from ringworld.generate.sampling import Sampling

_CHAT = "\x00"  # before and after the spelled turns; no benchmark's text has it


@dataclass(frozen=True)
class Likelihood:
    """Of a continuation: the natural logarithm of its probability, and whether greedy decoding gives it."""

    logprob: float
    greedy: bool


@dataclass(frozen=True, eq=False)
class Harness:
    """sampler: its context is one token more than the model's, for the token that a full context predicts. context: of
    the model. end: the id that begins what has no context."""

    sampler: Sampler
    prompts: Prompts
    context: int
    end: int

    def encode(self, text: str, begun: bool = True) -> np.ndarray:
        """int32 [tokens]. begun: with the beginning's id, where the model was trained so."""
        if text.startswith(_CHAT):
            spelled, _, rest = text[1:].partition(_CHAT)
            return np.concatenate([self._chat(json.loads(spelled)), self.sampler.tokenizer.encode(rest)])
        return self.prompts.of_text(text) if begun else self.sampler.tokenizer.encode(text)

    def likelihoods(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], on_done: Callable[[int], None] = lambda index: None
    ) -> list[Likelihood]:
        """Of each (context, continuation) of token ids, neither empty, a continuation not over the model's context."""
        wholes = [np.array([*before, *after], np.int32)[-self.context - 1 :] for before, after in pairs]
        asked = (Prompt(ids, max_tokens=0, most=1, score=True) for ids in wholes)
        found: dict[int, Likelihood] = {}
        for index, reply in self.sampler.run(asked):
            if reply.finish == "error" or reply.prompt is None:
                raise UserError("the model's output is no number: its weights are broken, or try --dtype float32")
            count = min(len(pairs[index][1]), len(wholes[index]) - 1)
            told = reply.prompt[len(reply.prompt) - count :]
            ids = wholes[index][len(wholes[index]) - count :].tolist()
            greedy = all(one.top[0][0] == token for one, token in zip(told, ids, strict=True))
            found[index] = Likelihood(sum(one.logprob for one in told), greedy)
            on_done(index)
        return [found[index] for index in range(len(pairs))]

    def rolling(self, texts: Sequence[str], on_done: Callable[[int], None] = lambda index: None) -> list[float]:
        """The log-probability of each whole text after the end of text. A long one is read window by window, each token
        predicted once: all of the first window, then as many new ones as fit, after what fits before them."""
        pairs: list[tuple[list[int], list[int]]] = []
        owner: list[int] = []
        for index, text in enumerate(texts):
            for pair in windows_of(self.encode(text, begun=False).tolist(), self.end, self.context):
                pairs.append(pair)
                owner.append(index)
        sums = [0.0] * len(texts)
        for index, found in zip(owner, self.likelihoods(pairs, on_done), strict=True):
            sums[index] += found.logprob
        return sums

    def texts(
        self, asked: Sequence[tuple[str, Mapping[str, Any]]], on_done: Callable[[int], None] = lambda index: None
    ) -> list[str]:
        """What follows each context by its generation settings, in the harness' words. UserError for unknown ones."""
        prompts = [self._generation(text, settings) for text, settings in asked]
        found: dict[int, str] = {}
        for index, reply in self.sampler.run(prompts):
            if reply.finish == "error":
                raise UserError("the model's output is no number: its weights are broken, or try --dtype float32")
            found[index] = reply.text
            on_done(index)
        return [found[index] for index in range(len(asked))]

    def _generation(self, text: str, settings: Mapping[str, Any]) -> Prompt:
        given = dict(settings)
        until = given.pop("until", None) or []
        limits = [given.pop(name, None) for name in ("max_gen_toks", "max_new_tokens", "max_tokens")]
        room = next((int(limit) for limit in limits if limit is not None), 256)
        warmth = float(given.pop("temperature", None) or 0.0)
        drawn = bool(given.pop("do_sample", warmth > 0))
        temperature = (warmth or 1.0) if drawn else 0.0
        sampling = Sampling(
            temperature, int(given.pop("top_k", None) or 0), float(given.pop("top_p", None) or 1.0),
            float(given.pop("min_p", None) or 0.0), int(given.pop("seed", None) or 0),
        )  # fmt: skip
        if given:
            raise UserError(f"generation_kwargs {sorted(given)} are unknown here; take them out of the task")
        if not 0 < room < self.context:
            raise UserError(f"max_gen_toks={room}: between 1 and the model's context of {self.context}, less a token")
        ids = self.encode(text)[-(self.context - room) :]
        stops = tuple([until] if isinstance(until, str) else until)
        return Prompt(ids, room, sampling, tuple(stop for stop in stops if stop))

    def _chat(self, messages: Sequence[Mapping[str, str]]) -> np.ndarray:
        """A last turn of the assistant is the beginning of its answer."""
        turns = [Turn(message["role"], message["content"]) for message in messages]  # type: ignore[arg-type]
        begun = turns.pop().text if turns and turns[-1].role == "assistant" else ""
        return np.concatenate([self.prompts.of_turns(turns), self.sampler.tokenizer.encode(begun)])


def spell_chat(messages: Sequence[Mapping[str, str]]) -> str:
    """A chat as a text that `Harness.encode` reads back; more text may follow it."""
    return f"{_CHAT}{json.dumps(list(messages))}{_CHAT}"


def windows_of(ids: Sequence[int], first: int, context: int) -> list[tuple[list[int], list[int]]]:
    """(what is read, what is predicted) so that each of the ids is predicted once, after as many as fit.

    `first` stands before the text. Reads at most `context` ids besides the last that is predicted.
    """
    found = [([first], list(ids[:context]))] if ids else []
    for begin in range(context, len(ids), context):
        end = min(begin + context, len(ids))
        # Of the `context` ids that end before the last predicted one, those that are not predicted themselves.
        found.append((list(ids[end - context - 1 : begin]), list(ids[begin:end])))
    return found
