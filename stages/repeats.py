"""The part of deduplication that only reports: passages that stand more than once in the documents that stay.

Outputs: `repeats.parquet`, the passages that cover the most text, with an excerpt and where they stand; and
`repeated.parquet`, for each document the share of its fingerprints that stand elsewhere too, or twice in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from infra.stage import Result, StageContext
from ringworld.data.files import absolute, join, list_files, read_table, write_table
from ringworld.data.partitions import read_partition
from ringworld.data.repeats import COUNTS, merged, repeated
from stages.blocks import map_blocks
from stages.corpus import ROW_BITS, file_blocks, read_documents

_CANDIDATES = 20  # fingerprints kept in each partition for each passage that is to be listed
_EXCERPT = 300
_SHOWN = 10

_LISTED = pa.schema(
    [
        ("times", pa.int64()),
        ("documents", pa.int64()),
        ("characters", pa.int64()),
        ("source", pa.string()),  # the first place
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("excerpt", pa.string()),
        ("others", pa.list_(pa.string())),  # some of the other documents
    ]
)


def find(
    context: StageContext,
    shuffle: str,
    partitions: int,
    documents: pa.Table,
    dropped: pa.ChunkedArray,
    most: int,
) -> Result:
    """Count the fingerprints that lie in `shuffle`; its files and figures are a part of the stage's.

    documents: document (its number, ascending), sha256, source, bytes, fingerprints. dropped: numbers of those that go.
    """
    counts, passages = _count(context, shuffle, partitions, dropped, most)
    stays = ~np.isin(documents["document"].to_numpy(), dropped.to_numpy())
    number, fingerprints = documents["document"].to_numpy(), documents["fingerprints"].to_numpy()
    again = np.zeros(len(number), np.int64)
    np.add.at(again, np.searchsorted(number, counts["document"].to_numpy()), counts["repeated"].to_numpy())
    share = again / np.maximum(fingerprints, 1)
    shares = documents.select(["sha256", "source", "bytes", "fingerprints"])
    shares = shares.append_column("repeated", pa.array(again)).append_column("share", pa.array(share)).filter(stays)
    listed = _listed(context, documents, passages)
    folder = absolute(context.attempt_dir)
    write_table(join(folder, "repeats.parquet"), listed)
    write_table(join(folder, "repeated.parquet"), shares)
    return Result(("repeats.parquet", "repeated.parquet"), _figures(listed, again[stays], fingerprints[stays], shares))


def _count(
    context: StageContext, shuffle: str, partitions: int, dropped: pa.ChunkedArray, most: int
) -> tuple[pa.Table, list[dict[str, Any]]]:
    """document and repeated, once for each partition that has some; and the passages that cover the most text."""
    write_table(join(shuffle, "dropped.parquet"), pa.table({"document": dropped}))
    blocks = [pa.table({"partition": [number]}) for number in range(partitions)]
    tables = [COUNTS.empty_table()]
    arguments = {"shuffle": shuffle, "most": most * _CANDIDATES}
    for done, counted in enumerate(map_blocks(context, blocks, _count_block, arguments), 1):
        tables.append(counted)
        context.report(step=done, of=len(blocks), note="repeated passages")
    folder = join(shuffle, "passages")
    passages = merged([read_table(join(folder, name)) for name in list_files(folder)], most)
    return pa.concat_tables(tables), passages


def _count_block(block: pa.Table, shuffle: str, most: int) -> pa.Table:
    """Count a partition and write its passages. Runs in a Ray task."""
    partition = block["partition"][0].as_py()
    dropped = read_table(join(shuffle, "dropped.parquet"))["document"].to_numpy()
    found = repeated(read_partition(join(shuffle, "fingerprints"), partition), dropped, most)
    write_table(join(shuffle, "passages", f"{partition:06d}.parquet"), found.passages)
    return found.documents


def _listed(context: StageContext, documents: pa.Table, passages: Sequence[dict[str, Any]]) -> pa.Table:
    """The passages with names and excerpts, in their order."""
    known = documents["document"].to_numpy()

    def source(number: int) -> str:
        return documents["source"][int(np.searchsorted(known, number))].as_py()

    excerpts = _excerpts(context, passages)
    rows = [
        {
            **passage,
            "characters": passage["end"] - passage["start"],
            "source": source(passage["document"]),
            "excerpt": excerpts[index],
            "others": [source(number) for number in passage["others"]],
        }
        for index, passage in enumerate(passages)
    ]
    return pa.Table.from_pylist(rows, _LISTED)


def _excerpts(context: StageContext, passages: Sequence[dict[str, Any]]) -> dict[int, str]:
    """The beginning of each passage, by its place in the list."""
    by_file: dict[int, list[dict[str, int]]] = {}
    for index, passage in enumerate(passages):
        file, row = passage["document"] >> ROW_BITS, passage["document"] & (1 << ROW_BITS) - 1
        place = {"index": index, "row": row, "start": passage["start"], "end": passage["end"]}
        by_file.setdefault(file, []).append(place)
    blocks = []
    for block in file_blocks(context.inputs["documents"]):
        if wanted := by_file.get(block["number"][0].as_py()):
            table = pa.Table.from_pylist(wanted)
            blocks.append(table.append_column("place", pa.array(block["place"].to_pylist() * len(wanted))))
    found: dict[int, str] = {}
    for excerpts in map_blocks(context, blocks, _excerpt_block, {}) if blocks else ():
        found |= {row["index"]: row["excerpt"] for row in excerpts.to_pylist()}
    return found


def _excerpt_block(block: pa.Table) -> pa.Table:
    """Excerpts from one file of documents. Runs in a Ray task."""
    wanted: dict[int, list[dict[str, int]]] = {}
    for place in block.to_pylist():
        wanted.setdefault(place["row"], []).append(place)
    found: list[dict[str, Any]] = []
    for batch in read_documents(block["place"][0].as_py()):
        for document in batch:
            for place in wanted.get(document.row, ()):
                text = document.text[place["start"] : min(place["end"], place["start"] + _EXCERPT)]
                found.append({"index": place["index"], "excerpt": text})
    return pa.Table.from_pylist(found)


def _figures(listed: pa.Table, again: np.ndarray, fingerprints: np.ndarray, shares: pa.Table) -> dict[str, Any]:
    most = shares.filter(shares["repeated"].to_numpy() > 0).sort_by([("share", "descending"), ("source", "ascending")])
    return {
        "repeated_share": round(float(again.sum() / max(1, fingerprints.sum())), 4),
        "most_repeated": most.select(["source", "share"]).slice(0, _SHOWN).to_pylist(),
        "repeats": listed.select(["times", "documents", "characters", "source", "excerpt"])
        .slice(0, _SHOWN)
        .to_pylist(),
    }
