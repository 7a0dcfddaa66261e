"""The whole curriculum with everything in a bucket, which fails, throttles, breaks connections and is killed."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from tests.system import flow
from tests.system.bucket import NAME, Bucket

FAULTS = ("--fail=0.02", "--throttle=0.02", "--reset=0.01", "--delay=0.01", "--seed=7")
ROOT = f"gs://{NAME}/runs"
STAGES = ("text-256", "text-512")


def test_a_curriculum_in_a_failing_bucket_that_is_killed_in_mid_training_ends_as_a_calm_local_one(
    calm: Path, sources: str, tmp_path: Path
):
    bucket = Bucket(tmp_path / "bucket", *FAULTS)
    for document in sorted(Path(sources.partition("=")[2]).iterdir()):
        bucket.put(f"documents/{document.name}", document.read_bytes())
    words = flow.command(Path("/unused"), f"sources.text=gs://{NAME}/documents", "placement.train.save_every=8")
    words = [f"root={ROOT}" if word.startswith("root=") else word for word in words]
    with bucket:
        ended = run_and_kill_the_bucket(words, bucket, tmp_path / "flow.log")
        if ended:  # longer away than the clients' patience: the same command goes on
            again = subprocess.run(
                words, cwd=flow.REPOSITORY, env=bucket.environment(), capture_output=True, text=True, timeout=300
            )
            assert again.returncode == 0, (tmp_path / "flow.log").read_text() + again.stdout + again.stderr

    state = f"runs/{flow.RUN}"
    for stage in STAGES:
        steps = bucket.lines(f"{state}/{stage}/state/1/progress.jsonl")
        assert [(step["step"], step["loss"]) for step in steps] == flow.losses(calm, stage), "each step once, bitwise"
    for stage in ("pack-text-256", "pack-text-512", "evaluate-text-256", "evaluate-text-512"):
        found, expected = json.loads(bucket.read(f"{state}/{stage}/manifest.json")), flow.manifest(calm, stage)
        assert found["values"] == expected["values"]
        assert [file["path"] for file in found["files"]] == [file["path"] for file in expected["files"]]
    names = bucket.names()
    assert {f"{state}/report.html", f"{state}/evaluate-text-512/manifest.json"} <= names
    assert f"{state}/text-256/attempt-1/trainer-0.log" in names
    gang = json.loads(bucket.read(f"{state}/text-256/state/1/gangs/0001.json"))
    assert gang["asked"] <= gang["granted"] <= gang["started"] <= gang["ended"]
    assert not [name for name in names if name.endswith(".partial")]


def run_and_kill_the_bucket(words: list[str], bucket: Bucket, log: Path) -> int:
    """Run the flow to its end; kill the bucket while text-256 is trained and start it again. The flow's exit code."""
    with open(log, "w") as file:
        process = subprocess.Popen(
            words, cwd=flow.REPOSITORY, env=bucket.environment(), stdout=file, stderr=file, text=True
        )
    try:
        saved = f"runs/{flow.RUN}/text-256/state/1/checkpoints/8/commit_success.txt"
        flow.until(lambda: saved in bucket.names(), process, 600)
        assert f"runs/{flow.RUN}/text-256/manifest.json" not in bucket.names()
        bucket.kill()
        time.sleep(5)
        bucket.start()
        return process.wait(600)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
