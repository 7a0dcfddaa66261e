"""The documents of a finished documents stage, as the stages after it read them: file by file, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from infra.stage import Artifact
from ringworld.data.decisions import Decisions, read_decisions
from ringworld.data.files import open_to_read

ROW_BITS = 32  # a document's number: that of its file, then its row there
_ROWS = 64
_DROPS, _CUTS = "drops.parquet", "cuts.parquet"


@dataclass(frozen=True)
class Document:
    """row: in its file, from 0. bytes: of the text in UTF-8. domain: empty where documents have none."""

    row: int
    sha256: str
    source: str
    domain: str
    bytes: int
    text: str


@dataclass(frozen=True)
class DecisionTables:
    """Where the decisions of later stages lie: plain places, which a Ray task can take along."""

    drops: tuple[str, ...] = ()
    cuts: str | None = None

    @classmethod
    def of(cls, inputs: Mapping[str, Artifact]) -> DecisionTables:
        """Of the ports `deduplicate` and `decontaminate`, either or both of which may be missing."""
        ports = [inputs[name] for name in ("deduplicate", "decontaminate") if name in inputs]
        cuts = [port.path(_CUTS) for port in ports if _CUTS in port.files]
        return cls(tuple(port.path(_DROPS) for port in ports), cuts[0] if cuts else None)

    def on(self, file: str) -> Decisions:
        return read_decisions(file, self.drops, self.cuts)


def document_files(documents: Artifact) -> list[str]:
    """The names of the files of documents in the artifact, sorted."""
    return sorted(name for name in documents.files if name.startswith("documents/"))


def file_blocks(documents: Artifact) -> list[pa.Table]:
    """A block of work for each file: number (from 0), file (its name) and place (where it lies)."""
    names = document_files(documents)
    return [
        pa.table({"number": [number], "file": [name], "place": [documents.path(name)]})
        for number, name in enumerate(names)
    ]


def read_documents(place: str) -> Iterator[list[Document]]:
    """The documents of a file in order, some at a time."""
    with open_to_read(place) as opened:
        file = pq.ParquetFile(opened)
        wanted = [name for name in ("sha256", "source", "domain", "bytes", "text") if name in file.schema_arrow.names]
        row = 0
        for batch in file.iter_batches(_ROWS, columns=wanted):
            rows = batch.to_pylist()
            yield [Document(row + at, **{"domain": "", **found}) for at, found in enumerate(rows)]
            row += len(rows)
