"""The progress file of a VQGAN's training: one JSON line a record, a resumed training without a seam."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

from ringworld.data.files import read_if_there
from ringworld.data.lines import LineFile


@dataclass(frozen=True)
class Quality:
    """Of reconstructions of pictures. psnr: mean, dB. used: codes that they need. perplexity: of the codes that they
    are."""

    psnr: float
    used: int
    perplexity: float


@dataclass(frozen=True)
class VQRecord:
    """After a step, all but `held_out` since the record before. losses: means by name, before weighing. used,
    perplexity: of the codes of the batches. seconds: the measuring not counted."""

    step: int
    losses: dict[str, float]
    used: int
    perplexity: float
    held_out: Quality
    seconds: float


def read_vqgan_progress(path: str | os.PathLike[str]) -> list[VQRecord]:
    """The records of a progress.jsonl, oldest first; none when there is no file. A last line cut short is dropped."""
    lines, records = (read_if_there(os.fspath(path)) or b"").decode().splitlines(), []
    for number, line in enumerate(lines):
        try:
            stated = json.loads(line)
        except json.JSONDecodeError:
            if number < len(lines) - 1:
                raise
            break
        records.append(VQRecord(**stated | {"held_out": Quality(**stated["held_out"])}))
    return records


class VQLog:
    """The progress file of this run after `resumed`; what an earlier process wrote beyond it is cut off."""

    def __init__(self, path: str, resumed: int) -> None:
        self.records = [record for record in read_vqgan_progress(path) if record.step <= resumed]
        self._file = LineFile(path, map(self._line, self.records))

    def append(self, record: VQRecord) -> None:
        self._file.append(self._line(record))
        self.records.append(record)

    def flush(self) -> None:
        """Returns when every record is on storage."""
        self._file.flush()

    @staticmethod
    def _line(record: VQRecord) -> str:
        return json.dumps(asdict(record)) + "\n"
