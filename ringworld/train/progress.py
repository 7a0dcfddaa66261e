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

from ringworld.data.files import read_if_there
from ringworld.data.lines import LineFile


@dataclass(frozen=True)
class Record:
    """One step. tokens: cumulative over the stage. seconds: of this step. mfu: model FLOPs over peak, 0..1.

    data_wait: seconds that the trainer waited for the step's batch. save, compile: those of `seconds` in which the loop
    stood still for a save that was begun before the step, or for the compilation of this step or the next. loss_text,
    loss_vision: the mean over the targets of either vocabulary, of a model that has both; None where the step has no
    such target.
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
    save: float = 0.0
    compile: float = 0.0
    loss_text: float | None = None
    loss_vision: float | None = None


def read_progress(path: str | os.PathLike[str]) -> list[Record]:
    """The records of a file, oldest first; none when it does not exist. A last line cut short by a crash is dropped.

    path: local, or a URL.
    """
    records = []
    lines = (read_if_there(os.fspath(path)) or b"").decode().split("\n")
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
    """Appends records of this run after `resumed_step`; what an earlier process wrote beyond it is cut off.

    records: of all steps that count. discarded: what was cut off, steps to be trained again.
    """

    def __init__(self, path: str | os.PathLike[str], resumed_step: int) -> None:
        found = read_progress(path)
        self.records = [record for record in found if record.step <= resumed_step]
        self.discarded = [record for record in found if record.step > resumed_step]
        self._file = LineFile(os.fspath(path), map(_line, self.records))

    def append(self, record: Record) -> None:
        """Write one record; in a local folder it is in the file when this returns, on object storage seconds later."""
        self._file.append(_line(record))
        self.records.append(record)

    def flush(self) -> None:
        """Returns when every record is on storage: call it before a checkpoint of the last step becomes durable."""
        self._file.flush()


def now() -> float:
    """Seconds since the epoch, of a record's `time`."""
    return round(time.time(), 3)


def _line(record: Record) -> str:
    return json.dumps(asdict(record)) + "\n"
