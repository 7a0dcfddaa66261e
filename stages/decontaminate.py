"""Passages of benchmarks out of the documents; see `ringworld.data.decontaminate`.

- Looked for are the n-grams of the benchmark files that the recipe names, and the sentences with which this project's
  own needle test asks. Its haystacks are held-out documents; no training document is a near duplicate of one, since
  deduplication runs before the split.
- One task for each file of documents finds matches and writes them; the driver counts in how many documents each
  n-gram stands, and leaves common phrases alone; one task for each file of matches then decides what is cut.
- Outputs: `drops.parquet` and `cuts.parquet` (see `ringworld.data.decisions`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.compute import field

from infra.stage import Result, StageContext
from ringworld.data.decisions import CUTS, DROPS, write_cuts, write_drops
from ringworld.data.decontaminate import BenchmarkText, CutRule, Grams, Matcher, judge, widened
from ringworld.data.files import absolute, join, list_files, open_to_read, read_table, write_table
from ringworld.data.partitions import discard
from ringworld.data.readers import ReadOptions, read, read_rows
from ringworld.data.sources import Item, SourceFile, expand
from ringworld.errors import UserError
from stages.blocks import map_blocks
from stages.corpus import DecisionTables, file_blocks, read_documents

NEEDLE = "needle"  # the name of the needle test among the benchmarks
_ROWS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".ndjson.gz", ".ndjson.zst", ".parquet")
_MOST_BYTES = 1 << 28  # of a benchmark's file or row
_SHOWN = 10


@dataclass(frozen=True)
class DecontaminateRecipe:
    """benchmarks: paths, globs or folders, local or gs://. Every string in a row of .jsonl and .parquet is a text,
    whatever its column; any other file is one.

    ngram: words. shortest: words of the shortest text that is looked for, as a whole. common: an n-gram in more
    documents is a common phrase and stays. The others: see `ringworld.data.decontaminate.CutRule`.
    """

    kind: ClassVar[str] = "decontaminate"
    benchmarks: tuple[str, ...] = ()
    ngram: int = 13
    shortest: int = 8
    common: int = 10
    margin: int = 200
    shortest_piece: int = 200
    most_pieces: int = 10
    most_share: float = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.ngram <= 255:
            raise UserError(f"ngram={self.ngram}, shortest={self.shortest}: 1 <= shortest <= ngram <= 255")
        if not 0 < self.most_share <= 1:
            raise UserError(f"most_share={self.most_share}: a share, above 0 and at most 1, such as 0.5")
        for name, least in (("common", 1), ("margin", 0), ("shortest_piece", 1), ("most_pieces", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}: {least} or more")

    def rule(self) -> CutRule:
        return CutRule(self.margin, self.shortest_piece, self.most_pieces, self.most_share)


def run(context: StageContext, recipe: DecontaminateRecipe) -> Result:
    """Input ports `documents` and, to leave its drops out, `deduplicate`.

    Raises UserError for a benchmark that cannot be read whole.
    """
    folder = absolute(context.attempt_dir)
    work = join(folder, "matches")
    texts = [*needle_texts(), *read_benchmarks(recipe.benchmarks)]
    grams = Grams.of(texts, recipe.ngram, recipe.shortest)
    write_table(join(work, "grams.parquet"), grams.table())
    holders = _match(context, work, recipe.margin, len(grams.hash))
    common = np.flatnonzero((holders > recipe.common) & ~grams.whole)
    write_table(join(work, "common.parquet"), pa.table({"gram": common}))
    found = _judge(context, work, recipe.rule())
    cuts, drops = (found.filter(field("reason").is_null() == is_cut) for is_cut in (True, False))
    origin = _Origin(texts, grams)
    cut_rows = [{**cut, **origin.of(cut["gram"])} for cut in cuts.to_pylist()]
    drop_rows = [{**drop, "detail": origin.said(drop)} for drop in drops.to_pylist()]
    write_cuts(join(folder, "cuts.parquet"), pa.Table.from_pylist(cut_rows, CUTS))
    write_drops(join(folder, "drops.parquet"), pa.Table.from_pylist(drop_rows, DROPS))
    discard(work)
    return Result(("drops.parquet", "cuts.parquet"), _figures(texts, grams, holders, common, cut_rows, drop_rows))


def needle_texts() -> list[BenchmarkText]:
    """The needle and the question for every city of `ringworld.evaluate.needle`, without the number."""
    from ringworld.evaluate.needle import CITIES  # imports JAX, which the tasks have no use for

    asked = ("The special magic {} number is", "What is the special magic {} number")
    return [BenchmarkText(NEEDLE, 1, form.format(city), whole=True) for city in CITIES for form in asked]


def read_benchmarks(specs: Sequence[str]) -> list[BenchmarkText]:
    """The texts of all files. UserError, naming the file, for one that is broken or has a broken row."""
    return [text for item in (expand(specs, 0) if specs else ()) for text in _benchmark_texts(item)]


def _benchmark_texts(item: Item) -> Iterator[BenchmarkText]:
    if not isinstance(item, SourceFile):
        raise UserError(f"benchmarks: {item.name!r} is an installed package; name files of benchmarks")
    if not item.name.lower().endswith(_ROWS):
        for document in read(item, ReadOptions(max_document_bytes=_MOST_BYTES)):
            if document.text is None:
                raise UserError(
                    f"benchmarks: {document.source}: {document.reason} {document.detail}; mend or leave it out"
                )
            yield BenchmarkText(item.name, 1, document.text)
        return
    columns = []
    if item.name.lower().endswith(".parquet"):
        try:
            with open_to_read(item.name) as file:
                columns = pq.ParquetFile(file).schema_arrow.names
        except (OSError, pa.ArrowException) as wrong:
            raise UserError(f"benchmarks: {item.name} is no Parquet file: {wrong}; mend or leave it out") from wrong
    for row in read_rows(item, columns, _MOST_BYTES):
        if row.reason is not None:
            raise UserError(f"benchmarks: {row.source}: {row.reason} {row.detail}; mend it or leave it out")
        line = int(row.source.rpartition("#")[2])
        yield from (BenchmarkText(item.name, line, text) for text in _strings(row.value))


def _strings(value: Any) -> Iterator[str]:
    """Every string in a row, whatever holds it; names of fields are none."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _strings(part)


_MATCHED = pa.schema(
    [
        ("file", pa.string()),
        ("sha256", pa.string()),
        ("source", pa.string()),
        ("domain", pa.string()),
        ("bytes", pa.int64()),
        ("characters", pa.int64()),
        ("gram", pa.list_(pa.int64())),  # of each match, as are the next four
        ("start", pa.list_(pa.int64())),
        ("end", pa.list_(pa.int64())),
        ("left", pa.list_(pa.int64())),
        ("right", pa.list_(pa.int64())),
    ]
)
_HOLDERS = pa.schema([("gram", pa.int64()), ("documents", pa.int64())])


def _match(context: StageContext, work: str, margin: int, grams: int) -> np.ndarray:
    """int64 [grams]: the documents that hold each n-gram; where they do lies in `work`."""
    holders = np.zeros(grams, np.int64)
    blocks = file_blocks(context.inputs["documents"])
    arguments = {"work": work, "margin": margin, "decided": DecisionTables.of(context.inputs)}
    for done, found in enumerate(map_blocks(context, blocks, _match_block, arguments), 1):
        np.add.at(holders, found["gram"].to_numpy(), found["documents"].to_numpy())
        context.report(step=done, of=len(blocks), note="matches")
    return holders


def _match_block(block: pa.Table, work: str, margin: int, decided: DecisionTables) -> pa.Table:
    """Write the matches of a file of documents; the n-grams in it, each with its documents. Runs in a Ray task."""
    [task] = block.to_pylist()
    matcher = Matcher(read_table(join(work, "grams.parquet")))
    dropped = decided.on(task["file"]).dropped
    rows: list[dict[str, Any]] = []
    for batch in read_documents(task["place"]):
        for document in batch:
            if document.sha256 in dropped:
                continue
            matches = matcher.find(document.text)
            if len(matches.gram):
                left, right = widened(document.text, matches, margin)
                described = {name: getattr(document, name) for name in ("sha256", "source", "domain", "bytes")}
                spans = {"gram": matches.gram, "start": matches.start, "end": matches.end, "left": left, "right": right}
                rows.append({"file": task["file"], **described, "characters": len(document.text), **spans})
    if rows:
        write_table(join(work, "found", f"{task['number']:06d}.parquet"), pa.Table.from_pylist(rows, _MATCHED))
    gram, documents = np.unique(
        np.concatenate([np.zeros(0, np.int64), *(np.unique(row["gram"]) for row in rows)]), return_counts=True
    )
    return pa.table([pa.array(gram), pa.array(documents)], _HOLDERS)


_FOUND = pa.schema(
    [
        ("file", pa.string()),
        ("sha256", pa.string()),
        ("source", pa.string()),
        ("domain", pa.string()),
        ("bytes", pa.int64()),
        ("reason", pa.string()),  # of a document that is dropped; null for a cut
        ("share", pa.float64()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("gram", pa.int64()),
        ("matches", pa.int64()),
    ]
)


def _judge(context: StageContext, work: str, rule: CutRule) -> pa.Table:
    """Cuts and drops (`_FOUND`)."""
    folder = join(work, "found")
    blocks = [pa.table({"place": [join(folder, name)]}) for name in list_files(folder)]
    arguments = {"work": work, "rule": rule}
    judged = map_blocks(context, blocks, _judge_block, arguments) if blocks else ()
    return pa.concat_tables([_FOUND.empty_table(), *judged]).sort_by([("source", "ascending"), ("start", "ascending")])


def _judge_block(block: pa.Table, work: str, rule: CutRule) -> pa.Table:
    """What is cut of the documents of one file, and which are dropped. Runs in a Ray task."""
    common = read_table(join(work, "common.parquet"))["gram"].to_numpy()
    rows: list[dict[str, Any]] = []
    for found in read_table(block["place"][0].as_py()).to_pylist():
        gram = np.array(found["gram"])
        counted = ~np.isin(gram, common)
        spans = [np.array(found[name])[counted] for name in ("start", "end", "left", "right")]
        start, end, left, right = spans
        gram, judged = gram[counted], judge(start, end, left, right, found["characters"], rule)
        described = {name: found[name] for name in ("file", "sha256", "source", "domain", "bytes")}
        if judged.reason is not None:
            first = {"reason": judged.reason, "share": judged.share, "gram": gram[0], "matches": len(gram)}
            rows.append(described | first)
            continue
        for cut in judged.cuts:
            spans = {"start": cut.start, "end": cut.end, "gram": gram[cut.first], "matches": cut.matches}
            rows.append(described | {"share": judged.share} | spans)
    return pa.Table.from_pylist(rows, _FOUND)


@dataclass(frozen=True)
class _Origin:
    """Where an n-gram stands in the benchmarks."""

    texts: Sequence[BenchmarkText]
    grams: Grams

    def of(self, gram: int) -> dict[str, Any]:
        """benchmark, line, matched: as columns of `CUTS`."""
        text = self.texts[self.grams.text[gram]]
        start, end = int(self.grams.start[gram]), int(self.grams.end[gram])
        line = text.line + text.text.count("\n", 0, start)
        return {"benchmark": text.benchmark, "line": line, "matched": text.text[start:end]}

    def said(self, drop: Mapping[str, Any]) -> str:
        origin = self.of(drop["gram"])
        where = f"{origin['benchmark']} line {origin['line']}"
        return f"{drop['share']:.0%} in {drop['matches']} n-grams, the first {origin['matched']!r} of {where}"


def _figures(
    texts: Sequence[BenchmarkText],
    grams: Grams,
    holders: np.ndarray,
    common: np.ndarray,
    cuts: Sequence[Mapping[str, Any]],
    drops: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    origin = _Origin(texts, grams)
    commonest = sorted(common.tolist(), key=lambda gram: (-holders[gram], gram))[:_SHOWN]
    by_benchmark: dict[str, int] = {}
    for row in (*cuts, *({**drop, **origin.of(drop["gram"])} for drop in drops)):
        by_benchmark[row["benchmark"]] = by_benchmark.get(row["benchmark"], 0) + row["matches"]
    shown = sorted(cuts, key=lambda cut: (-cut["matches"], cut["source"], cut["start"]))[:_SHOWN]
    named = ("source", "start", "end", "benchmark", "line", "matches", "matched")
    return {
        "benchmarks": len({text.benchmark for text in texts}),
        "texts": len(texts),
        "texts_too_short": grams.too_short,
        "ngrams": len(grams.hash),
        "ngrams_found": int((holders > 0).sum()),
        "common_phrases": [{**origin.of(gram), "documents": int(holders[gram])} for gram in commonest],
        "documents_cut": len({cut["sha256"] for cut in cuts}),
        "cuts": len(cuts),
        "characters_cut": sum(cut["end"] - cut["start"] for cut in cuts),
        "dropped": len(drops),
        "reasons": dict(sorted(Counter(drop["reason"] for drop in drops).items())),
        "matches": dict(sorted(by_benchmark.items())),
        "shown": [{name: cut[name] for name in named} for cut in shown],
        "dropped_sources": [{"source": drop["source"], "detail": drop["detail"]} for drop in drops[:_SHOWN]],
    }
