"""Chat data to tokens with their answers marked: one store for all corpora of the mixtures, each document with its own.

- A corpus comes from files of the recipe, or from the stage at the port of its name, which wrote `examples/*.jsonl`.
- One store and not one per corpus: a chat stage trains on one store, and a document's corpus is a column of its index.
- Turns become tokens by the template that the tokenizer brings, the one that a trained model is asked by.
- Files are parsed and tokenised by Ray Data tasks, each of which writes its shards and returns its rows of the index.
  Memory is bounded by a shard, not by a file.
- A record that is no conversation, or one that the template cannot hold, is refused by name, with a reason that is
  counted; of equal conversations the first stays.
- A record of a stage may say its split, which is kept: what was made of a held-out document is held out. The other
  conversations are drawn within each corpus, so that each has both sides.
- Output: `tokens/`, a token store that marks answers, and `refused.parquet` (corpus, source, reason, detail).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.stage import Artifact, Result, StageContext
from ringworld.data.conversations import FIELDS, Refused, Turn, digest, parse
from ringworld.data.files import absolute, join, list_files, write_table
from ringworld.data.packing import length_histogram
from ringworld.data.readers import RawRow, read_rows
from ringworld.data.sources import INSTALLED, SourceFile, expand
from ringworld.data.split import held_out
from ringworld.data.templates import template_of
from ringworld.data.token_store import StoreInfo, write_index, write_shard
from ringworld.data.tokenizers import load_tokenizer
from ringworld.errors import UserError
from stages.blocks import map_blocks
from stages.documents import DUPLICATE, blocks_of
from stages.tallies import in_words, tally

_NAMED = 20
_SHARD_TOKENS = 1 << 25
_SHARDS_OF_A_BLOCK = 1000  # more than any block of files can fill; numbers that only the block decides
_BATCH_CHARACTERS = 1 << 21
_TOKENIZER = "tokenizer"
_EXAMPLES = "examples/"
_SPLITS = ("train", "held_out")
_UNKNOWN_SPLIT = "unknown split"
_SAMPLES = 3
_SAMPLE_CHARACTERS = 600
_TURN_CHARACTERS = 180

_ROW_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("tokens", pa.int64()),
        ("answers", pa.int64()),
        ("corpus", pa.string()),
        ("source", pa.string()),
        ("sha256", pa.string()),  # null for a record that was refused
        ("reason", pa.string()),  # null for one that is kept
        ("detail", pa.string()),
        ("given", pa.string()),  # the split that the record says; null where it says none
        ("sample", pa.string()),  # of the conversations with the smallest hashes of a task; else null
    ]
)


@dataclass(frozen=True)
class ConversationsRecipe:
    """sources: of each corpus, paths, globs and folders of .jsonl (.gz, .zst) and .parquet files, local or on gs://.

    held_out: the fraction of each corpus's conversations kept from training, drawn with seed among those that say no
    split. A record longer than max_document_bytes is refused by name.
    """

    kind: ClassVar[str] = "conversations"
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    held_out: float = 0.1
    seed: int = 0
    max_document_bytes: int = 1 << 28


@dataclass(frozen=True)
class _Corpus:
    """files: what is read. shown: for each, how its records are named. origin: where it comes from, in words.

    splits: whether its records say theirs. written_by_model: None where nobody knows.
    """

    files: tuple[SourceFile, ...]
    shown: tuple[str, ...]
    origin: str
    splits: bool = False
    written_by_model: bool | None = None


def run(context: StageContext, recipe: ConversationsRecipe) -> Result:
    """Input port `tokenizer`; every other port is a corpus, whose name it bears.

    Raises UserError for a corpus without sources, without files, with fewer than two usable conversations, or that both
    the recipe and a port have; and for a template that nothing can be trained with.
    """
    corpora = {**_of_recipe(recipe, context.inputs), **_of_ports(context.inputs)}
    if not corpora:
        raise UserError(
            "sources={}: there is nothing to talk about; name files for a corpus, as in sources.chat=a.jsonl"
        )
    folder = join(absolute(context.attempt_dir), "tokens")
    tokenizer = load_tokenizer(context.inputs[_TOKENIZER].path("tokenizer"))
    template = template_of(tokenizer)
    template.check()
    info = StoreInfo(tokenizer.hash, tokenizer.vocabulary_size, tokenizer.eos_id, tokenizer.pad_id, answers=True)
    rows = mark_duplicates(_tokenize_all(context, recipe, corpora, folder, info))
    kept, refused = rows.filter(pc.field("reason").is_null()), rows.filter(~pc.field("reason").is_null())
    for name, corpus in corpora.items():
        _check_usable(corpus.origin, rows.filter(pc.field("corpus") == name))

    chosen = _held_out(recipe, kept)
    index = kept.append_column("document", pa.array(np.arange(kept.num_rows)))
    index = index.append_column("split", pa.array(np.where(chosen, "held_out", "train")))
    write_index(folder, info, index)
    named = refused.select(["corpus", "source", "reason", "detail"])
    write_table(join(context.attempt_dir, "refused.parquet"), named)
    values = {
        **_total(kept),
        "corpora": {name: _total(kept.filter(pc.field("corpus") == name)) for name in corpora},
        "train": _total(kept.filter(pa.array(~chosen))),
        "held_out": _total(kept.filter(pa.array(chosen))),
        "lengths": length_histogram(kept["tokens"].to_numpy()),
        "reasons": tally(refused["reason"]),
        "refused": named.filter(pc.field("reason") != DUPLICATE).slice(0, _NAMED).to_pylist(),
        "vocabulary_size": info.vocabulary_size,
        "template": {"name": template.name, "hash": template.hash},
        "provenance": {
            name: {"from": corpus.origin, "written_by_model": corpus.written_by_model}
            for name, corpus in corpora.items()
        },
        "samples": _samples(kept),
    }
    return Result(("refused.parquet", *(f"tokens/{name}" for name in list_files(folder))), values)


def mark_duplicates(rows: pa.Table) -> pa.Table:
    """The rows, where a conversation that an earlier one equals gets a reason. Pure."""
    digests, sources, reasons, details = (rows[n].to_pylist() for n in ("sha256", "source", "reason", "detail"))
    first: dict[str, str] = {}
    for row, found in enumerate(digests):
        if reasons[row] is not None:
            continue
        if found in first:
            reasons[row], details[row] = DUPLICATE, f"of {first[found]}"
        else:
            first[found] = sources[row]
    for name, values in (("reason", reasons), ("detail", details)):
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(values, pa.string()))
    return rows


def _of_recipe(recipe: ConversationsRecipe, ports: Mapping[str, Artifact]) -> dict[str, _Corpus]:
    """The corpora of files, each with its files sorted."""
    found = {}
    for corpus, specs in recipe.sources.items():
        if corpus in ports:
            raise UserError(
                f"sources.{corpus}={list(specs)}: stage {ports[corpus].manifest.stage} makes {corpus} too; take one"
            )
        if not specs or INSTALLED in specs:
            raise UserError(
                f"sources.{corpus}={list(specs)}: a mixture names {corpus}, so it needs files of conversations: "
                f"give them, as in sources.{corpus}={corpus}/*.jsonl, or set mixture.{corpus}=0 in the chat stages"
            )
        files = tuple(item for item in expand(specs, 0) if isinstance(item, SourceFile))
        origin = f"sources.{corpus}={list(specs)}"
        found[corpus] = _Corpus(files, tuple(item.name for item in files), origin)
    return found


def _of_ports(ports: Mapping[str, Artifact]) -> dict[str, _Corpus]:
    """The corpora that other stages have made. A record is named by its stage and file, not by where that lies."""
    found = {}
    for corpus, made in ports.items():
        if corpus == _TOKENIZER:
            continue
        stage = made.manifest.stage
        entries = [entry for entry in made.manifest.files if entry.path.startswith(_EXAMPLES)]
        entries = [entry for entry in entries if entry.path.endswith(".jsonl")]
        if not entries:
            raise UserError(
                f"stage {stage}, which is to make {corpus}, has no {_EXAMPLES}*.jsonl but "
                f"{', '.join(made.files[:5]) or 'no files'}; make it again, or set mixture.{corpus}=0"
            )
        files = tuple(SourceFile(made.path(entry.path), entry.bytes) for entry in entries)
        shown = tuple(f"{stage}/{entry.path}" for entry in entries)
        by_model = made.values.get("written_by_model")
        found[corpus] = _Corpus(files, shown, f"stage {stage}", True, by_model)
    return found


def _tokenize_all(
    context: StageContext,
    recipe: ConversationsRecipe,
    corpora: Mapping[str, _Corpus],
    folder: str,
    info: StoreInfo,
) -> pa.Table:
    """Every record's row, in order of corpus, file and place in it."""
    blocks = []
    for name, corpus in corpora.items():
        shown = dict(zip(corpus.files, corpus.shown, strict=True))
        for members in blocks_of(corpus.files):
            columns = {
                "block": [len(blocks)] * len(members),
                "corpus": [name] * len(members),
                "splits": [corpus.splits] * len(members),
                "name": [item.name for item in members],
                "shown": [shown[item] for item in members],  # type: ignore[index]
                "bytes": [item.bytes for item in members],
            }
            blocks.append(pa.table(columns))
    arguments = {
        "folder": folder,
        "info": info,
        "tokenizer": context.inputs[_TOKENIZER].path("tokenizer"),
        "max_bytes": recipe.max_document_bytes,
    }
    tables: list[pa.Table] = []
    began, tokens = time.monotonic(), 0
    for rows in map_blocks(context, blocks, _tokenize_block, arguments):
        tables.append(rows)
        tokens += int(rows["tokens"].to_numpy().sum())
        context.report(step=len(tables), of=len(blocks), tokens_per_second=tokens / (time.monotonic() - began))
    # Rows lie in their block in order, which sorting by the first shard keeps.
    tables.sort(key=lambda rows: rows["shard"][0].as_py())
    return pa.concat_tables(tables)


def _tokenize_block(block: pa.Table, folder: str, info: StoreInfo, tokenizer: str, max_bytes: int) -> pa.Table:
    """Parse and tokenise files of one corpus into shards; returns their rows in order. Runs in a Ray task."""
    template = template_of(load_tokenizer(tokenizer))
    shard = block["block"][0].as_py() * _SHARDS_OF_A_BLOCK
    rows: list[dict[str, Any]] = []
    ids: list[np.ndarray] = []
    answers: list[np.ndarray] = []
    offset = 0
    for batch in _batches(block, max_bytes):
        encoded = iter(template.encode([turns for _, turns in batch if turns]))
        for row, turns in batch:
            row |= {"shard": shard, "offset": offset, "tokens": 0, "answers": 0}
            rows.append(row)
            found = next(encoded) if turns else None
            if isinstance(found, Refused):
                row |= {"sha256": None, "reason": found.reason, "detail": found.detail}
            elif found is not None:
                ids.append(found.ids.astype(info.dtype))
                answers.append(found.answer)
                row |= {"tokens": len(found.ids), "answers": int(found.answer[1:].sum()), "sample": _sample(turns)}
                offset += len(found.ids)
        _drop_samples(rows)
        if offset >= _SHARD_TOKENS:
            write_shard(folder, shard, ids, info, answers)
            ids, answers, offset, shard = [], [], 0, shard + 1
    if ids:
        write_shard(folder, shard, ids, info, answers)
    return pa.Table.from_pylist(rows, _ROW_SCHEMA)


def _batches(block: pa.Table, max_bytes: int) -> Iterator[list[tuple[dict[str, Any], tuple[Turn, ...]]]]:
    """Records in order, as (row, turns), no turns for one that is refused; in lists of about `_BATCH_CHARACTERS`."""
    batch: list[tuple[dict[str, Any], tuple[Turn, ...]]] = []
    size = 0
    for file in block.to_pylist():
        for raw in read_rows(SourceFile(file["name"], file["bytes"]), FIELDS, max_bytes):
            batch.append(_record(raw, file))
            size += sum(len(turn.text) for turn in batch[-1][1])
            if size >= _BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _record(raw: RawRow, file: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[Turn, ...]]:
    source = file["shown"] + raw.source.removeprefix(file["name"])
    row: dict[str, Any] = {"corpus": file["corpus"], "source": source, "reason": raw.reason, "detail": raw.detail}
    if raw.reason is not None:
        return row, ()
    turns = parse(raw.value)
    if isinstance(turns, Refused):
        return row | {"reason": turns.reason, "detail": turns.detail}, ()
    split = raw.value.get("split") if file["splits"] else None
    if split is not None and split not in _SPLITS:
        return row | {"reason": _UNKNOWN_SPLIT, "detail": f"{split!r:.60}; known: {', '.join(_SPLITS)}"}, ()
    return row | {"sha256": digest(turns), "given": split}, turns


def _check_usable(origin: str, rows: pa.Table) -> None:
    refused = rows.filter(~pc.field("reason").is_null())
    usable = rows.num_rows - refused.num_rows
    if usable >= 2:
        return
    why = in_words(tally(refused["reason"])) or "none refused"
    for row in refused.slice(0, 1).to_pylist():
        why += f"; {row['source']}: {row['reason']} {row['detail'] or ''}".rstrip()
    raise UserError(
        f"{origin}: {usable or 'no'} usable conversation among {rows.num_rows} records, two are needed ({why}); give "
        f"other sources"
    )


def _held_out(recipe: ConversationsRecipe, kept: pa.Table) -> np.ndarray:
    """bool [conversations]: those that say so, and of the others of each corpus a part drawn by lot."""
    corpora, given = (np.array(kept[name].to_pylist(), object) for name in ("corpus", "given"))
    chosen = np.asarray(given == "held_out", bool)
    asked = np.asarray(kept["given"].is_null())
    for corpus in sorted(set(corpora.tolist())):
        here = np.flatnonzero((corpora == corpus) & asked)
        if len(here) < 2:
            continue
        part = kept.take(here)
        digests, tokens = part["sha256"].to_pylist(), part["tokens"].to_numpy()
        chosen[here] = held_out(digests, tokens, recipe.held_out, recipe.seed, longest=0)
    return chosen


def _sample(turns: tuple[Turn, ...]) -> str:
    """A conversation for people, cut to a few lines: of a long turn its two ends, where a question stands."""
    lines = []
    for turn in turns:
        text = " ".join(turn.text[: 2 * _TURN_CHARACTERS].split()), " ".join(turn.text[-2 * _TURN_CHARACTERS :].split())
        half = _TURN_CHARACTERS // 2
        short = text[0] if len(turn.text) <= _TURN_CHARACTERS else f"{text[0][:half]} \u2026 {text[1][-half:]}"
        lines.append(f"{turn.role}: {short}")
    whole = "\n".join(lines)
    return whole if len(whole) <= _SAMPLE_CHARACTERS else whole[: _SAMPLE_CHARACTERS - 2] + " \u2026"


def _drop_samples(rows: list[dict[str, Any]]) -> None:
    """Keep those of the smallest hashes: whatever other tasks found, the smallest of all are among them."""
    with_sample = [row for row in rows if row.get("sample")]
    for row in sorted(with_sample, key=lambda row: row["sha256"])[_SAMPLES:]:
        row["sample"] = None


def _samples(kept: pa.Table) -> list[dict[str, str]]:
    """Conversations with the smallest hashes, the corpora by turns: chosen by nobody, and the same every time."""
    rows = kept.filter(pc.field("sample").is_valid()).sort_by("sha256").select(["corpus", "source", "sample"])
    by_corpus: dict[str, list[dict[str, str]]] = {}
    for row in rows.to_pylist():
        by_corpus.setdefault(row["corpus"], []).append({**row, "text": row.pop("sample")})
    turns = [(rank, corpus, row) for corpus, of in by_corpus.items() for rank, row in enumerate(of)]
    return [row for _, _, row in sorted(turns, key=lambda turn: turn[:2])[:_SAMPLES]]


def _total(rows: pa.Table) -> dict[str, int]:
    tokens, answers = (int(rows[name].to_numpy().sum()) for name in ("tokens", "answers"))
    return {"conversations": rows.num_rows, "tokens": tokens, "answer_tokens": answers}
