"""Long examples from documents and the questions asked about them; see `ringworld.synthesis.compose`.

- One task for each file of documents cuts its documents again, as the questions stage did, and composes theirs. That
  the chunks are the same is checked, span by span: a question must stand with the chunk that it was asked about.
- A document's split is that of its questions, and all of its examples are on that side.
- Output: `examples/NNNNNN.jsonl`, a file for each file of documents that has examples; each line holds `messages`,
  `split` and `origin` (`Example.record`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.stage import Result, StageContext
from ringworld.data.conversations import Refused, Turn
from ringworld.data.files import absolute, join, list_files, open_to_read, write_bytes
from ringworld.data.packing import length_histogram
from ringworld.data.templates import Template, template_of
from ringworld.data.tokenizers import load_tokenizer
from ringworld.errors import UserError
from ringworld.synthesis.chunks import chunks_of
from ringworld.synthesis.compose import Asked, Composition, Example, examples
from ringworld.synthesis.records import Chunk, Pair
from stages.blocks import map_blocks
from stages.corpus import DecisionTables, file_blocks, read_documents

_BINS = 10
_SHOWN = 3
_SHOWN_CHARACTERS = 240
_COLUMNS = (
    *("document", "sha256", "number", "start", "end", "split"),
    *("question", "answer", "answer_start", "kept", "prompt_sha256"),
)

# A row for each document that was asked about.
_LEDGER = pa.schema(
    [
        ("file", pa.int32()),
        ("split", pa.string()),
        ("kept", pa.int64()),  # pairs
        ("tokens", pa.list_(pa.int64())),  # of each example
        ("depths", pa.list_(pa.float64())),  # of each pair in them
        ("distractors", pa.int64()),
        ("unused", pa.string()),  # JSON: pairs by the reason why they are in no example
        ("shown", pa.string()),  # JSON: the first example, shortened
        ("wrong", pa.string()),  # what a person must mend; null where nothing
    ]
)


@dataclass(frozen=True)
class ComposeRecipe(Composition):
    """See `Composition`: the stage has nothing of its own."""

    kind: ClassVar[str] = "compose-qa"


def run(context: StageContext, recipe: ComposeRecipe) -> Result:
    """Input ports `documents`, `questions` and `tokenizer`, and `deduplicate` and `decontaminate` where there are such.

    Raises UserError when no example can be made, and where the documents are not those that were asked about.
    """
    folder = join(absolute(context.attempt_dir), "examples")
    questions = context.inputs["questions"]
    places = tuple(questions.path(name) for name in sorted(questions.files) if name.startswith("pairs/"))
    arguments = {
        "folder": folder,
        "how": recipe,
        "tokenizer": context.inputs["tokenizer"].path("tokenizer"),
        "decided": DecisionTables.of(context.inputs),
        "pairs": places,
        "chunk_tokens": questions.values["chunk_tokens"],
    }
    blocks = file_blocks(context.inputs["documents"])
    tables = [_LEDGER.empty_table()]
    for rows in map_blocks(context, blocks, _compose_block, arguments):
        for wrong in rows["wrong"].drop_null().to_pylist():
            raise UserError(wrong)
        tables.append(rows)
        context.report(step=len(tables) - 1, of=len(blocks))
    ledger = pa.concat_tables(tables).sort_by("file").to_pylist()
    values = _figures(ledger) | {"written_by_model": questions.values["written_by_model"]}
    _check(values, places, recipe)
    return Result(tuple(f"examples/{name}" for name in list_files(folder)), values)


def _compose_block(
    block: pa.Table,
    folder: str,
    how: Composition,
    tokenizer: str,
    decided: DecisionTables,
    pairs: Sequence[str],
    chunk_tokens: int,
) -> pa.Table:
    """Compose the examples of a file of documents; returns its ledger. Runs in a Ray task."""
    [task] = block.to_pylist()
    asked = _asked_in(task["place"], pairs)
    encoder, decisions = load_tokenizer(tokenizer), decided.on(task["file"])
    template = template_of(encoder)
    ledger: list[dict[str, Any]] = []
    lines: list[str] = []
    for batch in read_documents(task["place"]) if asked else ():
        for document in batch:
            if document.sha256 in decisions.dropped:
                continue
            for name, text in decisions.pieces(document.sha256, document.source, document.text):
                rows = asked.get((document.sha256, name))
                if rows is None:
                    continue
                try:
                    chunks = chunks_of(name, document.sha256, rows[0]["split"], text, encoder, chunk_tokens)
                    kept = _kept(chunks, rows)
                    made = examples(chunks, kept, how, lambda turns: _tokens(template, turns))
                except UserError as wrong:  # raised by who drives: here it would become an error of Ray
                    return pa.Table.from_pylist([{"file": task["number"], "wrong": str(wrong)}], _LEDGER)
                lines += [json.dumps(example.record(), ensure_ascii=False) for example in made.examples]
                ledger.append(_entry(made.examples, len(kept), made.unused) | {"split": rows[0]["split"]})
    if lines:
        write_bytes(join(folder, f"{task['number']:06d}.jsonl"), "".join(f"{line}\n" for line in lines).encode())
    return pa.Table.from_pylist([entry | {"file": task["number"]} for entry in ledger], _LEDGER)


def _asked_in(place: str, pairs: Sequence[str]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The rows of the questions about documents of one file, by sha256 and name of the document."""
    with open_to_read(place) as opened:
        here = pq.read_table(opened, columns=["sha256"])["sha256"].to_pylist()
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for file in pairs:
        with open_to_read(file) as opened:
            rows = pq.read_table(opened, columns=list(_COLUMNS), filters=[("sha256", "in", here)])
        for row in rows.to_pylist():
            found.setdefault((row["sha256"], row["document"]), []).append(row)
    return found


def _kept(chunks: Sequence[Chunk], rows: Iterable[dict[str, Any]]) -> list[Asked]:
    """The kept pairs of a document. UserError where a row's chunk is none of these chunks."""
    kept = []
    for row in rows:
        number, span = row["number"], (row["start"], row["end"])
        cut = chunks[number] if number < len(chunks) else None
        if cut is None or (cut.start, cut.end) != span:
            there = "is not there" if cut is None else f"is {cut.start} to {cut.end}"
            raise UserError(
                f"{row['document']}: by the questions chunk {number} is characters {span[0]} to {span[1]}, here it "
                f"{there}: the document was cut by another tokenizer, chunk_tokens or version; make the questions again"
            )
        if row["kept"]:
            pair = Pair(row["question"], row["answer"])
            kept.append(Asked(number, pair, row["prompt_sha256"], row["answer_start"]))
    return kept


def _tokens(template: Template, turns: Sequence[Turn]) -> int:
    [encoded] = template.encode([turns])
    if isinstance(encoded, Refused):
        raise UserError(f"{encoded.detail} ({encoded.reason}); give another one in tokenizer.template, such as plain")
    return len(encoded.ids)


def _entry(made: Sequence[Example], kept: int, unused: Any) -> dict[str, Any]:
    return {
        "kept": kept,
        "tokens": [example.tokens for example in made],
        "depths": [pair.depth for example in made for pair in example.pairs],
        "distractors": sum(len(example.distractors) for example in made),
        "unused": json.dumps(unused),
        "shown": json.dumps(_shortened(made[0])) if made else None,
    }


def _shortened(example: Example) -> dict[str, Any]:
    """An example for a person: of its text the beginning and the end."""
    turns = []
    for turn in example.turns:
        text, half = turn.text, _SHOWN_CHARACTERS // 2
        short = text if len(text) <= 3 * half else f"{text[:half].rstrip()} ... {text[-2 * half :].lstrip()}"
        turns.append({"role": turn.role, "text": short})
    return {
        "document": example.document,
        "split": example.split,
        "tokens": example.tokens,
        "chunks": len(example.chunks),
        "distractors": len(example.distractors),
        "pairs": [asdict(pair) for pair in example.pairs],
        "turns": turns,
    }


def _figures(ledger: Sequence[dict[str, Any]]) -> dict[str, Any]:
    tokens = np.array([size for row in ledger for size in row["tokens"]], np.int64)
    depths = np.array([depth for row in ledger for depth in row["depths"]])
    unused: Counter[str] = Counter()
    for row in ledger:
        unused.update(json.loads(row["unused"]))
    return {
        **_total(ledger),
        "kept_pairs": sum(row["kept"] for row in ledger),
        "unused": dict(sorted(unused.items())),
        "train": _total([row for row in ledger if row["split"] == "train"]),
        "held_out": _total([row for row in ledger if row["split"] == "held_out"]),
        "depths": np.histogram(depths, _BINS, (0, 1))[0].tolist(),
        "distractors": sum(row["distractors"] for row in ledger),
        "lengths": length_histogram(tokens),
        "shown": [json.loads(row["shown"]) for row in ledger if row["shown"]][:_SHOWN],
    }


def _total(ledger: Sequence[dict[str, Any]]) -> dict[str, int]:
    return {
        "documents": sum(bool(row["tokens"]) for row in ledger),
        "examples": sum(len(row["tokens"]) for row in ledger),
        "pairs": sum(len(row["depths"]) for row in ledger),
        "tokens": sum(sum(row["tokens"]) for row in ledger),
    }


def _check(values: dict[str, Any], places: Sequence[str], recipe: ComposeRecipe) -> None:
    kept = 0
    for place in places:
        with open_to_read(place) as opened:
            kept += sum(pq.read_table(opened, columns=["kept"])["kept"].to_pylist())
    if kept != values["kept_pairs"]:
        raise UserError(
            f"{kept - values['kept_pairs']} of {kept} kept pairs are about documents that are not there: the questions "
            "were asked about other documents; make them again"
        )
    if values["examples"]:
        return
    why = ", ".join(f"{count} {reason}" for reason, count in values["unused"].items()) or "there are none"
    raise UserError(
        f"sequence={recipe.sequence}, least_pairs={recipe.least_pairs}: no example can be made of {kept} kept pairs "
        f"({why}); raise sequence, lower least_pairs, ask about more chunks, or about shorter ones"
    )
