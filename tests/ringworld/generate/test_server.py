"""OpenAI's own client against the endpoint, over a real socket; and what a bad or impatient client gets."""

import contextlib
import http.client
import json
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest
import uvicorn

from ringworld.data.tokenizers import ByteTokenizer
from ringworld.generate.chat import Prompts
from ringworld.generate.checkpoint import Checkpoint
from ringworld.generate.server import Settings, make_app
from ringworld.generate.service import Service

KEY = "canary-7f1e"


@pytest.fixture(scope="module")
def served(model):
    """(port, service) of a server with four slots and a queue of one."""
    sampler = model.sampler()
    checkpoint = Checkpoint(
        name="tiny", config=model.config, rope=model.rope, weights="", context=300, dtype="float32",
        tokenizer=ByteTokenizer(), begin=None, stop_ids=frozenset({257}), template=None,
    )  # fmt: skip
    with socket.socket() as probe, Service(sampler, capacity=5) as service:
        probe.bind(("127.0.0.1", 0))
        app = make_app(service, Prompts(checkpoint), Settings("tiny", KEY, max_body=4096))
        server = uvicorn.Server(uvicorn.Config(app, log_level="debug", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [probe]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield probe.getsockname()[1], service
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{served[0]}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def text_of(ids) -> str:
    return ByteTokenizer().decode(ids)


def post(port: int, path: str, body: bytes, headers=None) -> tuple[int, dict]:
    """Status and JSON of a request as no client library would send it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    given = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"} | (headers or {})
    connection.request("POST", path, body, given)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def idle(service: Service) -> bool:
    """Whether everything has ended within ten seconds."""
    for _ in range(1000):
        if service.taken == 0 and not service.sampler.engine.busy:
            return True
        time.sleep(0.01)
    return False


def test_the_client_lists_the_model(client):
    assert [found.id for found in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_a_completion_is_what_the_model_says(client, model):
    ids = ByteTokenizer().encode("Once upon")
    found = client.completions.create(model="tiny", prompt="Once upon", max_tokens=20, temperature=0)
    assert found.choices[0].text == text_of(model.greedy(ids, 20))
    assert found.choices[0].finish_reason == "length"
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (9, 20)


def test_a_stream_adds_up_to_the_whole_and_tells_usage(client):
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Hé?"}], "max_tokens": 30, "seed": 5}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage == whole.usage
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"


def test_many_clients_at_once_get_what_each_gets_alone(client):
    def ask(seed: int) -> str:
        reply = client.completions.create(model="tiny", prompt=f"No {seed}", max_tokens=25, seed=seed)
        return reply.choices[0].text

    alone = [ask(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == alone
    assert len(set(alone)) == 4


def test_choices_differ_and_stop_strings_end_them(client):
    asked = {"model": "tiny", "prompt": "ab", "max_tokens": 40, "temperature": 1.5, "seed": 3}
    texts = [choice.text for choice in client.completions.create(**asked, n=3).choices]
    assert len(set(texts)) == 3
    stop = texts[0][5:8]
    stopped = client.completions.create(**asked, stop=[stop, "never"]).choices[0]
    assert stopped.text == texts[0][: texts[0].index(stop)]
    assert stopped.finish_reason == "stop"


def test_logprobs_of_an_echoed_prompt_are_those_of_the_model(client, model):
    """As lm-eval asks: token ids, echo, logprobs, one token."""
    ids = ByteTokenizer().encode("The ring is round.").tolist()
    found = client.completions.create(model="tiny", prompt=[ids], max_tokens=1, logprobs=1, echo=True, temperature=0)
    told = found.choices[0].logprobs
    logits = model.logits(ids).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert told.token_logprobs[0] is None
    assert len(told.tokens) == len(ids) + 1
    expected = [logprobs[n, token] for n, token in enumerate(ids[1:])]
    np.testing.assert_allclose(told.token_logprobs[1:-1], expected, atol=1e-3)
    for n, top in enumerate(told.top_logprobs[1:]):
        assert max(top.values()) == pytest.approx(logprobs[n].max(), abs=1e-3)
    assert found.choices[0].text.startswith("The ring is round.")


def test_a_client_that_goes_away_cancels_its_request(served, client):
    _, service = served
    for stream in (True, False):
        with contextlib.suppress(openai.APITimeoutError):
            impatient = client.with_options(timeout=0.1)
            found = impatient.completions.create(model="tiny", prompt="x" * 200, max_tokens=100, stream=stream, n=5)
            if stream:
                next(iter(found))
                found.close()
        assert idle(service), f"stream={stream}"


def test_more_than_the_queue_holds_is_answered_429(served, client):
    _, service = served
    with client.completions.create(model="tiny", prompt="x", max_tokens=250, n=5, stream=True) as stream:
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as refused:
            client.completions.create(model="tiny", prompt="y", max_tokens=5)
        assert refused.value.code == "queue_full"
        assert refused.value.response.headers["retry-after"] == "1"
    assert idle(service)


BAD = [
    ({"max_tokens": 500}, 400, "context_length_exceeded"),
    ({"prompt": "x" * 300, "max_tokens": 1}, 400, "context_length_exceeded"),
    ({"prompt": ""}, 400, None),
    ({"prompt": [1, "a"]}, 400, None),
    ({"prompt": [300]}, 400, None),
    ({"prompt": None}, 400, None),
    ({"model": "gpt-4"}, 404, "model_not_found"),
    ({"temperature": -1}, 400, None),
    ({"temperature": "hot"}, 400, None),
    ({"top_p": 1.5}, 400, None),
    ({"logprobs": 6}, 400, None),
    ({"n": 0}, 400, None),
    ({"n": 6}, 400, None),
    ({"stop": ["a", ""]}, 400, None),
    ({"stop": 7}, 400, None),
    ({"logit_bias": {"50": 1}}, 400, None),
    ({"temprature": 0}, 400, None),
    ({"max_tokens": 0}, 400, None),
    ({"seed": 2**70}, 400, None),
]


@pytest.mark.parametrize(("change", "status", "code"), BAD)
def test_what_cannot_be_done_is_a_clean_4xx(served, change, status, code):
    body = {"model": "tiny", "prompt": "abc", "max_tokens": 4} | change
    got, answer = post(served[0], "/v1/completions", json.dumps(body).encode())
    assert got == status, answer
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["code"] == code
    assert answer["error"]["message"]


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "hello",
        [{"role": "user"}],
        [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
    ],
)
def test_conversations_that_cannot_be_answered_are_400(client, messages):
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="tiny", messages=messages, max_tokens=3)


def test_broken_requests_are_answered_in_the_same_shape(served):
    port, _ = served
    for path, body, headers, status in (
        ("/v1/completions", b"{not json", None, 400),
        ("/v1/completions", b"[" * 3000, None, 400),
        ("/v1/completions", b'"text"', None, 400),
        ("/v1/completions", b"x" * 5000, None, 413),
        ("/v1/completions", b"{}", {"Content-Type": "text/plain"}, 415),
        ("/v1/completions", b"{}", {"Authorization": "Bearer wrong"}, 401),
        ("/v1/completions", b"{}", {"Authorization": ""}, 401),
        ("/v1/embeddings", b"{}", None, 404),
        ("/v1/models", b"{}", None, 405),
    ):
        got, answer = post(port, path, body, headers)
        assert got == status, (path, body[:20], answer)
        assert answer["error"]["message"]


def test_a_client_that_goes_away_inside_its_request_is_no_error(served, caplog):
    with socket.create_connection(("127.0.0.1", served[0])) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 99\r\n"
        connection.sendall((head + "Content-Type: application/json\r\n\r\n{").encode())
    assert post(served[0], "/v1/completions", b"{")[0] == 400  # it goes on answering
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_the_key_is_never_logged(served, client, caplog):
    with caplog.at_level(logging.DEBUG):
        client.completions.create(model="tiny", prompt="a", max_tokens=2)
        post(served[0], "/v1/completions", b"{", {"Authorization": f"Bearer {KEY}-wrong"})
    assert KEY not in "".join(record.getMessage() for record in caplog.records if record.name != "openai._base_client")
