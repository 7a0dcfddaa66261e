"""What the engine draws is what the model without a cache says, on any mesh, whoever else is in the batch."""

import numpy as np
import pytest

from ringworld.errors import UserError
from ringworld.generate.engine import Request
from ringworld.generate.sampling import GREEDY, Sampling


def prompt(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, length)).integers(0, 256, length).astype(np.int32)


def drain(engine) -> dict[int, list[int]]:
    """Tokens by ticket, of everything that was submitted."""
    found: dict[int, list[int]] = {}
    for _ in range(10_000):
        if not engine.busy:
            return found
        for event in engine.step():
            found.setdefault(event.ticket, [])
            if event.token is not None:
                found[event.ticket].append(event.token)
    raise AssertionError("the engine never came to an end")


@pytest.mark.parametrize("mesh", ["data=1", "ring=4", "tensor=2,ulysses=2,ring=2", "data=2,tensor=2,ring=2"])
def test_greedy_tokens_are_those_of_the_whole_model_on_every_mesh(model, mesh):
    lengths = [1, 2, 31, 64, 65, 200]  # around the chunk of 64, and of several chunks
    engine = model.engine(mesh)
    tickets = {engine.submit(Request(prompt(n), 12)): n for n in lengths}
    found = drain(engine)
    for ticket, length in tickets.items():
        assert found[ticket] == model.greedy(prompt(length), 12), f"{length} tokens on {mesh}"


def test_a_tied_model_with_as_many_key_heads_decodes_alike(tied_model):
    engine = tied_model.engine("tensor=2,ring=2")
    ticket = engine.submit(Request(prompt(70), 8))
    assert drain(engine)[ticket] == tied_model.greedy(prompt(70), 8)


def test_a_request_gets_the_same_tokens_alone_and_among_others(model):
    def request(seed: int) -> Request:
        return Request(prompt(40, seed), 20, Sampling(temperature=1.5, top_p=0.95, seed=seed))

    alone = {}
    for seed in range(7):
        engine = model.engine()
        ticket = engine.submit(request(seed))
        alone[seed] = drain(engine)[ticket]
    assert len({tuple(tokens) for tokens in alone.values()}) == 7
    engine = model.engine()
    tickets = {engine.submit(Request(prompt(150, 9), 3, GREEDY)): None}
    tickets |= {engine.submit(request(seed)): seed for seed in range(7)}
    together = drain(engine)
    for ticket, seed in tickets.items():
        assert seed is None or together[ticket] == alone[seed]


def test_two_seeds_of_one_prompt_differ_and_one_seed_does_not(model):
    engine = model.engine()
    hot = [Sampling(temperature=2.0, seed=seed) for seed in (1, 2, 1)]
    first, second, again = (engine.submit(Request(prompt(10), 16, sampling)) for sampling in hot)
    found = drain(engine)
    assert found[first] == found[again] != found[second]


def test_a_slot_goes_to_the_next_request_as_soon_as_one_ends(model):
    engine = model.engine()
    long = [engine.submit(Request(prompt(5, n), 60)) for n in range(3)]
    short = [engine.submit(Request(prompt(5, n), 4)) for n in range(3, 11)]
    ended = []
    while engine.busy:
        ended += [event.ticket for event in engine.step() if event.finish]
    assert ended == [*short, *long]  # eight short ones went through the fourth slot meanwhile


def test_a_prompt_that_is_read_does_not_hold_up_those_that_are_answered(model):
    engine = model.engine()
    early = engine.submit(Request(prompt(5), 30))
    engine.step()
    engine.submit(Request(prompt(250), 1))
    steps = [[event.ticket for event in engine.step()] for _ in range(3)]
    assert all(early in tickets for tickets in steps)  # 250 tokens are four chunks


def test_a_prompt_goes_on_from_whole_chunks_that_a_slot_still_holds(model):
    book, question = prompt(200), prompt(20, 3)
    engine = model.engine()
    engine.submit(Request(book, 5))
    drain(engine)
    ticket = engine.submit(Request(np.concatenate([book, question]), 10, Sampling(temperature=1.0, seed=4)))
    first = engine.step()
    assert first[0].read == 220  # all at once: 192 tokens were there, one chunk of 32 was left
    tokens = [event.token for event in first] + drain(engine)[ticket]
    # Of 150 tokens in common with what is held, two chunks count.
    assert engine._reusable(0, Request(np.concatenate([book[:150], question]), 1)) == 128
    fresh = model.engine()
    ticket = fresh.submit(Request(np.concatenate([book, question]), 10, Sampling(temperature=1.0, seed=4)))
    assert tokens == drain(fresh)[ticket]


def test_what_an_earlier_request_left_in_a_slot_is_never_seen(model):
    engine = model.engine()
    for n in range(4):
        engine.submit(Request(prompt(250, n), 20))
    drain(engine)
    ticket = engine.submit(Request(prompt(3, 5), 12))
    assert drain(engine)[ticket] == model.greedy(prompt(3, 5), 12)


def test_a_cancelled_request_frees_its_slot_and_hurts_no_other(model):
    engine = model.engine()
    doomed = engine.submit(Request(prompt(200), 50))
    kept = [engine.submit(Request(prompt(9), 10)) for _ in range(3)]
    waiting = engine.submit(Request(prompt(12), 10))
    engine.step()
    engine.cancel(doomed)
    assert engine.waiting == 1
    found = drain(engine)
    assert doomed not in found
    assert found[waiting] == model.greedy(prompt(12), 10)
    for ticket in kept:
        assert found[ticket] == model.greedy(prompt(9), 10)[-len(found[ticket]) :]


def test_prompts_are_scored_as_the_whole_model_scores_them(model):
    ids = prompt(150)
    engine = model.engine("tensor=2,ulysses=2,ring=2")
    engine.submit(Request(ids, 0, most=3, score=True))
    [event] = [event for _ in range(3) for event in engine.step() if event.finish]
    logits = model.logits(ids).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert event.prompt is not None
    assert len(event.prompt) == 149
    for n, told in enumerate(event.prompt):
        assert told.logprob == pytest.approx(logprobs[n, ids[n + 1]], abs=1e-3)
        assert [token for token, _ in told.top] == np.argsort(-logprobs[n])[:3].tolist()


def test_stop_ids_end_a_request(model):
    tokens = model.greedy(prompt(20), 10)
    stop = next(token for token in tokens[1:] if token not in tokens[: tokens.index(token)])
    engine = model.engine()
    ticket = engine.submit(Request(prompt(20), 10, stop_ids=frozenset({stop})))
    events = []
    while engine.busy:
        events += engine.step()
    assert [event.token for event in events if event.ticket == ticket] == tokens[: tokens.index(stop) + 1]
    assert events[-1].finish == "stop"


def test_the_cache_takes_the_bytes_that_are_counted(model):
    engine = model.engine("tensor=2,ring=4", slots=3)
    arrays = [x for layer in engine._cache for x in layer]
    held = sum(shard.data.nbytes for x in arrays for shard in x.addressable_shards)
    # 2 layers x keys and values x 3 slots x 2 heads x 320 tokens (300 in whole chunks of 64) x 8 numbers x 4 bytes
    assert held == engine.cache_shape.bytes == 2 * 2 * 3 * 2 * 320 * 8 * 4


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(np.zeros(0, np.int32), 5), "empty"),
        (Request(np.zeros(300, np.int32), 1), "context of 300"),
        (Request(np.zeros(3, np.int32), 0), "at least 1"),
        (Request(np.array([272], np.int32), 1), "vocabulary"),
        (Request(np.zeros(3, np.int32), 3, most=21), "from 0 to 20"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_words(model, request_, words):
    engine = model.engine()
    with pytest.raises(UserError, match=words):
        engine.submit(request_)
    assert not engine.busy


def test_a_prompt_and_answer_that_fill_the_context_exactly_are_answered(model):
    engine = model.engine()
    ticket = engine.submit(Request(prompt(299), 1))
    other = engine.submit(Request(prompt(290), 10))
    found = drain(engine)
    assert found[ticket] == model.greedy(prompt(299), 1)
    assert found[other] == model.greedy(prompt(290), 10)
