"""From documents to verified pairs on a local Ray, with real servers that fail: nothing lost, asked twice or hidden."""

from __future__ import annotations

import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from actors.local import RayCluster
from flows.views import Views
from infra.placement import Placement
from infra.redact import HIDDEN
from infra.stage import Result, Stage, StageContext
from ringworld.data.decisions import write_cuts, write_drops
from ringworld.data.files import join
from ringworld.synthesis.budget import Limits
from stages import tokens
from stages.questions_plan import Choice, plan, shards
from stages.questions_ray_llm import answer_through
from stages.shards import committed, read_shard
from stages.synthesize_qa import SynthesizeOptions, SynthesizeRecipe, _job
from stages.tokens import TokensRecipe
from tests.infra.tiny import Number
from tests.ringworld.synthesis.misbehaving import MODEL, Answer, Asked, Server, refuses, says, well
from tests.stages.questions import CHUNK, Run, pairs, text_of

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(scope="module")
def prepared(cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("prepared"))
    assert run.run(run.ports["tokens"]).ok
    return run


@pytest.fixture
def here(prepared: Run, tmp_path: Path) -> Run:
    return prepared.copy(tmp_path / "root")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(well) as running:
        yield running


def openai(server: Server, **options: Any) -> dict[str, Any]:
    quick = {"first_wait_seconds": 0.02, "longest_wait_seconds": 0.1, "timeout_seconds": 5, "tries": 2, "patience": 4}
    return {"openai": {"base_url": server.url} | quick | options, "retry_seconds": 0.05}


def place(row: dict[str, Any]) -> tuple[str, int]:
    return row["document"], row["number"]


def test_questions_without_a_model_say_so_and_every_chosen_chunk_has_a_row(here: Run) -> None:
    made = here.made(here.stage())
    rows = pairs(made)
    told = made.values
    assert told["written_by_model"] is False
    assert (told["provider"], told["models"]) == ("extractive", {"extractive": len(rows)})
    assert len(rows) == told["asked"] == told["chosen"] == told["chunks"] == len({place(row) for row in rows})
    assert told["kept"] == sum(row["kept"] for row in rows) > len(rows) / 2
    assert told["kept"] + sum(told["rejected"].values()) == told["asked"]
    assert (told["unasked"], told["stopped"]) == (0, "")
    for row in rows:
        assert row["kept"] == (row["reason"] is None)
        if row["kept"]:
            assert text_of(row)[row["answer_start"] : row["answer_end"]] == row["answer"]
            assert row["question"] in row["reply"]
    assert {row["split"] for row in rows} == {"train", "held_out"}
    assert all(split["kept"] for split in told["splits"].values())
    assert len(told["examples"]) == 10
    again = here.made(here.stage(), force="questions")
    assert pairs(again) == rows
    assert again.values == told


def test_decisions_of_other_stages_are_heeded_and_near_duplicates_dropped(here: Run, prepared: Run) -> None:
    """One document is dropped, one cut in two, and one question stands in two shards."""
    some = pairs(here.made(here.stage()))
    names = sorted({(row["document"], row["sha256"]) for row in some})
    (dropped, dropped_sha), (cut, cut_sha) = names[0], names[1]

    def decide(context: StageContext, recipe: Number) -> Result:
        file = next(name for name in context.inputs["documents"].files if name.startswith("documents/"))
        row = {"file": file, "sha256": dropped_sha, "source": dropped, "bytes": 1, "reason": "near duplicate"}
        write_drops(join(context.attempt_dir, "drops.parquet"), pa.Table.from_pylist([row]))
        span = {"file": file, "sha256": cut_sha, "source": cut, "start": 1000, "end": 1500}
        write_cuts(join(context.attempt_dir, "cuts.parquet"), pa.Table.from_pylist([span]))
        return Result(("drops.parquet", "cuts.parquet"))

    first = here.ports["documents"]
    decided = Stage("decontaminate", Number(), decide, {"documents": first}, Placement())
    ports = {"documents": first, "tokenizer": here.ports["tokenizer"], "decontaminate": decided}
    heeding = Stage("tokens-heeding", TokensRecipe(0.2), tokens.run, ports, Placement())
    made = here.made(here.stage(ports={"tokens": heeding, "decontaminate": decided}), force="questions")
    rows = pairs(made)
    assert dropped not in {row["document"] for row in rows}
    assert {cut, f"{cut}#2"} <= {row["document"] for row in rows}
    whole = Path(cut).read_text()
    for row in rows:
        if row["document"] == f"{cut}#2" and row["kept"]:
            assert row["answer"] in whole[1500:].strip()[row["start"] : row["end"]]


def test_rejected_replies_failed_requests_and_near_duplicates_are_rows_with_their_reason(
    here: Run, server: Server
) -> None:
    same = "Question: What did Captain Boomer count on the first day in Nantucket?\nAnswer: dollars"
    two = "Question: Who sailed?\nAnswer: Ahab\nQuestion: Who stayed?\nAnswer: Stubb"
    odd = {
        4: says("I would rather talk about the weather."),
        7: says(two),
        11: refuses(400, "too long"),
        13: says("Question", finish="length"),
    }
    server.behave = lambda asked: says(same) if asked.number % 3 == 0 else odd.get(asked.number) or well(asked)
    made = here.made(here.stage(openai(server, concurrency=4), provider="openai", model=MODEL))
    rows, told = pairs(made), made.values
    reasons = Counter(row["reason"] for row in rows if not row["kept"])
    assert reasons == told["rejected"]
    assert {"no question": 1, "several questions": 1, "request refused": 1, "cut off": 1}.items() <= reasons.items()
    refused = next(row for row in rows if row["reason"] == "request refused")
    assert (refused["finish"], refused["detail"], refused["question"]) == ("error", "status 400: too long", None)
    assert next(row for row in rows if row["reason"] == "several questions")["reply"] == two
    assert told["requests"] == len(server.requests) == len(rows)
    assert told["failed_requests"] == {"request refused": 1}
    assert (told["written_by_model"], told["models"]) == (True, {MODEL: len(rows)})
    assert len({row["prompt_sha256"] for row in rows}) == len(rows)
    assert told["prompt_tokens"] == 100 * (len(rows) - 1)
    # Of what stands in several shards the first is kept, by content, and each other one names it.
    alike = [row for row in rows if row["reply"] == same and row["reason"] in (None, "near duplicate")]
    alike.sort(key=lambda row: (row["sha256"], row["document"], row["number"]))
    assert len({row["sha256"] for row in alike}) > 1
    assert [row["kept"] for row in alike] == [True] + [False] * (len(alike) - 1)
    first = f"of chunk {alike[0]['number']} of {alike[0]['document']}: "
    assert all(row["detail"].startswith(first) for row in alike[1:])


def test_a_server_that_dies_costs_the_shards_under_way_and_attempts_go_on(here: Run) -> None:
    """It dies again and again, after about five shards; no chunk of a finished shard is asked again."""
    port = 0
    asked: list[str] = []
    for _ in range(8):
        with Server(well, port) as server:
            port = server.port
            server.behave = lambda one: well(one) if one.number < 60 else refuses(500, "dying")
            stage = here.stage(openai(server, concurrency=4) | {"shard_tries": 1}, provider="openai", model=MODEL)
            outcome = here.run(stage, limit=1)
            asked += [one.prompt for one in server.requests if one.number < 60]
        if outcome.ok:
            break
        failure = outcome.failures["questions"]
        assert failure.kind == "crashed"
        assert failure.marker == len(committed(str(here.store.url("questions", "state", "1", "shards"))))
        assert "dying" in failure.message
    rows = pairs(outcome.artifacts["questions"])
    assert len(rows) == len({place(row) for row in rows}) == outcome.artifacts["questions"].values["chosen"]
    assert all(row["finish"] == "stop" for row in rows)
    attempts = len(here.store.attempts("questions"))
    assert attempts > 1
    # Two shards of eight may be under way when the server dies.
    assert len(asked) <= len(rows) + 16 * (attempts - 1)


def test_a_worker_that_is_killed_costs_the_shards_under_way(here: Run, server: Server) -> None:
    killed: list[int] = []

    def behave(asked: Asked) -> Answer:
        if asked.number == 20:
            [worker] = [
                one for one in psutil.Process().children(recursive=True) if "Worker." in " ".join(one.cmdline())
            ]
            killed.append(worker.pid)
            worker.kill()
        return well(asked)

    server.behave = behave
    made = here.made(here.stage(openai(server, concurrency=4), provider="openai", model=MODEL))
    rows = pairs(made)
    assert killed
    assert len(rows) == len({place(row) for row in rows}) == made.values["chosen"]
    assert len(here.store.attempts("questions")) == 1
    assert len(rows) < len(server.requests) <= len(rows) + 16


@pytest.mark.parametrize("budget", [Limits(requests=30), Limits(tokens=20_000)])
def test_a_budget_is_never_exceeded_and_ends_the_asking(here: Run, server: Server, budget: Limits) -> None:
    """Also where requests fail and are sent again, and where the server does not always say what it used."""

    def behave(asked: Asked) -> Answer:
        if asked.number % 7 == 3:
            return refuses(500, "now and then")
        usage = (600, 40) if asked.number % 2 else None
        return says(well(asked).body["choices"][0]["message"]["content"], usage=usage)

    server.behave = behave
    made = here.made(here.stage(openai(server, concurrency=4), provider="openai", model=MODEL, budget=budget))
    told, rows = made.values, pairs(made)
    assert told["stopped"] == "the budget was spent"
    assert told["asked"] == len(rows) == told["chosen"] - told["unasked"] > 0
    assert told["requests"] == len(server.requests)
    if budget.requests:
        assert len(server.requests) == budget.requests
        return
    answered = [asked for asked in server.requests if asked.number % 7 != 3]
    # At least the bytes of its prompt is what a request without usage counts as.
    used = [640 if asked.number % 2 else len(asked.prompt.encode()) for asked in answered]
    assert sum(used) <= 20_000
    # Each of the four under way, and the one that did not fit, holds what it may use at most until it has ended.
    most = max(len(asked.prompt.encode()) + asked.body["max_tokens"] for asked in server.requests)
    assert sum(used) > 20_000 - 5 * most


def test_a_spent_budget_is_remembered_by_the_next_attempt(here: Run, server: Server) -> None:
    """The first attempt dies in the middle: what it has sent counts, whatever became of it."""
    budget = Limits(requests=70)
    server.behave = lambda asked: well(asked) if asked.number < 20 else refuses(500, "dying")
    options = openai(server, concurrency=4) | {"shard_tries": 1}
    stage = here.stage(options, provider="openai", model=MODEL, budget=budget)
    assert here.run(stage, limit=1).failures["questions"].kind == "crashed"
    server.behave = well
    made = here.made(stage)
    assert made.values["unasked"] > 0
    assert 55 <= len(server.requests) <= 70


def test_no_kept_pair_is_an_error_that_shows_ten_rejected_replies(here: Run, server: Server) -> None:
    said = ["Certainly! I can help.", "Question: Who?\nAnswer:", "Question: What is 2+2?\nAnswer: 4"]
    server.behave = lambda asked: says(said[asked.number % 3])
    choice = Choice(CHUNK.chunk_tokens, documents=2, per_document=6)
    stage = here.stage(openai(server), provider="openai", model=MODEL, choice=choice)
    failure = here.run(stage).failures["questions"]
    assert failure.kind == "user"
    assert failure.message.startswith("none of 12 replies is a question and an answer that its chunk supports (")
    assert failure.message.count("\n    replied ") == 10
    assert all(repr(text) in failure.message for text in said)
    assert len(server.requests) == 12


@pytest.mark.parametrize(
    ("fails", "told"),
    [(refuses(401, "who are you"), "refuses the key"), (refuses(404, "no such model"), "is not there")],
)
def test_a_wrong_key_or_model_is_a_user_error_at_once(here: Run, server: Server, fails: Answer, told: str) -> None:
    server.behave = lambda asked: fails
    failure = here.run(here.stage(openai(server), provider="openai", model=MODEL)).failures["questions"]
    assert (failure.kind, told in failure.message) == ("user", True)
    assert len(server.requests) <= 16
    assert len(here.store.attempts("questions")) == 1


def test_a_stop_ends_it_and_the_next_attempt_goes_on(here: Run, server: Server) -> None:
    stop = threading.Event()

    def behave(asked: Asked) -> Answer:
        if asked.number == 30:
            stop.set()
        return Answer(body=well(asked).body, after=0.05)

    server.behave = behave
    stage = here.stage(openai(server, concurrency=4), provider="openai", model=MODEL)
    outcome = here.run(stage, stop=stop)
    assert outcome.stopped
    before = len(server.requests)
    assert before < 60
    rows = pairs(here.made(stage))
    assert len(rows) == len({place(row) for row in rows})
    assert len(server.requests) <= len(rows) + 20


CANARY = "sk-canary-9876543210-do-not-leak"


def test_the_key_is_in_no_file_of_the_run_of_mlflow_or_of_ray(
    here: Run, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server repeats it wherever it can; a first attempt fails, a second succeeds, a third is refused."""
    import ray

    monkeypatch.setenv("WRITER_KEY", CANARY)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def behave(asked: Asked) -> Answer:
        if asked.number < 8:
            return refuses(500, f"boom {CANARY}")
        if asked.number % 5 == 0:
            return says(f"you are {CANARY}")
        return refuses(400, f"bad {CANARY}") if asked.number % 5 == 1 else well(asked)

    server.behave = behave
    options = openai(server, api_key_env="WRITER_KEY", tries=1) | {"shard_tries": 1}
    stage = here.stage(options, provider="openai", model=MODEL)
    with Views(here.store, [stage], "tiny", ["curriculum=tiny"]) as views:
        outcome = here.run(stage, observer=views)
        views.finish()
    assert outcome.ok
    assert len(here.store.attempts("questions")) > 1
    assert {asked.headers["authorization"] for asked in server.requests} == {f"Bearer {CANARY}"}
    rows = pairs(outcome.artifacts["questions"])
    server.behave = lambda asked: refuses(401, f"wrong: {CANARY}")
    failure = here.run(here.stage(options, provider="openai", model="other"), force="questions").failures["questions"]
    assert failure.kind == "user"
    assert CANARY not in failure.message + failure.log_tail
    private: Any = ray
    node = private._private.worker._global_node
    assert node is not None
    for folder in (here.root, node.get_session_dir_path()):
        found = subprocess.run(["grep", "-r", "-l", "-a", "-F", "-D", "skip", CANARY, str(folder)], capture_output=True)
        assert (found.returncode, found.stdout) == (1, b""), found
    # It was there to be found.
    assert any(HIDDEN in row["reply"] for row in rows)
    assert list(here.root.glob("mlflow.db"))


def test_shards_are_made_through_a_processor_of_ray_data(prepared: Run, tmp_path: Path) -> None:
    """Ray's processor for HTTP, which needs no GPU, in the place of its engines: the same rows in and out."""
    from ray.data.llm import HttpRequestProcessorConfig, build_processor

    recipe = SynthesizeRecipe(provider="ray_llm", model=MODEL, choice=Choice(CHUNK.chunk_tokens, per_document=3))
    stage = prepared.stage(provider="ray_llm", model=MODEL, choice=recipe.choice)
    outcome = prepared.run(prepared.ports["tokens"])
    context = StageContext(
        stage=stage,
        inputs={port: outcome.artifacts[one.name] for port, one in prepared.ports.items()},
        attempt=1,
        attempt_dir=str(tmp_path),
        state_dir=str(tmp_path / "state"),
        gangs=None,
        report=lambda **_: None,
        stop=threading.Event(),
        fence=lambda: None,
    )
    asked, _ = plan(context, recipe.choice, 0)
    todo = shards(asked, 5)
    job = _job(context, recipe, SynthesizeOptions())

    def payload(row: dict[str, Any]) -> dict[str, Any]:
        names = ("messages", "max_tokens", "temperature", "seed")
        return {"payload": {name: row[name] for name in names} | {"model": MODEL}}

    def answered(row: dict[str, Any]) -> dict[str, Any]:
        told = row["http_response"]
        choice = told["choices"][0]
        return {
            "shard": row["shard"],
            "index": row["index"],
            "text": choice["message"]["content"],
            "prompt_tokens": told["usage"]["prompt_tokens"],
            "tokens": told["usage"]["completion_tokens"],
            "finish": choice["finish_reason"],
        }

    with Server(well) as server:
        config = HttpRequestProcessorConfig(url=f"{server.url}/chat/completions", batch_size=4, concurrency=1)
        processor = build_processor(config, preprocess=payload, postprocess=answered)
        through = {shard.name: done for shard, done in answer_through(context, job, todo, processor)}
        assert len(server.requests) == len(asked)
    assert set(through) == committed(job.shards) == {shard.name for shard in todo}
    assert sum(done.asked for done in through.values()) == len(asked)
    assert sum(done.kept for done in through.values()) > len(asked) / 2
    for shard in todo:
        rows = read_shard(job.shards, shard.name)
        assert rows["number"].to_pylist() == shard.rows["number"].to_pylist()
        assert rows["document"].to_pylist() == shard.rows["document"].to_pylist()
        assert set(rows["provider"].to_pylist()) == {"ray_llm"}
