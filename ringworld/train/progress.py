"""progress.jsonl: one line per step that counts, and nothing else.

A step counts once a checkpoint at or past it survives, or while this process lives to make one. A resumed trainer
therefore cuts the file back to the step it restored, and every step appears once. The loss is written with all the
digits of its float32, so two files can be compared bit by bit.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Record:
    """One step. tokens: cumulative over the stage. seconds: of this step. mfu: model FLOPs over peak, 0..1.

    data_wait: seconds that the trainer waited for the step's batch. loss_text, loss_vision: the mean over the targets
    of either vocabulary, of a model that has both; None where the step has no such target.
    """

    step: int
    tokens: int
    loss: float
    gradient_norm: float
    learning_rate: float
    seconds: float
    tokens_per_second: float
    mfu: float
    time: float
    data_wait: float = 0.0
    loss_text: float | None = None
    loss_vision: float | None = None


def read_progress(path: str | os.PathLike[str]) -> list[Record]:
    """The records of a file, oldest first; none when it does not exist. A last line cut short by a crash is dropped."""
    if not os.path.exists(path):
        return []
    records = []
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines):
        if not line:
            continue
        try:
            records.append(Record(**json.loads(line)))
        except json.JSONDecodeError:
            if number < len(lines) - 1:
                raise
    return records


class ProgressLog:
    """Appends records of this run after `resumed_step`; what an earlier process wrote beyond it is cut off."""

    def __init__(self, path: str | os.PathLike[str], resumed_step: int) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        kept = [record for record in read_progress(self._path) if record.step <= resumed_step]
        scratch = self._path.with_suffix(".rewriting")
        scratch.write_text("".join(_line(record) for record in kept), encoding="utf-8")
        os.replace(scratch, self._path)
        self.records = kept

    def append(self, record: Record) -> None:
        """Write one record; it is in the file (not only in a buffer) when this returns."""
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(_line(record))
        self.records.append(record)


def now() -> float:
    """Seconds since the epoch, of a record's `time`."""
    return round(time.time(), 3)


def _line(record: Record) -> str:
    return json.dumps(asdict(record)) + "\n"
