"""Which chunks are asked about: documents chosen, cut and sampled, and the chosen chunks grouped into shards.

- One Ray Data task for each file of documents cuts the chosen documents and writes where their chunks lie, asked or
  not, to `plan/`; the process that drives holds numbers and names of the asked ones, never text.
- Every choice is a draw of the seed and of what it decides: content, piece and number, never a path or an order.
- A document's split is that of the token store: its held-out documents get questions too.
- A shard is some consecutive asked chunks, named by its number and by the hash of what it holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.compute import field

from infra.stage import StageContext
from ringworld.data.decisions import Decisions
from ringworld.data.files import absolute, join, list_files, open_to_read, read_table
from ringworld.data.tokenizers import load_tokenizer
from ringworld.errors import UserError
from ringworld.synthesis.chunks import TOKENS, cut
from stages.blocks import map_blocks
from stages.corpus import DecisionTables, file_blocks, read_documents
from stages.shards import commit

PLAN = pa.schema(
    [
        ("file", pa.int32()),  # its number among the files of documents
        ("row", pa.int64()),  # of the document there
        ("sha256", pa.string()),
        ("document", pa.string()),  # the piece's name
        ("number", pa.int32()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("tokens", pa.int32()),
        ("split", pa.string()),
        ("asked", pa.bool_()),
    ]
)
_ORDER = [("file", "ascending"), ("row", "ascending"), ("document", "ascending"), ("number", "ascending")]


@dataclass(frozen=True)
class Choice:
    """Which chunks are asked about. chunk_tokens: of each, about.

    documents: at most so many, by content, some of both splits; null: all. share: of the chunks, by chance.
    per_document: at most so many chunks of each document (of each piece of a cut one); null: all.
    """

    chunk_tokens: int = TOKENS
    documents: int | None = None
    share: float = 1.0
    per_document: int | None = None

    def __post_init__(self) -> None:
        if self.chunk_tokens < 16:
            raise UserError(f"chunk_tokens={self.chunk_tokens}: 16 or more, such as {TOKENS}")
        if not 0 < self.share <= 1:
            raise UserError(f"share={self.share}: of the chunks, above 0 and at most 1")
        for name in ("documents", "per_document"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value}: 1 or more, or null for all")


@dataclass(frozen=True)
class Shard:
    """rows: of `PLAN`, all asked, in its order."""

    number: int
    rows: pa.Table

    @property
    def name(self) -> str:
        told = self.rows.select(["sha256", "document", "number", "start", "end"]).to_pylist()
        return f"{self.number:06d}-{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]}"


def plan(context: StageContext, choice: Choice, seed: int) -> tuple[pa.Table, int]:
    """The asked chunks, rows of `PLAN` in order, and how many chunks the chosen documents have.

    Ports `documents`, `tokens` and `tokenizer`, and `deduplicate` and `decontaminate` where there are such stages.
    """
    index = join(context.inputs["tokens"].path("tokens"), "index.parquet")
    chosen = _chosen(index, choice, seed)
    blocks = [
        block.append_column("chosen", pa.array([None if chosen is None else chosen.get(number, [])], _NAMES))
        for number, block in enumerate(file_blocks(context.inputs["documents"]))
    ]
    folder = plan_folder(context)
    arguments = {
        "folder": folder,
        "index": index,
        "tokenizer": context.inputs["tokenizer"].path("tokenizer"),
        "decided": DecisionTables.of(context.inputs),
        "choice": choice,
        "seed": seed,
    }
    done = {int(name.removesuffix(".parquet")) for name in list_files(folder) if name.endswith(".parquet")}
    left = [block for number, block in enumerate(blocks) if number not in done]
    count = len(blocks) - len(left)
    for _ in map_blocks(context, left, _plan_block, arguments) if left else ():
        count += 1
        context.report(step=count, of=len(blocks), note="documents cut into chunks")
    asked, chunks = [PLAN.empty_table()], 0
    for number in range(len(blocks)):
        found = read_table(plan_file(folder, number))
        chunks += found.num_rows
        asked.append(found.filter(field("asked")))
    return pa.concat_tables(asked).sort_by(_ORDER), chunks


def shards(asked: pa.Table, size: int) -> list[Shard]:
    """The asked chunks in groups of `size`."""
    return [Shard(number, asked.slice(begin, size)) for number, begin in enumerate(range(0, len(asked), size))]


def plan_folder(context: StageContext) -> str:
    return join(absolute(context.state_dir), "plan")


def plan_file(folder: str, number: int) -> str:
    return join(folder, f"{number:06d}.parquet")


def draw(seed: int, *what: object) -> float:
    """Uniform in [0, 1)."""
    told = "/".join(map(str, (seed, *what)))
    return int.from_bytes(hashlib.sha256(told.encode()).digest()[:6], "big") / (1 << 48)


def choose_documents(sha256: Sequence[str], is_held_out: Sequence[bool], most: int, seed: int) -> list[int]:
    """Which of the documents are chosen: those with the smallest draws, of each split its part and at least one. Pure.

    At most `most`; with room for one only, it is a document to train on.
    """
    ranked = sorted(range(len(sha256)), key=lambda at: draw(seed, "document", sha256[at]))
    held = [at for at in ranked if is_held_out[at]]
    train = [at for at in ranked if not is_held_out[at]]
    part = min(len(held), max(1, round(most * len(held) / max(1, len(ranked))))) if most > 1 or not train else 0
    part = max(part, min(len(held), most - len(train)))
    return sorted([*held[: min(part, most)], *train[: most - part]])


def ask_about(count: int, draws: Sequence[float], choice: Choice) -> list[bool]:
    """Which of a document's chunks are asked about, by a draw for each. Pure."""
    taken = sorted((at for at in range(count) if draws[at] < choice.share), key=lambda at: draws[at])
    chosen = set(taken[: choice.per_document])
    return [at in chosen for at in range(count)]


_NAMES = pa.list_(pa.string())


def _chosen(index: str, choice: Choice, seed: int) -> dict[int, list[str]] | None:
    """The sha256 of the chosen documents by file; None: all."""
    if choice.documents is None:
        return None
    rows = read_table(index, ["shard", "sha256", "split"])
    whole = rows["sha256"].combine_chunks().dictionary_encode()
    _, first = np.unique(whole.indices.to_numpy(), return_index=True)
    rows = rows.take(first)
    names, files = rows["sha256"].to_pylist(), rows["shard"].to_pylist()
    chosen: dict[int, list[str]] = {}
    for at in choose_documents(
        names, [split == "held_out" for split in rows["split"].to_pylist()], choice.documents, seed
    ):
        chosen.setdefault(files[at], []).append(names[at])
    return chosen


def _plan_block(
    block: pa.Table, folder: str, index: str, tokenizer: str, decided: DecisionTables, choice: Choice, seed: int
) -> pa.Table:
    """Write the chunks of the chosen documents of a file. Runs in a Ray task; returns its number."""
    [task] = block.to_pylist()
    splits = _splits(index, task["number"])
    if task["chosen"] is not None:
        splits = {name: splits[name] for name in task["chosen"]}
    encoder, decisions = load_tokenizer(tokenizer), decided.on(task["file"])
    rows: list[dict[str, Any]] = []
    for batch in read_documents(task["place"]) if splits else ():
        for document in batch:
            split = splits.get(document.sha256)
            if split is None:
                continue
            for piece, (name, text) in enumerate(pieces(decisions, document)):
                spans = cut(text, encoder, choice.chunk_tokens)
                draws = [draw(seed, "chunk", document.sha256, piece, number) for number in range(len(spans))]
                asked = ask_about(len(spans), draws, choice)
                place = {"file": task["number"], "row": document.row, "sha256": document.sha256, "document": name}
                rows += [
                    place | vars(span) | {"number": number, "split": split, "asked": asked[number]}
                    for number, span in enumerate(spans)
                ]
    commit(plan_file(folder, task["number"]), pa.Table.from_pylist(rows, PLAN))
    return block.select(["number"])


def pieces(decisions: Decisions, document: Any) -> Iterator[tuple[str, str]]:
    """(name, text) of what remains of a document."""
    return iter(decisions.pieces(document.sha256, document.source, document.text))


def _splits(index: str, file: int) -> dict[str, str]:
    """Split by sha256 of the documents that training reads of a file: shard N of the tokens is file N."""
    with open_to_read(index) as opened:
        rows = pq.read_table(opened, columns=["sha256", "split"], filters=[("shard", "==", file)])
    return dict(zip(rows["sha256"].to_pylist(), rows["split"].to_pylist(), strict=True))
