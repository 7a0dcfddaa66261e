"""Text of many prompts through one engine."""

import numpy as np
import pytest

from ringworld.data.tokenizers import ByteTokenizer
from ringworld.errors import UserError
from ringworld.generate.sampler import Prompt
from ringworld.generate.sampling import Sampling

BYTES = ByteTokenizer()


def ask(text: str, **how) -> Prompt:
    return Prompt(BYTES.encode(text), **how)


def test_more_prompts_than_slots_are_all_answered_each_as_the_model_says(model):
    sampler = model.sampler()
    texts = [f"prompt {n} " * (n % 4 + 1) for n in range(9)]
    replies = dict(sampler.run(ask(text, max_tokens=8 + n) for n, text in enumerate(texts)))
    for n, text in enumerate(texts):
        tokens = model.greedy(BYTES.encode(text), 8 + n)
        if BYTES.eos_id in tokens:
            tokens = tokens[: tokens.index(BYTES.eos_id) + 1]
        assert list(replies[n].tokens) == tokens
        assert replies[n].text == BYTES.decode(tokens)
        assert replies[n].prompt_tokens == len(text)
    assert not sampler.engine.busy


def test_a_stop_string_over_several_tokens_ends_the_text_before_it(model):
    sampler = model.sampler()
    hot = Sampling(temperature=1.0, seed=11)
    [(_, free)] = sampler.run([ask("stop here", max_tokens=60, sampling=hot)])
    at = next(n for n in range(8, len(free.text) - 3) if free.text.find(free.text[n : n + 3]) == n)
    pieces = []
    stop = free.text[at : at + 3]
    [(_, cut)] = sampler.run(
        [ask("stop here", max_tokens=60, sampling=hot, stop=("never there", stop))],
        lambda _, piece: pieces.append(piece),
    )
    assert (cut.text, cut.finish) == (free.text[:at], "stop")
    assert "".join(piece.text for piece in pieces) == cut.text
    assert not sampler.engine.busy


def test_max_tokens_of_none_is_what_the_context_leaves(model):
    [(_, reply)] = model.sampler().run([ask("x" * 290)])
    assert len(reply.tokens) == 10 or reply.tokens[-1] == BYTES.eos_id


def test_leaving_a_run_cancels_what_is_under_way(model):
    sampler = model.sampler()
    for _ in sampler.run(ask("abc", max_tokens=n) for n in (1, 200, 200, 200)):
        break
    assert not sampler.engine.busy
    assert not sampler._texts


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (ask("x" * 300), "no room for an answer"),
        (ask(""), "empty"),
        (ask("x" * 290, max_tokens=11), "context of 300"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(model, prompt, words):
    with pytest.raises(UserError, match=words):
        model.sampler().submit(prompt)


def test_stop_strings_are_checked():
    for stop in [("",), tuple(map(str, range(17)))]:
        with pytest.raises(UserError, match="stop="):
            Prompt(np.zeros(1, np.int32), stop=stop)
