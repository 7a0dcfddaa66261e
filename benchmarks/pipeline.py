"""What the pipeline costs: a flow that trains every text stage, against the same trainers started by hand, in one run.

    python benchmarks/pipeline.py [--curriculum tiny] [--placement local] [--folder DIR] [KEY=VALUE ...]

- The flow first makes everything, documents to the last evaluation: the data, and the programs in the compile cache.
- Then it trains the text stages again (`force=`), which needs nothing else: the time of the whole command counts, from
  Python's start over Ray's to the report.
- By hand: `python -m ringworld.train` on the very jobs of that run, one after the other, from the same weights and with
  the same compile cache, into another folder. Losses must be the same to the last bit.

KEY=VALUE words go to the flow, as in stages.text-512.steps=100. With --folder, what is there is used again. Speeds of
this machine change by the minute: the steps' own seconds of both sides are in the table too.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from ringworld.data.files import read_json
from ringworld.train.progress import Record, read_progress
from ringworld.train.recipe import load_job

ROOT = Path(__file__).resolve().parents[1]
RUN = "pipeline"
# Evaluations are made once, and not measured.
LITTLE = {"rows": 1, "needle_fractions": [1.0], "depths": [0.5], "context": None}


@dataclass(frozen=True)
class Side:
    """Seconds of one stage. whole: by hand, of the process; in the flow, of the stage from its claim to its manifest.

    steps: of its training steps alone.
    """

    whole: float
    steps: float


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curriculum", default="tiny", help="a name in configs/curricula, or a file")
    parser.add_argument("--placement", default="local", help="of one host; the hand has no gang")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="pipeline-") as scratch:
        folder = (given.folder or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        stages = _write_text_alone(given.curriculum, folder / "curriculum.yaml")
        flow = [
            sys.executable, "flows/full_curriculum.py", f"curriculum={folder / 'curriculum.yaml'}",
            f"placement={given.placement}", f"root={folder / 'runs'}", f"run={RUN}",
            f"placement.train.compilation_cache={folder / 'compiled'}", *given.words,
        ]  # fmt: skip
        print(f"the flow makes all there is to make: {', '.join(stages)}", file=sys.stderr, flush=True)
        _timed(flow, folder / "first.log")
        print("the flow trains these stages again", file=sys.stderr, flush=True)
        whole = _timed([*flow, f"force={','.join(stages)}"], folder / "again.log")
        flowing = {stage: _of_the_flow(folder / "runs" / RUN / stage) for stage in stages}
        by_hand = {stage: _by_hand(folder, stage) for stage in stages}
    print(_table(whole, flowing, by_hand))
    return 0


def _write_text_alone(name: str, path: Path) -> list[str]:
    """A curriculum's text stages as a curriculum of their own; returns their names."""
    source = Path(name) if name.endswith(".yaml") else ROOT / "configs" / "curricula" / f"{name}.yaml"
    whole = yaml.safe_load(source.read_text(encoding="utf-8"))
    stages = {stage: of for stage, of in whole["stages"].items() if of.get("data", "text") in ("text", "recall")}
    alone = {**whole, "stages": stages, "talk": None, "questions": None, "vision": None, "evaluate": LITTLE}
    path.write_text(yaml.safe_dump(alone, sort_keys=False), encoding="utf-8")
    return list(stages)


def _timed(command: Sequence[str], log: Path) -> float:
    """Seconds of a command. Exits with its last lines where it fails."""
    began = time.perf_counter()
    with open(log, "w", encoding="utf-8") as file:
        done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=file)
    if done.returncode:
        last = "\n".join(log.read_text(encoding="utf-8").splitlines()[-12:])
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{last}")
    return time.perf_counter() - began


def _attempt(stage: Path) -> tuple[Path, float]:
    """The folder of the attempt that finished, and its seconds."""
    manifest = read_json(str(stage / "manifest.json"))
    return stage / f"attempt-{manifest['attempt']}", manifest["provenance"]["seconds"]


def _of_the_flow(stage: Path) -> Side:
    attempt, seconds = _attempt(stage)
    return Side(seconds, _of_steps(read_progress(attempt / "progress.jsonl")))


def _by_hand(folder: Path, stage: str) -> Side:
    theirs, _ = _attempt(folder / "runs" / RUN / stage)
    job, mine = load_job(str(theirs / "job.yaml")), Path(tempfile.mkdtemp(prefix=f"{stage}-", dir=folder))
    dataclasses.replace(job, inputs=dataclasses.replace(job.inputs, output=str(mine))).save(str(mine / "job.yaml"))
    command = [
        sys.executable,
        "-m",
        "ringworld.train",
        "--recipe",
        str(mine / "job.yaml"),
        "--state",
        str(mine / "state"),
    ]
    print(f"by hand: {stage}", file=sys.stderr, flush=True)
    seconds = _timed(command, folder / f"{stage}.log")
    records = read_progress(mine / "state" / "progress.jsonl")
    if [record.loss for record in records] != [record.loss for record in read_progress(theirs / "progress.jsonl")]:
        raise SystemExit(f"{stage}: by hand its losses are others than in the flow; see {mine} and {theirs}")
    return Side(seconds, _of_steps(records))


def _of_steps(records: Sequence[Record]) -> float:
    return sum(record.seconds for record in records)


def _table(whole: float, flowing: Mapping[str, Side], by_hand: Mapping[str, Side]) -> str:
    lines = ["| stage | flow s | by hand s | of it steps, flow | by hand |", "|---|---|---|---|---|"]
    for stage, ours in flowing.items():
        hand = by_hand[stage]
        lines.append(f"| {stage} | {ours.whole:.1f} | {hand.whole:.1f} | {ours.steps:.1f} | {hand.steps:.1f} |")
    hand, steps, hand_steps = (
        sum(getattr(side, name) for side in sides.values())
        for sides, name in ((by_hand, "whole"), (flowing, "steps"), (by_hand, "steps"))
    )
    lines.append(f"| the whole command | {whole:.1f} | {hand:.1f} | {steps:.1f} | {hand_steps:.1f} |")
    around = (whole - steps) - (hand - hand_steps)
    return "\n".join(
        [
            *lines,
            f"overhead of the flow: {whole / hand - 1:+.1%} of {hand:.0f} s by hand",
            f"around the steps it takes {around:.1f} s more, {around / hand:.1%} of the time by hand",
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
