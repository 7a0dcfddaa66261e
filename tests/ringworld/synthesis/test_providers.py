"""What a provider does with a server that fails in every way: nothing lost, nothing hidden, nothing sent too fast."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

import pytest

from ringworld.data.conversations import Turn
from ringworld.errors import UserError
from ringworld.synthesis.budget import Budget, Limits
from ringworld.synthesis.openai_provider import _PROBE, OpenAIProvider
from ringworld.synthesis.options import Secret, ServerOptions
from ringworld.synthesis.pace import Pace
from ringworld.synthesis.prompts import PromptOptions, ask
from ringworld.synthesis.providers import Extractive, Meter, ProviderDown
from ringworld.synthesis.records import Ask, Chunk, Pair, Reply
from ringworld.synthesis.replies import parse
from tests.ringworld.synthesis.misbehaving import MODEL, Answer, Asked, Server, free_port, refuses, says

QUICK: dict[str, Any] = {"first_wait_seconds": 0.01, "longest_wait_seconds": 0.05, "timeout_seconds": 5.0}
CANARY = "sk-canary-0123456789-do-not-leak"


def asks(count: int) -> list[Ask]:
    return [Ask((Turn("user", f"ask {number}"),), 50, 0.5, number) for number in range(count)]


def echo(asked: Asked) -> Answer:
    return says(f"you said {asked.prompt}")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(echo) as running:
        yield running


def answered(
    server: Server | str, count: int = 6, key: Secret | None = None, **options: Any
) -> tuple[list[Reply], Meter]:
    """The replies to so many asks, in their order."""
    url = server if isinstance(server, str) else server.url
    provider = OpenAIProvider(MODEL, ServerOptions(base_url=url, **(QUICK | options)), key)
    try:
        meter = Meter()
        found = list(provider.ask(asks(count), meter))
        assert sorted(index for index, _ in found) == list(range(count))
        return [reply for _, reply in sorted(found, key=lambda item: item[0])], meter
    finally:
        provider.close()


def first_times(fails: Answer, times: int = 1) -> Any:
    """Fails each prompt so often, then answers it."""
    seen: Counter[str] = Counter()

    def behave(asked: Asked) -> Answer:
        seen[asked.prompt] += 1
        return fails if seen[asked.prompt] <= times else echo(asked)

    return behave


def test_every_ask_gets_its_own_reply_and_no_more_are_under_way_than_allowed(server: Server) -> None:
    server.behave = lambda asked: Answer(body=echo(asked).body, after=0.02)
    replies, meter = answered(server, 30, concurrency=4)
    assert [reply.text for reply in replies] == [f"you said ask {number}" for number in range(30)]
    assert {(r.finish, r.model, r.prompt_tokens, r.tokens) for r in replies} == {("stop", MODEL, 100, 20)}
    assert server.most_under_way == 4
    assert (meter.requests, meter.failures) == (30, {})
    sent = next(asked for asked in server.requests if asked.prompt == "ask 7").body
    assert (sent["model"], sent["max_tokens"], sent["temperature"], sent["seed"]) == (MODEL, 50, 0.5, 7)


@pytest.mark.parametrize(
    ("fails", "reason"),
    [
        (refuses(500, "boom"), "server error"),
        (refuses(503, "later", Retry_After="0.05"), "server error"),
        (Answer(after=3.0), "timeout"),
        (Answer(body="<html>not what you think</html>"), "no reply in the body"),
        (Answer(body={"choices": []}), "no reply in the body"),
        (Answer(body={"choices": [{"message": {"content": None}}]}), "no reply in the body"),
        (Answer(body=[1, 2]), "no reply in the body"),
        (Answer(body='{"choices": [{"message": {"content": "cut'), "no reply in the body"),
        (Answer(body=says("a long reply " * 50).body, cut=100), "connection failed"),
        (Answer(body=says("a long reply").body, cut=0), "connection failed"),
    ],
)
def test_a_failure_that_passes_costs_nothing_but_time_and_is_counted(
    server: Server, fails: Answer, reason: str
) -> None:
    server.behave = first_times(fails)
    replies, meter = answered(server, 3, timeout_seconds=1.0 if fails.after else 10.0)
    assert [reply.text for reply in replies] == [f"you said ask {number}" for number in range(3)]
    assert (meter.requests, meter.failures) == (6, {reason: 3})


def test_a_request_that_always_fails_is_a_reply_with_its_reason_among_good_ones(server: Server) -> None:
    bad = {"ask 1": refuses(500, "always"), "ask 2": Answer(body="what?"), "ask 3": refuses(400, "too long for me")}
    server.behave = lambda asked: bad.get(asked.prompt) or echo(asked)
    replies, meter = answered(server, 6, tries=3)
    assert [reply.error for reply in replies] == ["", "server error", "no reply in the body", "request refused", "", ""]
    assert [reply.finish for reply in replies[1:4]] == ["error"] * 3
    assert replies[1].text == "status 500: always"
    assert replies[2].text == "what?"
    assert replies[3].text == "status 400: too long for me"
    assert meter.failures == {"server error": 3, "no reply in the body": 3, "request refused": 1}
    sent = Counter(asked.prompt for asked in server.requests if asked.prompt != "Say yes.")
    assert sent == {"ask 0": 1, "ask 1": 3, "ask 2": 3, "ask 3": 1, "ask 4": 1, "ask 5": 1}
    assert meter.requests == len(server.requests)


def test_a_server_that_fails_at_the_last_request_is_asked_whether_it_is_alive(server: Server) -> None:
    def behave(asked: Asked) -> Answer:
        return refuses(500, "always") if asked.prompt == "ask 2" else echo(asked)

    server.behave = behave
    replies, meter = answered(server, 3, tries=2, concurrency=1)
    assert [reply.error for reply in replies] == ["", "", "server error"]
    assert server.requests[-1].prompt == "Say yes."
    assert meter.requests == len(server.requests) == 2 + 2 + 1
    server.behave = lambda asked: echo(asked) if asked.prompt == "ask 0" else refuses(500, "dead")
    with pytest.raises(ProviderDown, match=r"failed 3 requests in a row \(3 server error\)"):
        answered(server, 3, tries=2, concurrency=1)


@pytest.mark.parametrize("header", [{"Retry_After": "0.4"}, {"Retry_After": None}, {}])
def test_a_storm_of_429_is_survived_and_everybody_rests(server: Server, header: dict[str, str | None]) -> None:
    """The server takes nothing for a while; then all asks are answered, and few were sent meanwhile."""
    began = time.monotonic()
    if "Retry_After" in header:
        header = {"Retry_After": header["Retry_After"] or formatdate(time.time() + 1, usegmt=True)}
    calm = 1.1

    def behave(asked: Asked) -> Answer:
        return echo(asked) if asked.at - began > calm else refuses(429, "slow down", **header)  # pyright: ignore[reportArgumentType]

    server.behave = behave
    replies, meter = answered(server, 20, concurrency=5, tries=1, longest_wait_seconds=0.5)
    assert all(reply.finish == "stop" for reply in replies)
    assert meter.failures["rate limit"] == meter.requests - 20
    # Without a rest that all share, five at a time would have sent hundreds.
    assert 5 <= meter.failures["rate limit"] <= 5 * 8


def test_a_rest_that_the_server_asks_for_is_kept_by_all(server: Server) -> None:
    server.behave = lambda asked: refuses(429, Retry_After="0.5") if asked.number == 0 else echo(asked)
    answered(server, 4, concurrency=1)
    times = [asked.at for asked in server.requests]
    assert times[1] - times[0] >= 0.5


def test_a_storm_without_end_ends_in_an_error(server: Server) -> None:
    server.behave = lambda asked: refuses(429, "never", Retry_After="3600")
    began = time.monotonic()
    with pytest.raises(ProviderDown, match=r"failed 4 requests in a row \(4 rate limit\).*status 429: never"):
        answered(server, 3, rate_limit_seconds=2.0)
    assert time.monotonic() - began < 2


def test_a_dead_server_is_down_after_a_few_requests(server: Server) -> None:
    began = time.monotonic()
    with pytest.raises(ProviderDown, match=r"failed 4 requests in a row \(4 connection failed\)"):
        answered(f"http://127.0.0.1:{free_port()}/v1", 100, patience=4, concurrency=4)
    server.behave = lambda asked: refuses(500, "boom")
    with pytest.raises(ProviderDown, match="3 server error"):
        answered(server, 2)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("fails", "told"),
    [
        (refuses(401, "wrong key"), "refuses the key, status 401: wrong key; it was given no key"),
        (
            refuses(404, "no such model", "model_not_found"),
            r"writer-1 at http://127.0.0.1:\d+/v1 is not there, status 404: no such model",
        ),
        (refuses(429, "pay first", "insufficient_quota"), "has no quota left"),
    ],
)
def test_what_no_try_can_cure_is_a_user_error_at_once(server: Server, fails: Answer, told: str) -> None:
    server.behave = lambda asked: fails
    with pytest.raises(UserError, match=told):
        answered(server, 20, concurrency=1)
    assert len(server.requests) == 1


def test_a_server_that_refuses_everything_was_asked_wrongly(server: Server) -> None:
    server.behave = lambda asked: refuses(400, "no parameter 'seed' here")
    with pytest.raises(UserError, match=r"3 request refused\).*no parameter 'seed' here; ask for what it can answer"):
        answered(server, 3)
    assert len(server.requests) == 3


def test_the_key_goes_to_the_server_and_nowhere_else(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the server repeats it, in an error, in a body that is none, or in a reply."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-server")
    key = Secret(f"{CANARY}\n", "WRITER_KEY")
    assert CANARY not in repr(key)
    tells = {
        "ask 0": says(f"your key is {CANARY}"),
        "ask 1": refuses(400, f"bad {CANARY}"),
        "ask 2": Answer(body=f"<html>{CANARY}</html>"),
    }
    server.behave = lambda asked: tells[asked.prompt]
    replies, _ = answered(server, 3, key, tries=1)
    assert {asked.headers["authorization"] for asked in server.requests} == {f"Bearer {CANARY}"}
    assert CANARY not in repr(replies)
    assert replies[0].text == "your key is [redacted]"
    server.behave = lambda asked: refuses(401, f"{CANARY} is wrong")
    with pytest.raises(UserError) as error:
        answered(server, 3, key, api_key_env="WRITER_KEY")
    assert CANARY not in "".join(traceback.format_exception(error.value))
    assert "WRITER_KEY" in str(error.value)
    server.behave = echo
    answered(server, 1)
    assert server.requests[-1].headers["authorization"] == "Bearer none"
    with pytest.raises(UserError, match="the variable WRITER_KEY holds no key") as error:
        Secret("two words-of-a-key", "WRITER_KEY")
    assert "words" not in str(error.value)
    with pytest.raises(UserError) as error:
        ServerOptions(base_url="http://user:hunter2@host/v1")
    assert "hunter2" not in str(error.value)


def test_odd_replies_are_stored_as_they_can_be(server: Server) -> None:
    odd = {
        "ask 0": says("half \ud800 a pair", finish="length", usage=None),
        "ask 1": says("", finish="content_filter", usage=(-5, 10**12)),
    }
    server.behave = lambda asked: odd[asked.prompt]
    replies, _ = answered(server, 2)
    assert (replies[0].text, replies[0].finish, replies[0].prompt_tokens) == ("half ? a pair", "length", 0)
    assert (replies[1].text, replies[1].finish) == ("", "stop")
    assert (replies[1].prompt_tokens, replies[1].tokens) == (0, 2**31 - 1)


def test_no_more_is_sent_in_a_minute_than_the_rate_allows(server: Server) -> None:
    answered(server, 6, requests_per_minute=600)
    times = sorted(asked.at for asked in server.requests)
    assert times[-1] - times[0] >= 5 * 0.1 - 0.02


def test_pace_spaces_requests_and_tokens_and_counts_what_was_not_used() -> None:
    """By a clock of its own: 60 requests and 6000 tokens a minute."""
    now = [0.0]

    async def slept(seconds: float) -> None:
        now[0] += seconds

    async def sent() -> list[float]:
        pace = Pace(60, 6000, clock=lambda: now[0])
        times = [await pace.turn(tokens) for tokens in (50, 300, 100)]
        pace.unused(50)
        times.append(await pace.turn(10))
        pace.refused(times[-1], 7.0)
        pace.refused(times[-1], None)  # it was under way as well
        times.append(await pace.turn(10))
        return times

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(asyncio, "sleep", slept)
        assert asyncio.run(sent()) == [0.0, 1.0, 4.0, 5.0, 12.0]


def test_retries_stop_where_the_meter_allows_no_more(server: Server) -> None:
    server.behave = lambda asked: echo(asked) if asked.prompt == "ask 0" else refuses(500, "boom")
    provider = OpenAIProvider(MODEL, ServerOptions(base_url=server.url, **QUICK))
    left = [2]

    def more(tokens: int) -> bool:
        assert tokens in (provider.worst(asks(1)[0]), provider.worst(_PROBE))
        left[0] -= 1
        return left[0] >= 0

    meter = Meter(more)
    replies = dict(provider.ask(asks(3), meter))
    provider.close()
    assert [replies[index].finish for index in range(3)] == ["stop", "error", "error"]
    assert len(server.requests) == meter.requests == 5
    assert meter.unused == 4 * provider.worst(asks(1)[0])


def test_leaving_early_sends_nothing_more(server: Server) -> None:
    server.behave = lambda asked: Answer(body=echo(asked).body, after=0.05)
    provider = OpenAIProvider(MODEL, ServerOptions(base_url=server.url, concurrency=2))
    replies = provider.ask(asks(50), Meter())
    next(replies)
    replies.close()  # pyright: ignore[reportAttributeAccessIssue]
    time.sleep(0.3)
    sent = len(server.requests)
    provider.close()
    assert sent <= 6


def test_extractive_questions_go_the_way_of_replies() -> None:
    text = "The ship was called Pequod. Captain Ahab had lost his leg in 1839 off the coast of Japan, so they said."
    asked = ask(Chunk("book", "s", 0, 0, len(text), 30, "train", text), 0, PromptOptions())
    [(index, reply)] = Extractive().ask([asked], Meter())
    pair = parse(reply.text, reply.finish)
    assert (index, reply.model) == (0, "extractive")
    assert isinstance(pair, Pair)
    assert pair.answer in text
    assert [(index, reply)] == list(Extractive().ask([asked], Meter()))


def test_a_budget_is_taken_before_and_given_back_after() -> None:
    budget = Budget(Limits(requests=10, tokens=1000))
    assert budget.take(1, [300] * 5) == 3  # 900 taken
    assert budget.take(2, [300]) is None  # the other one may give back
    budget.give_back(1, 700)
    assert budget.take(2, [300] * 5) == 2
    assert not budget.again(300)
    assert budget.again(200)
    assert budget.take(1, [300]) is None
    budget.lost(2)
    assert budget.take(1, [300]) == 0
    assert (budget.requests, budget.tokens) == (6, 1000)
    assert Budget(Limits(requests=2), requests=2).take(1, [0]) == 0
    assert Budget(Limits()).take(1, [0] * 5) == 5
    with pytest.raises(UserError, match=r"budget\.requests=0"):
        Limits(requests=0)
