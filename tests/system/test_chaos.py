"""Ten faults of a campaign, and its judge: what it would not let pass."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.system.chaos import __main__ as command
from tests.system.chaos.__main__ import summary
from tests.system.chaos.campaign import Options, Report, Struck, run
from tests.system.chaos.faults import KINDS, draw
from tests.system.chaos.verdict import Remains, differences

STEPS = 120  # of the stage; a checkpoint every ten


def test_ten_faults_end_as_a_calm_run_does(tmp_path: Path) -> None:
    options = Options(10, seed=8, folder=tmp_path / "campaign", steps=STEPS, curriculum="short.yaml", early=0.5)
    report = run(options, print)
    print(summary(report))
    assert report.ok, summary(report)


def test_a_campaign_goes_on_from_its_record_and_an_ended_one_is_only_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def sitting(options: Options, say: Any, before: Report | None, keep: Any) -> Report:
        report = before or Report(options.seed, options.faults, ())
        report.sittings += 1
        report.faults += [Struck(len(report.faults) + 1, "rank killed", "rank 0", 1, 1.0, 2.0)]
        keep(report)
        return report

    monkeypatch.setattr(command, "run", sitting)
    words = ["--faults", "2", "--root", str(tmp_path / "root"), "--record", str(tmp_path / "record.json")]
    assert command.main(words) == 1
    assert command.main(words) == 0
    assert "2 of 2 faults survived in 2 sittings" in capsys.readouterr().out
    monkeypatch.delattr(command, "run")
    assert command.main(words) == 0
    with pytest.raises(SystemExit):
        command.main([*words, "--seed", "1"])


MANIFEST: dict[str, Any] = {
    "stage": "text",
    "kind": "train",
    "code_version": 1,
    "fingerprint": "f",
    "recipe": {"steps": 3},
    "inputs": {},
    "values": {"final_loss": 0.25, "tokens_per_second": 900.0},
    "files": [{"path": "params/d/17", "bytes": 9}, {"path": "progress.jsonl", "bytes": 80}],
    "attempt": 1,
    "series": 1,
    "provenance": {"host": "a"},
}
CALM = Remains({"text": MANIFEST}, {"text": [(1, 8, 0.5), (2, 16, 0.3), (3, 24, 0.2)]}, {"text": {"embed": "ab"}})


def manifest(**changes: Any) -> dict[str, dict[str, Any]]:
    return {"text": copy.deepcopy(MANIFEST) | changes}


def test_a_run_that_took_more_attempts_at_other_times_on_another_host_is_equal() -> None:
    values = {"final_loss": 0.25, "tokens_per_second": 3.0, "planned_mfu": 0.5}
    files = [{"path": "params/d/99", "bytes": 8}, {"path": "progress.jsonl", "bytes": 90}]
    other = manifest(attempt=7, series=2, provenance={"host": "b"}, values=values, files=files)
    assert differences(CALM, replace(CALM, manifests=other)) == []


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({"steps": {"text": [(1, 8, 0.5), (2, 16, 0.3), (2, 16, 0.3), (3, 24, 0.2)]}}, "line 3 is step 2"),
        ({"steps": {"text": [(1, 8, 0.5), (3, 24, 0.2)]}}, "line 2 is step 3"),
        ({"steps": {"text": [(1, 8, 0.5), (2, 16, 0.3)]}}, "each once: 2 lines"),
        ({"steps": {"text": [(1, 8, 0.5), (2, 16, 0.30000001), (3, 24, 0.2)]}}, "the first is 2"),
        ({"weights": {"text": {"embed": "ac"}}}, "final weights differ"),
        ({"manifests": {}, "steps": {}, "weights": {}}, "text is not finished"),
        ({"manifests": manifest(values={"final_loss": 0.26})}, "values of the manifest: {'final_loss': 0.26"),
        ({"manifests": manifest(files=MANIFEST["files"][:1])}, "files of the manifest"),
        ({"broken": ("manifest.json was cut short",)}, "cut short"),
    ],
)
def test_what_differs_is_told(changed: dict[str, Any], wrong: str) -> None:
    (told,) = differences(CALM, replace(CALM, **changed))
    assert wrong in told


def test_the_same_seed_draws_the_same_faults_and_every_kind_comes() -> None:
    kinds = tuple(KINDS)
    faults = draw(30, 7, kinds)
    assert faults == draw(30, 7, kinds)
    assert faults != draw(30, 8, kinds)
    assert {fault.kind for fault in faults[: len(kinds)]} == set(kinds)
