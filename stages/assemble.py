"""Related documents chained, for stages that train on assembled long examples; see `ringworld.data.assemble`.

- Documents of one domain and one side of the split meet, and no others. In a large corpus some documents are leaders,
  and each joins the cell of its most similar leader (cluster pruning: Manning, Raghavan and Schütze 2008, section
  7.1.6), so that a task compares the documents of a cell only. Who leads is decided by the hash of its text.
- One task for each file counts words; one for each file makes vectors and sends them to their cells, partitioned; one
  for each partition walks its cells.
- Output: `chains.parquet` (chain, place, document of the token index, similarity): every document once. The pieces of a
  document follow each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.stage import Result, StageContext
from ringworld.data.assemble import BUCKETS, CHAINS, nearest, vector, walk, word_counts
from ringworld.data.files import absolute, join, list_files, open_to_read, read_table, write_table
from ringworld.data.packing import length_histogram
from ringworld.data.partitions import PartitionWriter, discard, partitions_for, read_partition
from ringworld.data.token_store import TokenStore
from ringworld.errors import UserError
from stages.blocks import map_blocks
from stages.corpus import file_blocks, read_documents

_MOST_OF_A_CELL = 8  # cells of this many times the intended size are walked in parts
_ROWS = 64
_SHOWN = 10


@dataclass(frozen=True)
class AssembleRecipe:
    """neighbours: edges of a document in the graph, those to its most similar ones of at least least_similarity.

    dimensions: of a document's vector. cell_documents: how many documents are compared with each other, about.
    """

    kind: ClassVar[str] = "assemble"
    neighbours: int = 16
    least_similarity: float = 0.1
    dimensions: int = 1024
    cell_documents: int = 4096

    def __post_init__(self) -> None:
        for name, least in (("neighbours", 1), ("dimensions", 1), ("cell_documents", 2)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}: {least} or more")
        if not 0 <= self.least_similarity <= 1:
            raise UserError(f"least_similarity={self.least_similarity}: a cosine from 0 to 1, such as 0.1")


def run(context: StageContext, recipe: AssembleRecipe) -> Result:
    """Input ports `documents` and `tokens`, which must be made from them."""
    folder = absolute(context.attempt_dir)
    work = _Work(join(folder, "work"), recipe, context.inputs["tokens"].path("tokens"))
    documents = _count_words(context, work)
    partitions = partitions_for(documents * recipe.dimensions * 4)
    _send_to_cells(context, work, documents, partitions)
    chains = _walk_cells(context, work, partitions)
    write_table(join(folder, "chains.parquet"), chains)
    discard(work.folder)
    return Result(("chains.parquet",), _figures(work, chains))


@dataclass(frozen=True)
class _Work:
    """What every task of the stage needs."""

    folder: str
    recipe: AssembleRecipe
    tokens: str

    def place(self, kind: str, number: int | None = None) -> str:
        return join(self.folder, kind) if number is None else join(self.folder, kind, f"{number:06d}.parquet")


_COUNTED = pa.schema(
    [
        ("document", pa.int64()),  # of the token index; the first piece of a document with cuts
        ("pieces", pa.int64()),
        ("group", pa.string()),  # domain and side of the split
        ("leads", pa.bool_()),
        ("bucket", pa.list_(pa.int32())),
        ("count", pa.list_(pa.int32())),
    ]
)
_HOLDERS = pa.schema([("bucket", pa.int64()), ("documents", pa.int64()), ("read", pa.int64())])


def _count_words(context: StageContext, work: _Work) -> int:
    """The documents; their word counts, and how many hold each bucket, lie in `work`."""
    holders, documents = np.zeros(BUCKETS, np.int64), 0
    blocks = file_blocks(context.inputs["documents"])
    for done, found in enumerate(map_blocks(context, blocks, _count_block, {"work": work}), 1):
        holders[found["bucket"].to_numpy()] += found["documents"].to_numpy()
        documents += found["read"][0].as_py()
        context.report(step=done, of=len(blocks), note="words")
    write_table(join(work.folder, "holders.parquet"), pa.table({"documents": holders}))
    return documents


def _count_block(block: pa.Table, work: _Work) -> pa.Table:
    """Count the words of a file of documents. Runs in a Ray task."""
    [task] = block.to_pylist()
    with open_to_read(join(work.tokens, "index.parquet")) as file:
        columns = ["sha256", "document", "split"]
        index = pq.read_table(file, columns=columns, filters=[("shard", "==", task["number"])]).to_pylist()
    stored: dict[str, list[dict[str, Any]]] = {}
    for row in index:
        stored.setdefault(row["sha256"], []).append(row)
    holders, rows = np.zeros(BUCKETS, np.int64), []
    for batch in read_documents(task["place"]):
        for document in batch:
            if pieces := stored.get(document.sha256):
                bucket, count = word_counts(document.text)
                holders[bucket] += 1
                leads = int(document.sha256[:8], 16) * work.recipe.cell_documents < 1 << 32
                group = f"{document.domain}/{pieces[0]['split']}"
                place = {"document": pieces[0]["document"], "pieces": len(pieces), "group": group, "leads": leads}
                rows.append(place | {"bucket": bucket, "count": count})
    counted = pa.Table.from_pylist(rows, _COUNTED)
    write_table(work.place("counted", task["number"]), counted)
    write_table(work.place("leaders", task["number"]), counted.filter(counted["leads"]))
    held = np.flatnonzero(holders)
    columns = (held, holders[held], np.full(len(held), len(rows)))
    return pa.table([pa.array(column) for column in columns], _HOLDERS)


def _send_to_cells(context: StageContext, work: _Work, documents: int, partitions: int) -> None:
    blocks = [
        pa.table({"number": [number], "place": [join(work.place("counted"), name)]})
        for number, name in enumerate(list_files(work.place("counted")))
    ]
    arguments = {"work": work, "documents": documents, "partitions": partitions}
    for done, _ in enumerate(map_blocks(context, blocks, _send_block, arguments), 1):
        context.report(step=done, of=len(blocks), note="vectors")


def _send_block(block: pa.Table, work: _Work, documents: int, partitions: int) -> pa.Table:
    """Send the documents of one file to their cells. Runs in a Ray task."""
    [task] = block.to_pylist()
    recipe = work.recipe
    holders = read_table(join(work.folder, "holders.parquet"))["documents"].to_numpy()
    leaders: dict[str, tuple[list[int], list[np.ndarray]]] = {}
    for name in list_files(work.place("leaders")):
        for row, made in _vectors(join(work.place("leaders"), name), holders, documents, recipe.dimensions):
            numbers, vectors = leaders.setdefault(row["group"], ([], []))
            numbers.append(row["document"])
            vectors.append(made)
    cells = {group: (numbers, np.stack(vectors)) for group, (numbers, vectors) in leaders.items()}
    schema = _cell_schema(recipe.dimensions)
    rows: list[dict[str, Any]] = []
    with PartitionWriter(work.place("cells"), f"{task['number']:06d}", partitions, schema, "key") as writer:
        for row, made in _vectors(task["place"], holders, documents, recipe.dimensions):
            leader = -1
            if row["group"] in cells:
                numbers, vectors = cells[row["group"]]
                leader = numbers[int(np.round(vectors @ made, 5).argmax())]
            cell = {"key": _key(row["group"], leader), "group": row["group"], "leader": leader}
            rows.append(cell | {"document": row["document"], "pieces": row["pieces"], "vector": made.tobytes()})
            if len(rows) == _ROWS:
                writer.add(pa.Table.from_pylist(rows, schema))
                rows = []
        writer.add(pa.Table.from_pylist(rows, schema))
    return block.select(["number"])


def _vectors(
    place: str, holders: np.ndarray, documents: int, dimensions: int
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """The rows of a file of `_COUNTED`, each with its vector."""
    with open_to_read(place) as opened:
        for batch in pq.ParquetFile(opened).iter_batches(_ROWS):
            for row in batch.to_pylist():
                yield row, vector(np.array(row["bucket"]), np.array(row["count"]), holders, documents, dimensions)


def _cell_schema(dimensions: int) -> pa.Schema:
    numbers = [("leader", pa.int64()), ("document", pa.int64()), ("pieces", pa.int64())]
    return pa.schema([("key", pa.uint64()), ("group", pa.string()), *numbers, ("vector", pa.binary(4 * dimensions))])


def _key(group: str, leader: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{leader} {group}".encode()).digest()[:8], "little")


_WALKED = pa.schema(
    [
        ("head", pa.int64()),  # the first document of the chain, which names it
        ("place", pa.int64()),
        ("document", pa.int64()),
        ("similarity", pa.float64()),
    ]
)


def _walk_cells(context: StageContext, work: _Work, partitions: int) -> pa.Table:
    """All chains (`CHAINS`), numbered by their first documents."""
    blocks = [pa.table({"partition": [number]}) for number in range(partitions)]
    tables = [_WALKED.empty_table()]
    for done, found in enumerate(map_blocks(context, blocks, _walk_block, {"work": work}), 1):
        tables.append(found)
        context.report(step=done, of=len(blocks), note="chains")
    rows = pa.concat_tables(tables).sort_by([("head", "ascending"), ("place", "ascending")])
    chain = np.cumsum(rows["place"].to_numpy() == 0) - 1
    return pa.table([pa.array(chain), *(rows[name] for name in CHAINS.names[1:])], CHAINS)


def _walk_block(block: pa.Table, work: _Work) -> pa.Table:
    """Walk the cells of a partition. Runs in a Ray task."""
    rows = read_partition(work.place("cells"), block["partition"][0].as_py())
    rows = rows.sort_by([("group", "ascending"), ("leader", "ascending"), ("document", "ascending")])
    group, leader = rows["group"].to_numpy(zero_copy_only=False), rows["leader"].to_numpy()
    ends = [*(np.flatnonzero((group[1:] != group[:-1]) | (np.diff(leader) != 0)) + 1).tolist(), rows.num_rows]
    most = _MOST_OF_A_CELL * work.recipe.cell_documents
    tables, begin = [_WALKED.empty_table()], 0
    for end in ends:
        for first in range(begin, end, most):
            tables.append(_walk_cell(rows.slice(first, min(most, end - first)), work.recipe))
        begin = end
    return pa.concat_tables(tables)


def _walk_cell(rows: pa.Table, recipe: AssembleRecipe) -> pa.Table:
    """The chains of the documents of one cell, which are in the order of their numbers."""
    vectors = np.frombuffer(b"".join(rows["vector"].to_pylist()), np.float32).reshape(-1, recipe.dimensions)
    document, pieces = rows["document"].to_pylist(), rows["pieces"].to_pylist()
    walked: list[dict[str, Any]] = []
    for chain in walk(*nearest(vectors, recipe.neighbours), recipe.least_similarity):
        head, place = document[chain[0][0]], 0
        for number, similarity in chain:
            for piece in range(pieces[number]):
                like = 1.0 if piece else similarity if place else None
                walked.append({"head": head, "place": place, "document": document[number] + piece, "similarity": like})
                place += 1
    return pa.Table.from_pylist(walked, _WALKED)


def _figures(work: _Work, chains: pa.Table) -> dict[str, Any]:
    store = TokenStore.open(work.tokens)
    provenance = store.provenance()["source"]
    document, place = chains["document"].to_numpy(), chains["place"].to_numpy()
    begins = np.flatnonzero(place == 0)
    lengths = np.diff(begins, append=len(place))
    tokens = np.add.reduceat(store.index.tokens[document], begins) if len(begins) else begins
    similarity = chains["similarity"].drop_null().to_numpy()
    shown = np.argsort(-tokens * (lengths > 1), kind="stable")[:_SHOWN]
    return {
        "documents": len(document),
        "chains": len(begins),
        "alone": int((lengths == 1).sum()),
        "longest_chain": int(lengths.max(initial=0)),
        "mean_similarity": round(float(similarity.mean()), 4) if len(similarity) else None,
        "lengths": length_histogram(tokens),
        "shown": [
            {
                "documents": int(lengths[chain]),
                "tokens": int(tokens[chain]),
                "sources": provenance.take(
                    document[begins[chain] : begins[chain] + min(8, lengths[chain])]
                ).to_pylist(),
            }
            for chain in shown.tolist()
            if lengths[chain] > 1
        ],
    }
