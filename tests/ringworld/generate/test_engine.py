"""What the engine draws is what the model without a cache says, on any mesh, whoever else is in the batch."""

import copy

import numpy as np
import pytest

from ringworld.errors import UserError
from ringworld.generate.engine import Request
from ringworld.generate.sampling import GREEDY, Sampling
from tests.thorough import thorough


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


@pytest.mark.parametrize(
    "mesh", ["data=1", "data=2,tensor=2,ring=2", thorough("ring=4"), thorough("tensor=2,ulysses=2,ring=2")]
)
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


def test_biases_and_norms_of_heads_decode_as_the_whole_model(biased_model):
    engine = biased_model.engine("tensor=2,ring=2")
    ticket = engine.submit(Request(prompt(70), 8))
    assert drain(engine)[ticket] == biased_model.greedy(prompt(70), 8)


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
    assert engine._held[0].of(Request(np.concatenate([book[:150], question]), 1), engine.chunk) == 128
    fresh = model.engine()
    ticket = fresh.submit(Request(np.concatenate([book, question]), 10, Sampling(temperature=1.0, seed=4)))
    assert tokens == drain(fresh)[ticket]


def counted(engine) -> list[int]:
    """The chunks that an engine reads from now on, by their length."""
    read, programs = [], copy.copy(engine._programs)
    chunk = programs.chunk
    programs.chunk = lambda cache, one: read.append(one.tokens.shape[1]) or chunk(cache, one)
    engine._programs = programs
    return read


@pytest.mark.parametrize("mesh", [thorough("data=1"), "data=2,tensor=2,ring=2"])
def test_choices_of_one_prompt_read_it_once_on_each_batch_shard(model, mesh):
    def choice(seed: int) -> Request:
        return Request(prompt(150), 6, Sampling(temperature=1.5, seed=seed), most=2)

    def answers(engine, requests) -> dict[int, list]:
        tickets = [engine.submit(request) for request in requests]
        events = []
        while engine.busy:
            events += [event for event in engine.step() if event.token is not None]
        return {n: [(e.token, e.likelihood) for e in events if e.ticket == t] for n, t in enumerate(tickets)}

    alone = {seed: answers(model.engine(mesh), [choice(seed)])[0] for seed in range(6)}
    assert len({tuple(token for token, _ in found) for found in alone.values()}) == 6
    engine = model.engine(mesh)
    read = counted(engine)
    assert answers(engine, [choice(seed) for seed in range(6)]) == alone  # two more choices than slots
    assert len(read) == 3  # 150 tokens; both batch shards read at the same time


def test_questions_about_one_book_asked_together_read_its_chunks_once(model):
    book = prompt(200)
    asked = [np.concatenate([book, prompt(20, n)]) for n in range(3)]
    engine = model.engine()
    read = counted(engine)
    tickets = [engine.submit(Request(ids, 8)) for ids in asked]
    found = drain(engine)
    assert read == [64, 64, 64, 32, 32, 32]
    for ticket, ids in zip(tickets, asked, strict=True):
        assert found[ticket] == model.greedy(ids, 8)


def broken_engine(model, sound):
    """An engine of the same model with a NaN in the embedding of a token that is not among `sound` ones; that token."""
    token = next(n for n in range(256) if n not in set(sound))
    engine = model.engine()
    programs = copy.copy(engine._programs)
    programs._weights = {**programs._weights, "embedding": programs._weights["embedding"].at[token].set(np.nan)}
    engine._programs = programs
    return engine, token


def test_a_nan_ends_its_request_by_an_error_and_no_other(model):
    good = {n: model.greedy(prompt(n), 12) for n in (30, 100, 7)}
    later = {n: model.greedy(prompt(n), 12) for n in (9, 10, 11, 12)}
    prompts = [token for n in (*good, *later, 70) for token in prompt(n).tolist()]
    engine, token = broken_engine(model, sum([*good.values(), *later.values()], prompts))
    bad = engine.submit(Request(np.array([*prompt(70), token, *prompt(30)]), 12))
    tickets = {engine.submit(Request(prompt(n), 12)): n for n in good}
    events = []
    while engine.busy:
        events += engine.step()
    assert [event.finish for event in events if event.ticket == bad] == [None, "error"]
    for ticket, n in tickets.items():
        assert [event.token for event in events if event.ticket == ticket if event.token is not None] == good[n]
    # One of these comes into its slot: what it left behind their prompts would be NaN for them.
    tickets = {engine.submit(Request(prompt(n), 12)): n for n in later}
    found = drain(engine)
    for ticket, n in tickets.items():
        assert found[ticket] == later[n]


def test_a_nan_while_tokens_are_drawn_comes_after_the_sound_ones(model):
    tokens = model.greedy(prompt(20), 10)
    first = next(n for n, token in enumerate(tokens) if token not in prompt(20))
    engine, _ = broken_engine(model, set(range(256)) - {tokens[first]})
    engine.submit(Request(prompt(20), 10))
    events = []
    while engine.busy:
        events += engine.step()
    assert [event.token for event in events] == [*tokens[: first + 1], None]
    assert events[-1].finish == "error"


def test_a_nan_in_a_prompt_that_was_given_up_is_wiped_too(model):
    later = {n: model.greedy(prompt(n), 10) for n in (9, 10, 11, 12)}
    engine, token = broken_engine(model, [id for n, ids in later.items() for id in [*ids, *prompt(n), *prompt(200)]])
    given_up = engine.submit(Request(np.array([*prompt(40), token, *prompt(200)]), 10))
    assert engine.step()[0].finish is None
    engine.cancel(given_up)
    tickets = {engine.submit(Request(prompt(n), 10)): n for n in later}
    found = drain(engine)
    for ticket, n in tickets.items():
        assert found[ticket] == later[n]


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
    engine.submit(Request(ids, 1))  # a slot that holds the prompt spares a scored one nothing
    drain(engine)
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
