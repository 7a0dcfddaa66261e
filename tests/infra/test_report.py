"""The report shows what storage says, whole or half, in one page that fetches nothing and runs nothing."""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from bs4 import BeautifulSoup

from infra.formats import context, duration
from infra.report import write_report
from infra.report_figures import Node, graph, short, ticks
from infra.storage import Store
from tests.infra.run_on_disk import (
    DocumentsRecipe,
    EvaluateRecipe,
    TokensRecipe,
    TrainRecipe,
    finish,
    make_stage,
    picture,
    write_steps,
)

HOSTILE = "<script>alert(1)</script>"
CANARY = "canary-77aa"
NEEDLE, POSITION = picture(), picture(90)
LENGTHS = (512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True)
class TokenizerRecipe:
    kind: ClassVar[str] = "tokenizer"
    vocabulary: int = 1000


@dataclass(frozen=True)
class PackRecipe:
    kind: ClassVar[str] = "pack"
    sequence: int


def graph_of_stages():
    """The graph of the tiny curriculum: name -> stage, each after its inputs."""
    documents = make_stage("documents", DocumentsRecipe(sources=("installed", f"https://me:{CANARY}@host/books/*.txt")))
    tokenizer = make_stage("tokenizer", TokenizerRecipe(), {"documents": documents})
    tokens = make_stage("tokens", TokensRecipe(), {"documents": documents, "tokenizer": tokenizer})
    stages = [documents, tokenizer, tokens]
    model = None
    for index, length in enumerate(LENGTHS):
        name = context(length).lower()
        pack = make_stage(f"pack-{name}", PackRecipe(sequence=length), {"tokens": tokens})
        inputs = {"tokens": tokens, "pack": pack} | ({"init": model} if model else {})
        model = make_stage(f"text-{name}", TrainRecipe(sequence=length, rope_theta=1e4 * 4**index), inputs)
        judged = make_stage(f"eval-{name}", EvaluateRecipe(sequence=length), {"tokens": tokens, "model": model})
        stages += [pack, model, judged]
    return {stage.name: stage for stage in stages}


def write_run(store, stages, needle=NEEDLE, position=POSITION):
    """Everything finished, with figures of a believable size."""
    finish(
        store,
        stages["documents"],
        {
            "seen": 214,
            "documents": 187,
            "bytes": 48_211_904,
            "reasons": {"too short": 17, "exact duplicate": 6, "mostly numbers": 3, "broken": 1},
            "refused": [f"books/{HOSTILE}.txt"],
        },
        {"documents-00000.parquet": b"x" * 900},
        seconds=21.4,
    )
    finish(store, stages["tokenizer"], {"family": "bpe", "vocabulary_size": 1000, "hash": "ab" * 32}, seconds=6.2)
    lengths = {"512": 12, "1024": 24, "2048": 31, "4096": 40, "8192": 38, "16384": 42}
    finish(
        store,
        stages["tokens"],
        {
            "tokens": 14_211_904,
            "train": {"documents": 178},
            "held_out": {"documents": 9},
            "lengths": lengths,
        },
        seconds=17.9,
    )
    for index, length in enumerate(LENGTHS):
        name = context(length).lower()
        rows = {"rows": 800 >> index, "fill": 0.981, "sequence": length}
        finish(store, stages[f"pack-{name}"], rows, {"plan.parquet": b"p"}, seconds=1.3)
        train = stages[f"text-{name}"]
        write_steps(store, train, count=240 if index == 0 else 60, start=1000 * index, speed=9000 - 900 * index)
        finish(
            store,
            train,
            {
                "steps": 60,
                "tokens": 491520,
                "final_loss": 3.4 - 0.2 * index,
                "tokens_per_second": 9000.0 - 900 * index,
                "sequence": length,
                "parameters": 1_312_000,
                "peak_memory_bytes": 812_000_000,
            },
            seconds=48.0 + 3 * index,
        )
        past = {"loss_past_before": 4.3 - 0.1 * index, "loss_past_after": 3.5 - 0.1 * index, "past": length // 2}
        finish(
            store,
            stages[f"eval-{name}"],
            {
                "sequence": length,
                "loss_before": 6.91 if index == 0 else 3.7 - 0.1 * index,
                "loss_after": 3.6 - 0.1 * index,
                **(past if index else {}),
                "needle_exact": 0.02 * index,
                "needle_digits": 0.1 + 0.03 * index,
                "needle_cells": [{"length": 256, "depth": 0.0, "exact": 0.0, "digits": 0.1}],
            },
            {"needle.png": needle, "loss_by_position.png": position, "evaluation.json": b"{}"},
            seconds=9.5,
        )


def page(store) -> Any:
    return BeautifulSoup(store.read("report.html").data.decode(), "html.parser")


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "runs"), "tiny")


@pytest.fixture
def stages():
    return graph_of_stages()


def test_a_finished_run_is_shown_whole(store, stages):
    write_run(store, stages)
    states = {name: "reused" if name == "documents" else "done" for name in stages}
    url = write_report(store, stages.values(), states, command="python flows/full_curriculum.py curriculum=tiny")
    assert url == store.url("report.html")
    soup = page(store)
    assert [title.text for title in soup.find_all("h2")] == [
        "Stages",
        "Training",
        "Where the time went",
        "Does it use the longer context?",
        "Needles and loss by position",
        "Data",
        "Rows and steps",
        "Every stage",
        "Where this comes from",
    ]
    nodes = soup.select("svg.graph g.node")
    assert {node.select_one("text.name").text for node in nodes} == set(stages)
    assert len(soup.select("svg.graph g.reused")) == 1
    assert len(soup.select("svg.chart")) == 2
    assert [label.text for label in soup.select("svg.chart")[0].select("text.label")] == ["512", "1K", "2K", "4K", "8K"]
    table = soup.find("h2", string="Does it use the longer context?").find_next("table")
    rows = [[cell.text for cell in row.find_all("td")] for row in table.find_all("tr") if row.find("td")]
    assert rows[0][:5] == ["eval-512", "512", "—", "6.910 → 3.600", "—"]
    assert rows[4][:2] + rows[4][3:6] == ["eval-8k", "8K", "3.300 → 3.200", "4K", "3.900 → 3.100"]
    assert rows[4][6:] == ["—", "—", "8%", "22%", "—", "—"]
    assert "512 to 8K tokens" in soup.select_one(".summary").text
    assert "every extension: the longer context is used" in soup.select_one(".summary").text
    assert "A needle is found in 8% of texts of up to 8K tokens." in soup.select_one(".summary").text
    assert len(soup.find_all("figure")) == 10
    assert base64.b64decode(soup.find("img")["src"].partition(",")[2]).startswith(b"\x89PNG")
    assert len(soup.find_all("details")) == len(stages)
    assert "curriculum=tiny" in soup.select_one("code.command").text


def test_the_page_fetches_nothing_and_runs_nothing_from_outside(store, stages):
    write_run(store, stages)
    write_report(store, stages.values(), {HOSTILE: HOSTILE}, command=f"run --name {HOSTILE}", curriculum=HOSTILE)
    text = store.read("report.html").data.decode()
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    soup = page(store)
    assert "default-src 'none'" in soup.find("meta", {"http-equiv": True})["content"]
    assert all(image["src"].startswith("data:") for image in soup.find_all("img"))
    assert not soup.find_all(["link", "iframe", "object", "a", "base"])
    assert "url(" not in text
    assert "@import" not in text


def test_secrets_are_not_shown(store, stages):
    write_run(store, stages)
    write_report(store, stages.values(), {}, command=f"python flow.py hub_token={CANARY}")
    assert CANARY not in store.read("report.html").data.decode()


def test_an_untouched_run_has_a_page_too(store, stages):
    write_report(store, stages.values(), {})
    soup = page(store)
    assert "Nothing has been trained yet" in soup.text
    assert len(soup.select("svg.graph g.waiting")) == len(stages)


def test_a_run_in_the_middle_shows_its_states_and_the_steps_so_far(store, stages):
    finish(store, stages["documents"], {"seen": 3})
    finish(store, stages["tokens"], {"lengths": None, "tokens": "many"})
    write_steps(store, stages["text-512"], count=1)
    finish(store, stages["eval-512"], {"loss_before": None, "needle_exact": "x", "loss_after": 3.0})
    states = {"documents": "finished", "text-512": "retrying", "tokenizer": "failed", "eval-512": "odd"}
    write_report(store, stages.values(), states)
    soup = page(store)
    assert [node.select_one("text.name").text for node in soup.select("g.running")] == ["text-512"]
    assert [node.select_one("text.name").text for node in soup.select("g.failed")] == ["tokenizer"]
    assert "Failed: tokenizer." in soup.select_one(".summary").text
    assert len(soup.select("svg.chart")) == 2


def test_a_loss_that_rose_is_said_so(store, stages):
    finish(
        store, stages["eval-1k"], {"loss_before": 3.0, "loss_after": 3.5, "loss_past_before": 1, "loss_past_after": 2}
    )
    write_report(store, stages.values(), {})
    soup = page(store)
    assert [cell.text for cell in soup.select("td .bad")] == ["3.000 → 3.500", "1.000 → 2.000"]
    assert not soup.select("td .good")


def test_what_calls_itself_a_picture_and_is_none_is_not_embedded(store, stages):
    finish(store, stages["eval-512"], {}, {"needle.png": b"<svg onload=alert(1)>"})
    write_report(store, stages.values(), {})
    assert not page(store).find_all("img")


def test_edges_show_what_is_needed_and_not_what_follows(store, stages):
    write_report(store, stages.values(), {})
    # documents->tokenizer->tokens, tokens->5 packs, 5 packs->text, 4 text->text, 5 text->eval
    assert len(page(store).select("path.edge")) == 2 + 5 + 5 + 4 + 5


def test_writing_is_quick_and_writing_again_replaces(store, stages):
    write_run(store, stages)
    write_steps(store, stages["text-512"], count=5000)
    began = time.perf_counter()
    write_report(store, stages.values(), {})
    assert time.perf_counter() - began < 2.0  # 0.3 s alone; the test machines are shared
    write_report(store, stages.values(), {}, command="second")
    assert "second" in page(store).select_one("code.command").text


@pytest.mark.parametrize(
    ("shown", "expected"),
    [(short(999), "999"), (short(1234567), "1.23M"), (short(999_900), "1M"), (short(0.5), "0.5"),
     (context(131072), "128K"), (context(2**20), "1M"), (context(1000), "1,000"), (duration(4.24), "4.2 s"),
     (duration(192), "3 min 12 s"), (duration(7500), "2 h 05 min"), (duration(90000), "1 d 1 h")],
)  # fmt: skip
def test_numbers_are_written_for_people(shown, expected):
    assert shown == expected


def test_ticks_are_round_and_inside():
    assert ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert ticks(2.13, 5.9, 4) == [3, 4, 5]
    assert ticks(5, 5, 4) == [5]


def test_a_long_graph_goes_on_below_and_loses_no_box_and_no_edge():
    def drawn(count):
        names = [f"stage-{number:02d}" for number in range(count)]
        before = [[], *([name] for name in names)]
        nodes = [Node(name, "train", made, "done", "done") for name, made in zip(names, before, strict=False)]
        svg: Any = BeautifulSoup(str(graph(nodes)), "lxml").svg
        boxes = [(float(box["x"]), float(box["y"])) for box in svg.select("g rect")]
        assert len(set(boxes)) == count
        assert len(svg.select("path.edge")) == count - 1
        width, height = (float(size) for size in svg["viewbox"].split()[2:])
        assert all(0 < x < width and 0 < y < height for x, y in boxes)
        return width, boxes

    one_band, boxes = drawn(8)
    assert len({y for _, y in boxes}) == 1
    width, boxes = drawn(16)
    assert one_band <= width < 1.1 * one_band
    assert [y for _, y in boxes] == sorted(y for _, y in boxes)
    assert len({y for _, y in boxes}) == 2
