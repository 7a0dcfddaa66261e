"""Notices of the machine, from a real HTTP server in the place of Google's."""

import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ringworld.train.notice import HOST_VARIABLE, Notices

ROOT = "/computeMetadata/v1/instance/"


class Metadata(ThreadingHTTPServer):
    """A metadata server. answers: by path below instance/; what is not there is refused. asked: requests so far."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.answers, self.asked = {"preempted": "FALSE", "maintenance-event": "NONE"}, 0


class Answer(BaseHTTPRequestHandler):
    server: Metadata

    def do_GET(self):
        self.server.asked += 1
        answer = self.server.answers.get(self.path.removeprefix(ROOT))
        allowed = self.headers["Metadata-Flavor"] == "Google" and answer is not None
        self.send_response(200 if allowed else 403)
        self.end_headers()
        self.wfile.write(answer.encode() if answer and allowed else b"TRUE")

    def log_message(self, format, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    server = Metadata()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv(HOST_VARIABLE, f"127.0.0.1:{server.server_port}")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def signals():
    """The times at which this process was asked to end."""
    times = []
    before = signal.signal(signal.SIGTERM, lambda *_: times.append(time.monotonic()))
    yield times
    signal.signal(signal.SIGTERM, before)


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("what", "answer"), [("preempted", "TRUE"), ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")]
)
def test_a_notice_asks_the_process_to_end_once(server, signals, what, answer, capfd):
    with Notices(poll_seconds=0.01):
        until(lambda: server.asked >= 6)
        assert not signals
        server.answers[what] = answer
        until(lambda: signals)
        asked = server.asked
        time.sleep(0.1)
    assert len(signals) == 1
    assert server.asked == asked
    assert f"{what} is {answer}; saving" in capfd.readouterr().err


def test_a_server_that_refuses_or_is_not_there_is_no_notice_and_is_told_once(server, signals, monkeypatch, capfd):
    server.answers = {}
    with Notices(poll_seconds=0.01):
        until(lambda: server.asked >= 6)
    monkeypatch.setenv(HOST_VARIABLE, "127.0.0.1:9")
    with Notices(poll_seconds=0.01):
        time.sleep(0.2)
    assert not signals
    assert capfd.readouterr().err.count("warning: no notices: ") == 2


def test_nothing_watches_once_the_job_has_ended(server, signals):
    with Notices(poll_seconds=0.01):
        until(lambda: server.asked)
    server.answers["preempted"] = "TRUE"
    time.sleep(0.1)
    assert not signals
    assert "notices" not in {thread.name for thread in threading.enumerate()}
