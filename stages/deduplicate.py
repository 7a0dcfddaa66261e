"""Near duplicates out, repeated passages reported; see `ringworld.data.minhash`, `near` and `repeats`.

- One task for each file of documents writes the bands of its signatures and its fingerprints, partitioned by hash.
- One task for each partition of the bands finds pairs; who stays is decided on all pairs by the driver, which holds
  numbers and names, never text or signatures.
- One task for each partition of the fingerprints counts passages in the documents that stay.
- Outputs: `drops.parquet` (see `ringworld.data.decisions`), `clusters.parquet` (cluster, sha256, source, bytes, kept,
  similarity, of), `repeats.parquet` (the passages) and `repeated.parquet` (of each document, the share repeated).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pyarrow.compute import field

from infra.stage import Result, StageContext
from ringworld.data.decisions import write_drops
from ringworld.data.files import absolute, join, write_table
from ringworld.data.minhash import Bands, Signer, low_bytes
from ringworld.data.near import Pairs, decide, similar_pairs
from ringworld.data.partitions import PartitionWriter, discard, partitions_for, read_partition
from ringworld.data.repeats import FINGERPRINTS, NO_FINGERPRINTS, winnow
from ringworld.data.words import chunks, runs
from ringworld.errors import UserError
from stages import repeats
from stages.blocks import map_blocks
from stages.corpus import ROW_BITS, Document, file_blocks, read_documents

NEAR_DUPLICATE = "near duplicate"
_SHOWN = 10


@dataclass(frozen=True)
class DeduplicateRecipe:
    """A document whose estimated Jaccard similarity to a longer one is at least `threshold` is dropped.

    shingle: words of a shingle; code_shingle: for documents of `code_domains`, where punctuation counts as words.
    permutations: of a signature. recall: the least probability to compare a pair of just the threshold.
    repeat_words: words of a fingerprint; a passage of twice as many that stands twice is always found. 0: no report.
    repeats_listed: passages in the report.
    """

    kind: ClassVar[str] = "deduplicate"
    threshold: float = 0.8
    shingle: int = 5
    code_shingle: int = 11
    code_domains: tuple[str, ...] = ("code",)
    permutations: int = 128
    recall: float = 0.95
    seed: int = 1
    repeat_words: int = 50
    repeats_listed: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise UserError(f"threshold={self.threshold}: a similarity, above 0 and at most 1, such as 0.8")
        if not 0 < self.recall < 1:
            raise UserError(f"recall={self.recall}: a probability, above 0 and below 1, such as 0.95")
        for name in ("shingle", "code_shingle", "permutations", "repeats_listed"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: 1 or more")
        if self.repeat_words < 0:
            raise UserError(f"repeat_words={self.repeat_words}: 1 or more, such as 50, or 0 for no report of repeats")
        self.bands()

    def bands(self) -> Bands:
        return Bands.for_threshold(self.threshold, self.permutations, self.recall)


@dataclass(frozen=True)
class _Shuffle:
    """Where rows on their way lie, and into how many partitions of each kind."""

    folder: str
    bands: int
    fingerprints: int

    def writer(self, kind: str, file: int, schema: pa.Schema, key: str) -> PartitionWriter:
        return PartitionWriter(join(self.folder, kind), f"{file:06d}", getattr(self, kind), schema, key)

    def read(self, kind: str, partition: int) -> pa.Table:
        return read_partition(join(self.folder, kind), partition)


def run(context: StageContext, recipe: DeduplicateRecipe) -> Result:
    """Input port `documents`."""
    folder = absolute(context.attempt_dir)
    figures = context.inputs["documents"].values
    shuffle = _Shuffle(
        join(folder, "shuffle"),
        partitions_for(figures["documents"] * recipe.bands().count * (24 + recipe.permutations)),
        partitions_for(figures["bytes"] / 4),  # 32 bytes for a fingerprint of every 25 words or so
    )
    documents = _sign(context, recipe, shuffle)
    pairs = _pairs(context, recipe, shuffle)
    clusters = _clusters(documents, pairs)
    dropped = clusters.filter(~field("kept"))
    write_drops(join(folder, "drops.parquet"), _drops(documents, dropped))
    write_table(join(folder, "clusters.parquet"), clusters.drop_columns(["document"]))
    files: tuple[str, ...] = ("drops.parquet", "clusters.parquet")
    values = _figures(recipe, documents, pairs, clusters)
    if recipe.repeat_words:
        listed = repeats.find(
            context, shuffle.folder, shuffle.fingerprints, documents, dropped["document"], recipe.repeats_listed
        )
        files, values = (*files, *listed.files), {**values, **listed.values}
    discard(shuffle.folder)
    return Result(files, values)


_SIGNED = pa.schema(
    [
        ("document", pa.int64()),
        ("file", pa.large_string()),  # large: one process holds the names of all documents
        ("sha256", pa.large_string()),
        ("source", pa.large_string()),
        ("domain", pa.large_string()),
        ("bytes", pa.int64()),
        ("fingerprints", pa.int64()),
    ]
)

_PAIRED = pa.schema([("first", pa.int64()), ("second", pa.int64()), ("similarity", pa.float64())])


def _band_schema(permutations: int) -> pa.Schema:
    numbers = [("band", pa.uint64()), ("document", pa.int64()), ("bytes", pa.int64())]
    return pa.schema([*numbers, ("low", pa.binary(permutations))])


def _sign(context: StageContext, recipe: DeduplicateRecipe, shuffle: _Shuffle) -> pa.Table:
    """Every document, by its number (`_SIGNED`); its bands and fingerprints lie in the shuffle."""
    blocks = file_blocks(context.inputs["documents"])
    tables: list[pa.Table] = []
    for signed in map_blocks(context, blocks, _sign_block, {"recipe": recipe, "shuffle": shuffle}):
        tables.append(signed)
        context.report(step=len(tables), of=len(blocks), note="signatures")
    return pa.concat_tables(tables).sort_by("document")


def _sign_block(block: pa.Table, recipe: DeduplicateRecipe, shuffle: _Shuffle) -> pa.Table:
    """Write the bands and the fingerprints of a file of documents. Runs in a Ray task."""
    [task] = block.to_pylist()
    file, bands = task["number"], recipe.bands()
    signed: list[dict[str, Any]] = []
    schema = _band_schema(recipe.permutations)
    with (
        shuffle.writer("bands", file, schema, "band") as band_rows,
        shuffle.writer("fingerprints", file, FINGERPRINTS, "hash") as fingerprint_rows,
    ):
        for batch in read_documents(task["place"]):
            numbers = [file << ROW_BITS | document.row for document in batch]
            read = [_signed(document, recipe) for document in batch]
            found = [prints for _, prints in read]
            columns = [np.concatenate([prints[at] for prints in found]) for at in range(3)]
            columns.insert(1, np.repeat(numbers, [len(prints[0]) for prints in found]))
            fingerprint_rows.add(pa.table([pa.array(column) for column in columns], FINGERPRINTS))
            places = [
                (number, document.bytes, signer.signature())
                for number, document, (signer, _) in zip(numbers, batch, read, strict=True)
                if signer.shingles
            ]
            if places:
                band_rows.add(_band_rows(places, bands, schema))
            for number, document, prints in zip(numbers, batch, found, strict=True):
                row = {name: getattr(document, name) for name in ("sha256", "source", "domain", "bytes")}
                signed.append({"document": number, "file": task["file"], **row, "fingerprints": len(prints[0])})
    return pa.Table.from_pylist(signed, _SIGNED)


def _signed(document: Document, recipe: DeduplicateRecipe) -> tuple[Signer, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The signer that has seen a document; and its fingerprints: hash, start, end."""
    code = document.domain in recipe.code_domains
    shingle, length = recipe.code_shingle if code else recipe.shingle, recipe.repeat_words
    signer = Signer(recipe.permutations, recipe.seed)
    parts = [NO_FINGERPRINTS]
    for words in chunks(document.text, overlap=max(shingle - 1, 2 * length - 2), marks=code):
        signer.add(runs(words.hashes, shingle))
        if length:
            parts.append(winnow(words, length, window=length))
    hashes, starts, ends = (np.concatenate(column) for column in zip(*parts, strict=True))
    if len(parts) > 2:  # a window that reaches over two chunks may find a fingerprint again
        starts, first = np.unique(starts, return_index=True)
        hashes, ends = hashes[first], ends[first]
    return signer, (hashes, starts, ends)


def _band_rows(signatures: Sequence[tuple[int, int, np.ndarray]], bands: Bands, schema: pa.Schema) -> pa.Table:
    """A row for each band of each document, given as (number, bytes, signature)."""
    numbers, sizes, places = (np.array(column) for column in zip(*signatures, strict=True))
    low = np.repeat(low_bytes(places), bands.count, axis=0)
    carried = pa.FixedSizeBinaryArray.from_buffers(schema.field("low").type, len(low), [None, pa.py_buffer(low)])
    columns = [bands.hashes(places).ravel(), np.repeat(numbers, bands.count), np.repeat(sizes, bands.count), carried]
    return pa.table([pa.array(column) for column in columns], schema)


def _pairs(context: StageContext, recipe: DeduplicateRecipe, shuffle: _Shuffle) -> Pairs:
    blocks = [pa.table({"partition": [number]}) for number in range(shuffle.bands)]
    tables = [_PAIRED.empty_table()]
    for done, found in enumerate(
        map_blocks(context, blocks, _pair_block, {"shuffle": shuffle, "threshold": recipe.threshold}), 1
    ):
        tables.append(found)
        context.report(step=done, of=len(blocks), note="pairs")
    table = pa.concat_tables(tables)
    return Pairs.of(*(table[name].to_numpy() for name in ("first", "second", "similarity")))


def _pair_block(block: pa.Table, shuffle: _Shuffle, threshold: float) -> pa.Table:
    """The pairs of a partition. Runs in a Ray task."""
    pairs = similar_pairs(shuffle.read("bands", block["partition"][0].as_py()), threshold)
    return pa.table([pa.array(column) for column in (pairs.first, pairs.second, pairs.similarity)], _PAIRED)


def _clusters(documents: pa.Table, pairs: Pairs) -> pa.Table:
    """The documents that are paired, by cluster, from the longest to the shortest."""
    paired = np.unique(np.concatenate([pairs.first, pairs.second]))
    known = documents["document"].to_numpy()
    rows = documents.take(np.searchsorted(known, paired))
    verdict = decide(pairs, rows["bytes"].to_numpy(), rows["source"].to_pylist())
    stays = verdict.kept == verdict.document
    of = documents["source"].take(pa.array(np.searchsorted(known, verdict.kept), mask=stays))
    table = pa.table(
        {
            "cluster": np.unique(verdict.cluster, return_inverse=True)[1],
            "sha256": rows["sha256"],
            "source": rows["source"],
            "bytes": rows["bytes"],
            "kept": stays,
            "similarity": pa.array(verdict.similarity, mask=stays),
            "of": of,
            "document": verdict.document,
        }
    )
    return table.sort_by([("cluster", "ascending"), ("bytes", "descending"), ("source", "ascending")])


def _drops(documents: pa.Table, dropped: pa.Table) -> pa.Table:
    """`dropped`, rows of `_clusters`, with what else a table of drops says."""
    places = np.searchsorted(documents["document"].to_numpy(), dropped["document"].to_numpy())
    described = documents.select(["file", "domain"]).take(places)
    for name in described.column_names:
        dropped = dropped.append_column(name, described[name])
    return dropped.append_column("reason", pa.repeat(NEAR_DUPLICATE, len(dropped)))


def _figures(recipe: DeduplicateRecipe, documents: pa.Table, pairs: Pairs, clusters: pa.Table) -> dict[str, Any]:
    dropped, bands = clusters.filter(~field("kept")), recipe.bands()
    sizes = clusters["cluster"].value_counts().field("counts").to_numpy()
    shown = dropped.sort_by([("bytes", "descending"), ("source", "ascending")]).slice(0, _SHOWN)
    return {
        "documents": documents.num_rows,
        "bytes": int(documents["bytes"].to_numpy().sum()),
        "dropped": dropped.num_rows,
        "dropped_bytes": int(dropped["bytes"].to_numpy().sum()),
        "reasons": {NEAR_DUPLICATE: dropped.num_rows} if dropped.num_rows else {},
        "clusters": len(sizes),
        "largest_cluster": int(sizes.max(initial=0)),
        "pairs": len(pairs.first),
        "bands": [bands.count, bands.rows],
        "recall_at_threshold": round(bands.found(recipe.threshold), 4),
        "longest_dropped": shown.select(["source", "of", "similarity", "bytes"]).to_pylist(),
    }
