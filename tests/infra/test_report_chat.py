"""Questions and answers, as the report shows them: figures by their names, text as text, nothing where nothing is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bs4 import BeautifulSoup

from infra.report_chat import chat
from infra.report_data import Picture, ReportData, StageReport

HOSTILE = "<script>alert(1)</script>"
WRITTEN: dict[str, Any] = {
    "asked": 400,
    "kept": 260,
    "documents": 31,
    "provider": "openai",
    "models": {f"llama {HOSTILE}": 400},
    "written_by_model": True,
    "requests": 417,
    "prompt_tokens": 500_000,
    "reply_tokens": 12_000,
    "failed_requests": {"timeout": 17},
    "rejected": {"no name or number": 10, "not in the chunk": 130},
    "rejected_examples": [
        {"document": "books/b", "number": 0, "reason": "not in the chunk", "detail": "", "reply": HOSTILE}
    ],
    "examples": [
        {
            "document": "books/a.txt",
            "number": 12,
            "excerpt": f"It was\n{HOSTILE}",
            "question": "Who?",
            "answer": "Ahab",
            "reply": "Question: Who?",
        }
    ]
    * 12,
}
CHAT: dict[str, Any] = {
    "corpora": {
        "qa-1k": {
            "conversations": 64, "answers": 200, "loss_before": 3.5, "loss_after": 1.25, "verbatim_before": 0.0,
            "verbatim_after": 0.255, "asked": 16, "exact": 0.25, "f1": 0.5,
            "depths": [{"from": 0.2, "to": 0.4, "answers": 7, "loss_before": 4, "loss_after": 5, "asked": 0,
                        "exact": None, "f1": None}],
        },
        "chat": {"conversations": 9, "loss_before": 2.0, "loss_after": 2.5, "asked": 0, "exact": None, "depths": []},
    },
    "refused": {"books": f"none fits {HOSTILE}"},
    "not_asked": "",
    "transcripts": [
        {"corpus": "qa-1k", "prompt_tokens": 1012, "depth": 0.43, "excerpt": f"around {HOSTILE}", "question": "Who?",
         "answer": "Ahab", "said": "", "finish": "length", "exact": False, "f1": 0.25},
        {"corpus": "chat", "prompt_tokens": 9, "depth": None, "excerpt": "", "question": "Hi", "answer": "Hello",
         "said": "Hello", "finish": "stop", "exact": True, "f1": 1.0},
    ],
}  # fmt: skip


BUDGET = {"budget": {"requests": 5000, "tokens": None}}
PICTURES = (Picture("needle.png", "data:image/png;base64,AA"), Picture("answers.png", "data:image/png;base64,BB"))


def page(*stages: tuple[str, str, Mapping[str, Any]]) -> BeautifulSoup:
    reports = tuple(
        StageReport(
            name, kind, "done", {}, BUDGET, found, (), (), PICTURES, "", None, None, None, None, None, None, None, {}
        )
        for name, kind, found in stages
    )
    return BeautifulSoup(chat(ReportData("run", "place", "now", reports)) or "", "lxml")


def rows(shown: BeautifulSoup) -> list[list[str]]:
    return [[cell.text for cell in row.select("td")] for row in shown.select("tr") if row.select("td")]


def test_who_wrote_the_questions_what_was_kept_and_why_not_the_rest() -> None:
    shown = page(("questions", "synthesize-qa", WRITTEN))
    tiles = {tile.span.text: tile.b.text for tile in shown.select(".tile") if tile.span and tile.b}
    assert tiles == {
        "questions asked for": "400",
        "pairs kept": "260",
        "of them passed every rule": "65%",
        "documents asked about": "31",
    }
    table = rows(shown)
    assert table[:6] == [
        ["provider", "openai"],
        ["written by a model", "yes"],
        ["models, and replies of each", f"llama {HOSTILE} (400)"],
        ["budget", "5K requests"],
        ["spent", "417 requests, 500K prompt tokens, 12K reply tokens"],
        ["failed requests", "17 timeout"],
    ]
    assert [bar.text for bar in shown.select(".bar-name")] == ["not in the chunk", "no name or number"]
    assert len(shown.find_all("pre")) == 10
    assert shown.find_all("pre")[0].text == f"It was\n{HOSTILE}"
    assert ["Reply as it came", "Question: Who?"] in table
    assert table[-3:] == [["Not kept", "not in the chunk"], ["Why", "(nothing)"], ["Reply", HOSTILE]]
    assert [place.text for place in shown.select("div.mono")][-2:] == ["books/a.txt, chunk 12", "books/b, chunk 0"]
    assert not shown.find_all("script")
    by_rule = page(("questions", "synthesize-qa", {"written_by_model": False}))
    assert ["written by a model", "no: by rule, from the text itself"] in rows(by_rule)


def test_what_was_made_of_them_is_shown() -> None:
    conversations = {
        "corpora": {
            "qa-1k": {"conversations": 1234, "tokens": 99_000, "answer_tokens": 870},
            "talk": {"conversations": 5},
        },
        "provenance": {"talk": {"from": "the stage talk", "written_by_model": False}},
        "samples": [{"corpus": "talk", "source": "talk/a.jsonl:7", "text": f"user: {HOSTILE}"}],
    }
    talk = {
        "kinds": {"docstring": {"conversations": 7, "exchanges": 9, "documents": 4}},
        "samples": [{"document": "a.py", "kind": "docstring", "text": f"user: {n}"} for n in range(9)],
    }
    shown = page(
        ("talk", "document-talk", talk),
        ("examples-1k", "compose-qa", {"examples": 31, "kept_pairs": 260, "pairs": 124, "depths": [3, 5, 0, 1]}),
        ("conversations", "conversations", conversations),
    )
    assert [bar.text for bar in shown.select(".bar-name")] == ["0% to 25%", "25% to 50%", "50% to 75%", "75% to 100%"]
    assert [bar.text for bar in shown.select(".bar-figure")] == ["3", "5", "0", "1"]
    assert rows(shown) == [
        ["examples-1k", "31", "—", "260", "124", "—"],
        ["docstring", "7", "9", "4"],
        ["qa-1k", "—", "—", "1,234", "99,000", "870"],
        ["talk", "the stage talk", "no: by rule, from the text itself", "5", "—", "—"],
    ]
    assert [block.text for block in shown.find_all("pre")] == ["user: 0", "user: 1", "user: 2", f"user: {HOSTILE}"]
    assert [place.text for place in shown.select("div.mono")][2:] == ["a.py · docstring", "talk/a.jsonl:7 · talk"]


def test_what_a_chat_stage_learned_is_shown_and_what_was_not_measured() -> None:
    shown = page(("evaluate-chat", "evaluate", {"chat": CHAT}), ("evaluate-text", "evaluate", {"loss_after": 3.0}))
    table = rows(shown)
    assert table[0] == ["evaluate-chat", "qa-1k", "64", "3.500", "1.250", "-2.250", "0%", "26%", "16", "25%", "0.50"]
    assert table[1] == ["evaluate-chat", "chat", "9", "2.000", "2.500", "+0.500", "—", "—", "0", "—", "—"]
    assert [mark.text for mark in shown.select(".good, .bad")] == ["-2.250", "+0.500"]
    assert table[2] == ["evaluate-chat, qa-1k", "20% to 40%", "7", "4.000", "5.000", "0", "—", "—"]
    assert table[3] == ["evaluate-chat: nothing of books", f"none fits {HOSTILE}"]
    assert table[4:] == [
        ["Asked", "Who?"], ["True answer", "Ahab"], ["Model's answer", "(nothing)"],
        ["Asked", "Hi"], ["True answer", "Hello"], ["Model's answer", "Hello"],
    ]  # fmt: skip
    assert [image["src"] for image in shown.find_all("img")] == ["data:image/png;base64,BB"] * 2  # of both stages
    text = shown.get_text(" ")
    assert "qa-1k · prompt of 1,012 tokens · depth 43% · F1 0.25 · cut off" in text
    assert "chat · prompt of 9 tokens · exact match" in text
    assert not shown.find_all("script")
    silent = page(("e", "evaluate", {"chat": {**CHAT, "transcripts": [], "not_asked": "three processes"}}))
    assert ["e: nothing was asked", "three processes"] in rows(silent)


def test_a_run_without_these_stages_or_with_odd_figures_shows_nothing() -> None:
    assert chat(ReportData("run", "place", "now", ())) is None
    odd: dict[str, Any] = {
        "samples": "x",
        "examples": "x",
        "rejected": [1],
        "models": "all",
        "asked": "many",
        "written_by_model": 1,
    }
    odd |= {"depths": {"a": 3}, "corpora": ["qa"], "provenance": 3, "kinds": 1, "chat": "none"}
    kinds = ("synthesize-qa", "compose-qa", "document-talk", "conversations", "evaluate")
    stages = tuple(
        StageReport(kind, kind, "done", {}, {}, odd, (), (), (), "", None, None, None, None, None, None, None, {})
        for kind in kinds
    )
    assert chat(ReportData("run", "place", "now", stages)) is None
    assert not page(("questions", "synthesize-qa", {})).text  # it waits: its budget alone says nothing
