"""Conversations made from the documents' own words, as a corpus for chat stages: no model writes any of them.

- Each file of documents is read by one Ray Data task, which writes its conversations as JSON lines and returns a row
  for each. What `deduplicate` and `decontaminate` decided holds here as for tokens: a dropped document is not talked
  about, and of a document with cuts each piece is one by itself.
- A conversation is held out where its document is: by the index of the token store, never by lot.
- Output: `examples/*.jsonl`, each line with `messages`, `split` and `origin`: document, sha256, kind, and the spans of
  characters that each question with its answer is made of.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from infra.stage import Result, StageContext
from ringworld.data.files import absolute, join, read_table, write_bytes
from ringworld.errors import UserError
from ringworld.synthesis.exchanges import Conversation, TalkRules
from ringworld.synthesis.talk import talks
from stages.blocks import map_blocks
from stages.corpus import DecisionTables, file_blocks, read_documents

_SAMPLES = 10
_SAMPLE_CHARACTERS = 600

_ROW_SCHEMA = pa.schema(
    [
        ("number", pa.int64()),  # of the file of documents
        ("name", pa.string()),  # of the file of examples
        ("document", pa.string()),
        ("kind", pa.string()),  # of the conversation
        ("split", pa.string()),
        ("exchanges", pa.int64()),
        ("characters", pa.int64()),
        ("sample", pa.string()),  # of the first of each document; else null
    ]
)


@dataclass(frozen=True)
class TalkRecipe:
    """rules: how many conversations a document makes, and how long they are."""

    kind: ClassVar[str] = "document-talk"
    rules: TalkRules = field(default_factory=TalkRules)


def run(context: StageContext, recipe: TalkRecipe) -> Result:
    """Input ports `documents` and `tokens`, and `deduplicate` and `decontaminate` where there are such stages.

    Raises UserError where the documents make no conversation to train on.
    """
    blocks = file_blocks(context.inputs["documents"])
    arguments = {
        "folder": join(absolute(context.attempt_dir), "examples"),
        "index": join(context.inputs["tokens"].path("tokens"), "index.parquet"),
        "decided": DecisionTables.of(context.inputs),
        "rules": recipe.rules,
    }
    tables: list[pa.Table] = []
    made = 0
    for done, rows in enumerate(map_blocks(context, blocks, _talk_of_file, arguments), start=1):
        if rows.num_rows:
            tables.append(rows)
        made += rows.num_rows
        context.report(step=done, of=len(blocks), note=f"{made} conversations")
    # Rows lie in their file in order, which sorting by the file keeps.
    tables.sort(key=lambda rows: rows["number"][0].as_py())
    rows = pa.concat_tables([_ROW_SCHEMA.empty_table(), *tables])
    if "train" not in rows["split"].to_pylist():
        raise UserError(
            f"the documents make {rows.num_rows or 'no'} conversations and none to train on: no docstring, dialogue or "
            f"question with its answer is in them; give files of conversations, as in sources.chat=chat/*.jsonl"
        )
    files = sorted({f"examples/{name}" for name in rows["name"].to_pylist()})
    return Result(tuple(files), _figures(rows))


def _talk_of_file(block: pa.Table, folder: str, index: str, decided: DecisionTables, rules: TalkRules) -> pa.Table:
    """Write the conversations of one file of documents; returns a row for each. Runs in a Ray task."""
    [task] = block.to_pylist()
    decisions, splits = decided.on(task["file"]), _splits(index)
    name = f"part-{task['number']:05d}.jsonl"
    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    for batch in read_documents(task["place"]):
        for document in batch:
            # Without a split: a document that was dropped, or too short to be tokenised.
            split = splits.get(document.sha256)
            if split is None or document.sha256 in decisions.dropped:
                continue
            for source, text in decisions.pieces(document.sha256, document.source, document.text):
                for number, conversation in enumerate(talks(text, source, rules)):
                    lines.append(json.dumps(_example(conversation, source, document.sha256, split)))
                    row = {"number": task["number"], "name": name, "document": source, "split": split}
                    rows.append(row | _row(conversation, first=number == 0))
    if lines:
        write_bytes(join(folder, name), "".join(f"{line}\n" for line in lines).encode())
    return pa.Table.from_pylist(rows, _ROW_SCHEMA)


def _splits(index: str) -> dict[str, str]:
    """Of each document by its sha256; pieces of one share it, and the split."""
    table = read_table(index, ["sha256", "split"])
    return dict(zip(table["sha256"].to_pylist(), table["split"].to_pylist(), strict=True))


def _example(conversation: Conversation, document: str, sha256: str, split: str) -> dict[str, Any]:
    return {
        "messages": [{"role": turn.role, "content": turn.text} for turn in conversation.turns],
        "split": split,
        "origin": {
            "document": document,
            "sha256": sha256,
            "kind": conversation.kind,
            "spans": [[exchange.start, exchange.end] for exchange in conversation.exchanges],
        },
    }


def _row(conversation: Conversation, first: bool) -> dict[str, Any]:
    said = "\n".join(f"{turn.role}: {turn.text}" for turn in conversation.turns)
    return {
        "kind": conversation.kind,
        "exchanges": len(conversation.exchanges),
        "characters": sum(len(turn.text) for turn in conversation.turns),
        "sample": said[:_SAMPLE_CHARACTERS] if first else None,
    }


def _figures(rows: pa.Table) -> dict[str, Any]:
    kinds = {kind: _total(rows.filter(pc.field("kind") == kind)) for kind in sorted(set(rows["kind"].to_pylist()))}
    splits = Counter(rows["split"].to_pylist())
    return {
        **_total(rows),
        "written_by_model": False,
        "kinds": kinds,
        "train": splits["train"],
        "held_out": splits["held_out"],
        "samples": _samples(rows),
    }


def _total(rows: pa.Table) -> Mapping[str, int]:
    return {
        "conversations": rows.num_rows,
        "exchanges": int(rows["exchanges"].to_numpy().sum()),
        "characters": int(rows["characters"].to_numpy().sum()),
        "documents": len(set(rows["document"].to_pylist())),
    }


def _samples(rows: pa.Table) -> list[dict[str, str]]:
    """The first conversations of documents that lie evenly in the corpus."""
    firsts = rows.filter(pc.field("sample").is_valid()).select(["document", "kind", "sample"])
    step = max(1, firsts.num_rows // _SAMPLES)
    chosen = firsts.take(list(range(0, firsts.num_rows, step))[:_SAMPLES])
    return chosen.rename_columns(["document", "kind", "text"]).to_pylist()
