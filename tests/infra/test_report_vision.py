"""Pictures and videos, as the report shows them: figures by their names, text as text, nothing where nothing is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bs4 import BeautifulSoup

from infra.report_context import forgetting, on_text
from infra.report_data import Picture, ReportData, StageReport
from infra.report_vision import vision

HOSTILE = "<script>alert(1)</script>"
PNG = "data:image/png;base64,iVBORw0KGgo="
MEASURED: dict[str, Any] = {
    "corpora": {
        "image": {
            "examples": 2,
            "text": {"before": 5.0, "after": 4.5, "tokens": 20},
            "vision": {"before": 7.0, "after": 5.25, "tokens": 34},
        },
        "video-question": {
            "examples": 1,
            "text": {"before": 3.0, "after": 3.5, "tokens": 9},
            "vision": {"before": None, "after": None, "tokens": 0},
            "asked": 3,
            "exact": 1 / 3,
        },
    },
    "needle": {
        "exact": 0.0,
        "ranked": 0.25,
        "chance": 0.125,
        "told_apart": 1.0,
        "refused": {"64": "only 21 frames are held out"},
    },
    "transcripts": [
        {
            "corpus": "video-question",
            "prompt_tokens": 90,
            "depth": None,
            "excerpt": "",
            "question": "What happens?",
            "answer": "A cat runs",
            "said": f"the {HOSTILE}",
            "finish": "stop",
            "exact": False,
            "f1": 0.0,
        }
    ],
    "refused": {"video": f"no held-out example {HOSTILE}"},
}


def stage(name: str, kind: str, values: Mapping[str, Any], *pictures: str) -> StageReport:
    shown = tuple(Picture(picture, PNG) for picture in pictures)
    unknown = dict.fromkeys(("series", "attempts", "seconds", "started", "finished", "host", "commit"))
    return StageReport(
        name, kind, "done", {}, {}, values, (), (), shown, "0" * 64, versions={}, **unknown  # type: ignore[arg-type]
    )  # fmt: skip


def page(*stages: StageReport) -> BeautifulSoup:
    made = vision(ReportData("tiny", "runs/tiny", "2026-01-01T00:00:00+00:00", stages))
    return BeautifulSoup(str(made or ""), "html.parser")


def rows(soup: BeautifulSoup) -> list[list[str]]:
    return [[cell.text for cell in row.find_all("td")] for row in soup.find_all("tr") if row.find("td")]


def test_what_was_seen_and_learned_is_shown_once_and_as_text() -> None:
    clips = {"kinds": {"image": 21, "video": 2}, "reasons": {f"too small {HOSTILE}": 6}, "licenses": {"CC0": 9}}
    corpus = {
        "examples": 21, "frames": 21, "tokens": 850, "seen": 340, "shortened": 1,
        "how": {"text first": 9, "vision first": 12},
    }  # fmt: skip
    sample = {"corpus": "image", "text": f"Coffee {HOSTILE}"}
    soup = page(
        stage("media", "media", clips, "contact.png"),
        stage("vqgan", "vqgan", {"psnr": 18.25, "used": 700.0, "codebook": 1024}, "reconstructions.png", "vqgan.png"),
        stage("codes", "codes", {"frames": 83, "codes": 1328, "seconds": {"decoding": 2.0, "waiting": 0.01}}),
        stage("examples-vision-256", "vision-examples", {"corpora": {"image": corpus}, "samples": [sample, sample]}),
        stage("evaluate-vision-256", "evaluate", {"vision": MEASURED}, "video_needle.png", "samples.png", "needle.png"),
    )
    tiles = [tile.b.text for tile in soup.select(".tile")]  # type: ignore[union-attr]
    assert tiles == ["21", "2", "83", "1.33K", "18.2 dB", "700"]
    found = rows(soup)
    assert ["examples-vision-256", "image", "9 text first, 12 vision first", "21", "21", "850", "40%", "1"] in found
    assert ["examples-vision-256, image", f"Coffee {HOSTILE}"] in found
    assert sum(row[0] == "examples-vision-256, image" for row in found) == 1
    image = ["evaluate-vision-256", "image", "2", "5.000", "4.500", "-0.500", "7.000", "5.250", "-1.750", "—", "—"]
    assert image in found
    video = ["evaluate-vision-256", "video-question", "1", "3.000", "3.500", "+0.500", "—", "—", "—", "3", "33%"]
    assert video in found
    assert ["evaluate-vision-256", "0%", "25%", "12%", "100%"] in found
    assert ["Model's answer", f"the {HOSTILE}"] in found
    assert ["evaluate-vision-256: no marked frame among 64", "only 21 frames are held out"] in found
    assert ["evaluate-vision-256: nothing of video", f"no held-out example {HOSTILE}"] in found
    assert [f"too small {HOSTILE}", "6"] in found
    assert not soup.find("script")
    # The text's needle has a section of its own.
    assert len(soup.find_all("img")) == 5


def test_a_run_without_pictures_has_no_section_and_figures_may_be_anything() -> None:
    assert not str(page(stage("evaluate-text-1k", "evaluate", {"loss_before": 3})))
    wrong = {"kinds": [1], "reasons": 7, "corpora": {"image": {"how": 3, "tokens": "many"}}, "samples": "none"}
    page(
        stage("media", "media", wrong), stage("e", "vision-examples", wrong), stage("j", "evaluate", {"vision": wrong})
    )


def test_text_lost_to_other_stages_is_told_apart_from_stages_of_text() -> None:
    text = {"sequence": 512, "loss_before": 5.0, "loss_after": 4.0}
    worse = {"sequence": 256, "loss_before": 4.0, "loss_after": 4.25}
    stages = (
        stage("evaluate-text-512", "evaluate", text),
        stage("evaluate-text-chat-512", "evaluate", worse | {"chat": {"corpora": {}}, "loss_after": 3.5}),
        stage("evaluate-vision-256", "evaluate", worse | {"vision": MEASURED}),
    )
    data = ReportData("tiny", "runs/tiny", "2026-01-01T00:00:00+00:00", stages)
    assert [each.name for each in on_text(data)] == ["evaluate-text-512"]
    assert rows(BeautifulSoup(str(forgetting(data)), "html.parser")) == [
        ["evaluate-text-chat-512", "256", "4.000", "3.500", "-0.500"],
        ["evaluate-vision-256", "256", "4.000", "4.250", "+0.250"],
    ]
