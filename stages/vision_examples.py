"""Examples of one training stage from codes and what is said of them: a token store of text and vision ids mixed.

- Which examples, see `ringworld.vision.examples`: pairs, all of which counts, in a store without marks, which may share
  a plan with plain text; or the four tasks of chat, in a store that marks answers.
- Clips are read from the store of codes by Ray Data tasks, each of which writes a shard and returns its rows of the
  index. Memory is bounded by a shard.
- An example is on the side of the split that its clip is on. What becomes no example is counted by corpus and reason,
  and so is what got fewer frames than its recipe asks for.
- Output: `tokens/`; its index says to which corpus each example belongs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.stage import Artifact, Result, StageContext
from ringworld.data.conversations import Turn
from ringworld.data.files import absolute, join, list_files, open_to_read, read_table
from ringworld.data.packing import length_histogram
from ringworld.data.token_store import StoreInfo, TokenStore, write_index, write_shard
from ringworld.data.tokenizers import Tokenizer, load_tokenizer
from ringworld.errors import UserError
from ringworld.vision.examples import CodedClip, Example, ExampleOptions, Left, Maker
from ringworld.vision.stream import VisionIds, frames_of, spans_of
from stages.blocks import map_blocks
from stages.tallies import in_words, tally

_NAMED = 20
_SAMPLES = 10
_TEXT_SHOWN = 400  # characters of a sample's stretch of text
_BLOCK_TOKENS = 1 << 24  # of codes
_READ_TOKENS = 1 << 22  # of codes, at a time

_CLIP_COLUMNS = ["document", "name", "kind", "caption", "conversation", "sha256", "split", "rate"]
_ROWS = pa.schema(
    [
        ("source", pa.string()),  # the clip's name
        ("sha256", pa.string()),  # of the clip's content
        ("split", pa.string()),
        ("corpus", pa.string()),
        ("reason", pa.string()),  # null for an example, else the rest is
        ("detail", pa.string()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("tokens", pa.int64()),
        ("answers", pa.int64()),  # targets that count
        ("seen", pa.int64()),  # of these, vision ids
        ("frames", pa.int32()),
        ("wanted", pa.int32()),
        ("how", pa.string()),
        ("sample", pa.string()),  # for people; of the examples with the smallest hashes of a task, else null
    ]
)


@dataclass(frozen=True)
class VisionExamplesRecipe:
    """vocabulary, vision_vocabulary: the model's, of text and of vision: codes are ids from `vocabulary` on."""

    kind: ClassVar[str] = "vision-examples"
    vocabulary: int
    vision_vocabulary: int
    how: ExampleOptions


def run(context: StageContext, recipe: VisionExamplesRecipe) -> Result:
    """Input ports `codes` and `tokenizer`.

    Raises UserError where the model has no room for the ids of either, and when no example can be made of the clips to
    train on.
    """
    codes = context.inputs["codes"]
    ids, grid = _ids(codes, recipe), codes.values["grid"]
    tokenizer = load_tokenizer(context.inputs["tokenizer"].path("tokenizer"))
    template = Maker(recipe.how, tokenizer, ids).template
    info = StoreInfo(
        tokenizer.hash,
        tokenizer.vocabulary_size,
        tokenizer.eos_id,
        tokenizer.pad_id,
        recipe.how.form == "chat",
        ids.offset,
        recipe.vision_vocabulary,
    )
    folder = join(absolute(context.attempt_dir), "tokens")
    arguments = {
        "codes": codes.path("codes"),
        "clips": codes.path("clips.parquet"),
        "tokenizer": context.inputs["tokenizer"].path("tokenizer"),
        "folder": folder,
        "info": info,
        "how": recipe.how,
        "ids": ids,
        "grid": grid,
    }
    blocks, tables, made = _blocks(codes, recipe), [], 0
    for done, rows in enumerate(map_blocks(context, blocks, _make_block, arguments), start=1):
        for wrong in rows.filter(pc.field("reason") == "wrong")["detail"].to_pylist():
            raise UserError(wrong)
        made += rows["reason"].null_count
        if rows.num_rows:  # else a run of clips of other kinds
            tables.append(rows)
        context.report(step=done, of=len(blocks), note=f"{made} examples")
    tables.sort(key=lambda rows: rows["shard"][0].as_py())
    rows = pa.concat_tables([_ROWS.empty_table(), *tables])
    kept = rows.filter(pc.field("reason").is_null())
    _check_usable(recipe, rows, kept)
    index = kept.append_column("document", pa.array(np.arange(len(kept))))
    write_index(folder, info, index)
    values = _figures(recipe, rows, kept) | {
        "vqgan": codes.values["vqgan"],
        "grid": grid,
        "vision": {"offset": ids.offset, "codebook": ids.codebook, "vocabulary": recipe.vision_vocabulary},
        "template": {"name": template.name, "hash": template.hash} if info.answers else None,
        "samples": _samples(index),
    }
    return Result(tuple(f"tokens/{name}" for name in list_files(folder)), values)


def _ids(codes: Artifact, recipe: VisionExamplesRecipe) -> VisionIds:
    """UserError, naming the stage, for codes of another VQGAN than the model has room for."""
    ids = VisionIds(recipe.vocabulary, codes.values["codebook"])
    try:
        ids.check_fits(recipe.vision_vocabulary)
    except UserError as wrong:
        raise UserError(
            f"codes of stage {codes.manifest.stage}: {wrong}, or make the codes with the VQGAN that this model is for"
        ) from None
    stored = TokenStore.open(codes.path("codes")).info
    if stored.vocabulary_size != ids.vocabulary or stored.tokenizer_hash != codes.values["vqgan"]:
        raise UserError(
            f"codes of stage {codes.manifest.stage}: the store holds {stored.vocabulary_size} ids of VQGAN "
            f"{stored.tokenizer_hash[:12]}, its manifest says {ids.vocabulary} of {codes.values['vqgan'][:12]}; make "
            f"the stage again"
        )
    return ids


def _blocks(codes: Artifact, recipe: VisionExamplesRecipe) -> list[pa.Table]:
    """Runs of documents, each with about `_BLOCK_TOKENS` of what may be used of their codes."""
    table = read_table(codes.path("clips.parquet"), ["kind", "tokens"])
    most = np.minimum(table["tokens"].to_numpy(), recipe.how.sequence)
    sizes = np.where(np.isin(table["kind"].to_numpy(zero_copy_only=False), recipe.how.kinds), most, 0)
    edges = [0]
    for at in np.flatnonzero(np.diff(np.cumsum(sizes) // _BLOCK_TOKENS)).tolist():
        edges.append(at + 1)
    edges.append(len(sizes))
    return [
        pa.table({"number": [number], "begin": [begin], "end": [end]})
        for number, (begin, end) in enumerate(pairwise(edges))
    ]


def _make_block(
    block: pa.Table,
    codes: str,
    clips: str,
    tokenizer: str,
    folder: str,
    info: StoreInfo,
    how: ExampleOptions,
    ids: VisionIds,
    grid: int,
) -> pa.Table:
    """Write the examples of a run of clips as one shard; returns their rows. Runs in a Ray task."""
    [task] = block.to_pylist()
    encoder = load_tokenizer(tokenizer)
    maker, stored = Maker(how, encoder, ids), TokenStore.open(codes)
    rows: list[dict[str, Any]] = []
    documents: list[np.ndarray] = []
    marks: list[np.ndarray] = []
    offset = 0
    for row, tokens in _read(stored, clips, task["begin"], task["end"], how.kinds):
        clip = _clip(row)
        try:
            frames = frames_of(tokens, VisionIds(0, ids.codebook), grid)
        except UserError as wrong:  # raised by who drives: here it would become an error of Ray
            told = f"{codes}, clip {clip.name}: {wrong}; make the stage again"
            return pa.Table.from_pylist([{"shard": task["number"], "reason": "wrong", "detail": told}], _ROWS)
        for found in maker.make(clip, frames):
            known = {"source": clip.name, "sha256": clip.sha256, "split": row["split"], "corpus": found.corpus}
            known["shard"] = task["number"]
            if isinstance(found, Left):
                rows.append(known | {"reason": found.reason, "detail": found.detail})
                continue
            rows.append(known | {"offset": offset} | _described(found, ids, encoder))
            offset += len(found.ids)
            documents.append(found.ids.astype(info.dtype))
            marks.append(found.answer)
        _drop_samples(rows)
    write_shard(folder, task["number"], documents, info, marks if info.answers else None)
    return pa.Table.from_pylist(rows, _ROWS)


def _read(
    stored: TokenStore, clips: str, begin: int, end: int, kinds: Sequence[str]
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Clips of these kinds with their streams, some at a time."""
    with open_to_read(clips) as opened:
        wanted = [("document", ">=", begin), ("document", "<", end), ("kind", "in", list(kinds))]
        table = pq.read_table(opened, columns=_CLIP_COLUMNS, filters=wanted)
    ends = np.cumsum(stored.index.tokens[table["document"].to_numpy()]) // _READ_TOKENS
    for some in np.split(np.arange(len(table)), np.flatnonzero(np.diff(ends)) + 1):
        rows = table.take(pa.array(some)).to_pylist()
        numbers = [row["document"] for row in rows]
        lengths = [int(stored.index.tokens[number]) for number in numbers]
        yield from zip(rows, stored.read_many(numbers, [0] * len(rows), lengths), strict=True)


def _clip(row: dict[str, Any]) -> CodedClip:
    turns = tuple(Turn(turn["role"], turn["text"]) for turn in row["conversation"])
    held_out = row["split"] == "held_out"
    return CodedClip(row["name"], row["kind"], row["sha256"], row["caption"], turns, row["rate"], held_out)


def _described(found: Example, ids: VisionIds, tokenizer: Tokenizer) -> dict[str, Any]:
    counted = found.answer[1:]  # the first of a document is never a target
    return {
        "tokens": len(found.ids),
        "answers": int(counted.sum()),
        "seen": int((counted & (found.ids[1:] >= ids.offset)).sum()),
        "frames": found.frames,
        "wanted": found.wanted,
        "how": found.how,
        "sample": _shown(found, ids, tokenizer),
    }


def _shown(found: Example, ids: VisionIds, tokenizer: Tokenizer) -> str:
    """An example for people: its text, and in place of codes how many there are."""
    parts, done = [], 0
    for begin, end in spans_of(found.ids, ids):
        parts.append(_short(tokenizer.decode(found.ids[done:begin])))
        count = int((found.ids[begin:end] >= ids.eof).sum())
        parts.append(f"[{count} frame{'s' * (count > 1)}, {end - begin} ids]")
        done = end
    return "".join([*parts, _short(tokenizer.decode(found.ids[done:]))])


def _short(text: str) -> str:
    half = _TEXT_SHOWN // 2
    return text if len(text) <= _TEXT_SHOWN else f"{text[:half]} \u2026 {text[-half:]}"


def _key(row: dict[str, Any]) -> str:
    return hashlib.sha256(f"{row['corpus']}/{row['sha256']}/{row['source']}/{row['how']}".encode()).hexdigest()


def _drop_samples(rows: list[dict[str, Any]]) -> None:
    """Keep those of the smallest hashes of each corpus: whatever other tasks found, the smallest of all are here."""
    with_sample = [row for row in rows if row.get("sample")]
    for corpus in {row["corpus"] for row in with_sample}:
        for row in sorted((row for row in with_sample if row["corpus"] == corpus), key=_key)[_SAMPLES:]:
            row["sample"] = None


def _samples(index: pa.Table) -> list[dict[str, Any]]:
    """Examples with the smallest hashes, the corpora by turns: chosen by nobody, and the same every time."""
    columns = ["document", "corpus", "source", "sha256", "split", "tokens", "frames", "how", "sample"]
    rows = index.filter(pc.field("sample").is_valid()).select(columns).to_pylist()
    by_corpus: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=_key):
        by_corpus.setdefault(row["corpus"], []).append(row | {"text": row.pop("sample")})
    turns = [(rank, corpus, row) for corpus, of in by_corpus.items() for rank, row in enumerate(of)]
    return [row for _, _, row in sorted(turns, key=lambda turn: turn[:2])[:_SAMPLES]]


def _check_usable(recipe: VisionExamplesRecipe, rows: pa.Table, kept: pa.Table) -> None:
    if kept.filter(pc.field("split") == "train").num_rows:
        return
    left = rows.filter(~pc.field("reason").is_null())
    why = in_words(tally(left["reason"]))
    if left.num_rows:
        [first, *_] = left.to_pylist()
        why += f"; {first['source']}: {first['reason']} {first['detail'] or ''}".rstrip()
    raise UserError(
        f"sequence={recipe.how.sequence}, kinds={list(recipe.how.kinds)}: no example can be made of a clip to train on "
        f"({why or 'there are no such clips'}); raise sequence, take other kinds, or add clips"
    )


def _figures(recipe: VisionExamplesRecipe, rows: pa.Table, kept: pa.Table) -> dict[str, Any]:
    left = rows.filter(~pc.field("reason").is_null())
    return {
        "form": recipe.how.form,
        "sequence": recipe.how.sequence,
        "written_by_model": False,  # of what is made here; nobody knows of the conversations that clips bring
        **_total(kept),
        "corpora": {
            corpus: _total(kept.filter(pc.field("corpus") == corpus))
            | {"left": tally(left.filter(pc.field("corpus") == corpus)["reason"])}
            for corpus in tally(rows["corpus"])
        },
        "train": _total(kept.filter(pc.field("split") == "train")),
        "held_out": _total(kept.filter(pc.field("split") == "held_out")),
        "lengths": length_histogram(kept["tokens"].to_numpy()),
        "left": left.select(["source", "corpus", "reason", "detail"]).slice(0, _NAMED).to_pylist(),
    }


def _total(rows: pa.Table) -> dict[str, Any]:
    frames, wanted = (rows[name].to_numpy() for name in ("frames", "wanted"))
    sums = {name: int(rows[name].to_numpy().sum()) for name in ("tokens", "answers", "seen", "frames")}
    how = tally(rows["how"])
    return {"examples": rows.num_rows, **sums, "shortened": int((frames < wanted).sum()), "how": how}
