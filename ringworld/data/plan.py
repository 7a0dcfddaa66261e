"""The packing plan: a table of slices of documents, row by row. What is in it, how it is kept, how its loss is weighed.

- A slice is a run of a document's tokens in a row. One or more neighbouring slices are an example: its tokens see each
  other, at positions 0, 1, ... through all of its slices, and nothing else.
- A slice that reaches its document's end-of-text as an input has no target there: that slot is context alone.
- Rows lie in runs, each a `Corpus` of its own length, to be drawn in given proportions: `ringworld.data.order`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ringworld.data.files import read_table, write_table
from ringworld.data.order import Corpus, Schedule
from ringworld.errors import UserError

WeighBy = Literal["example", "token"]
MADE = ("natural", "assembled", "untied")  # how an example came to be; a plan keeps the index
NATURAL, ASSEMBLED, UNTIED = range(3)

_SCHEMA = 4
_METADATA = b"ringworld.plan"
COLUMNS: Mapping[str, Any] = {
    "row": np.int32,
    "slot": np.int32,
    "segment": np.int32,
    "position": np.int32,
    "document": np.int64,
    "start": np.int64,
    "length": np.int32,
    "answers": np.int32,
    "seen": np.int32,
    "weight": np.float32,
    "made": np.int8,
}


@dataclass(frozen=True, eq=False)
class PackingPlan:
    """Slices as columns of equal length [slices], sorted by (row, slot); every row from 0 to the last has a slice.

    row int32; slot int32: where in the row the slice begins; segment int32: its example, 1, 2, ... in each row;
    position int32: of its first token within the example; document int64, start int64, length int32: what it holds, in
    tokens; answers int32: how many of its targets the loss counts, at least 1; seen int32: how many of these are vision
    ids; weight float32: the factor of its loss (task); made int8: how its example came to be, an index of `MADE`.
    weigh_by, vision_weight: see `loss_weights`. tokenizer_hash: of the store that the documents are in. marked: whether
    that store marks answers. corpora: whose the rows are, in order. schedule: in which order steps draw them.
    """

    weigh_by: WeighBy
    vision_weight: float | None
    tokenizer_hash: str
    marked: bool
    corpora: tuple[Corpus, ...]
    schedule: Schedule
    row: np.ndarray
    slot: np.ndarray
    segment: np.ndarray
    position: np.ndarray
    document: np.ndarray
    start: np.ndarray
    length: np.ndarray
    answers: np.ndarray
    seen: np.ndarray
    weight: np.ndarray
    made: np.ndarray

    @property
    def sequence(self) -> int:
        """Slots of the longest rows."""
        return max((corpus.sequence for corpus in self.corpora), default=0)

    @property
    def num_rows(self) -> int:
        return sum(corpus.rows for corpus in self.corpora)

    @property
    def fill(self) -> float:
        """The share of slots that hold a token."""
        return float(self.length.sum(dtype=np.int64)) / max(1, int(self.row_sequence.sum(dtype=np.int64)))

    @cached_property
    def row_sequence(self) -> np.ndarray:
        """int64 [rows]: the slots of each row."""
        return np.repeat(
            np.array([corpus.sequence for corpus in self.corpora], np.int64), [corpus.rows for corpus in self.corpora]
        )

    @cached_property
    def row_start(self) -> np.ndarray:
        """int64 [rows + 1]: the slices of row r are row_start[r] .. row_start[r + 1] - 1."""
        return np.searchsorted(self.row, np.arange(self.num_rows + 1, dtype=np.int32))

    @cached_property
    def work(self) -> np.ndarray:
        """int64 [rows]: the (query, key) pairs that a row's mask lets through, n(n + 1) / 2 of an example of n tokens.

        Its mask is over the row as it is planned; padding has none.
        """
        # A slice of n tokens that begins at position p adds n of its own p times, and n(n + 1) / 2.
        length = self.length.astype(np.int64)
        pairs = length * (2 * self.position.astype(np.int64) + length + 1) // 2
        return np.add.reduceat(pairs, self.row_start[:-1]) if len(pairs) else np.zeros(0, np.int64)

    def scheduled(self, schedule: Schedule) -> PackingPlan:
        """The same rows, drawn in another order."""
        return replace(self, schedule=schedule)

    def save(self, url: str) -> None:
        about = {
            "schema": _SCHEMA,
            "weigh_by": self.weigh_by,
            "vision_weight": self.vision_weight,
            "tokenizer_hash": self.tokenizer_hash,
            "marked": self.marked,
            "corpora": [asdict(corpus) for corpus in self.corpora],
            "schedule": asdict(self.schedule),
        }
        table = pa.table({name: getattr(self, name) for name in COLUMNS})
        write_table(url, table.replace_schema_metadata({_METADATA: json.dumps(about, sort_keys=True)}))

    @classmethod
    def load(cls, url: str) -> PackingPlan:
        """Raises UserError for a Parquet file that is no plan of this version."""
        try:
            table = read_table(url)
            about = json.loads((table.schema.metadata or {}).get(_METADATA, b"{}"))
        except (FileNotFoundError, pa.ArrowInvalid) as wrong:
            raise UserError(f"{url} is no packing plan ({wrong}); make its pack stage first") from None
        if about.get("schema") != _SCHEMA:
            raise UserError(f"{url} is no packing plan of schema {_SCHEMA}; make its pack stage again")
        columns = {name: table[name].to_numpy().astype(kind, copy=False) for name, kind in COLUMNS.items()}
        corpora = tuple(Corpus(**corpus) for corpus in about["corpora"])
        schedule = Schedule(**about["schedule"])
        kept = {name: about[name] for name in ("weigh_by", "vision_weight", "tokenizer_hash", "marked")}
        return cls(**kept, corpora=corpora, schedule=schedule, **columns)


def mix(plans: Mapping[str, PackingPlan], shares: Mapping[str, float]) -> PackingPlan:
    """Plans of several corpora of one store as one: its rows are theirs, to be drawn in the proportions of `shares`.

    Every name has a share above 0, of the slots that are drawn. Rows may differ in length from plan to plan, not within
    one. ValueError for plans that differ in weighing or tokens.
    """
    first, *others = plans.values()

    def kind(plan: PackingPlan) -> tuple[Any, ...]:
        return plan.weigh_by, plan.vision_weight, plan.tokenizer_hash, plan.marked

    if any(kind(plan) != kind(first) for plan in others):
        raise ValueError(f"plans of {', '.join(plans)} are not of one kind")
    before = np.cumsum([0, *(plan.num_rows for plan in plans.values())])
    if not others:
        return replace(first, corpora=tuple(Corpus(name, first.num_rows, 1.0, first.sequence) for name in plans))
    columns = {name: np.concatenate([getattr(plan, name) for plan in plans.values()]) for name in COLUMNS}
    rows = [plan.row + np.int32(n) for plan, n in zip(plans.values(), before, strict=False)]
    columns["row"] = np.concatenate(rows)
    corpora = tuple(Corpus(name, plan.num_rows, shares[name], plan.sequence) for name, plan in plans.items())
    return replace(first, corpora=corpora, **columns)


def loss_weights(
    answers: np.ndarray,
    seen: np.ndarray,
    example: np.ndarray,
    weights: np.ndarray,
    weigh_by: WeighBy,
    vision_weight: float | None,
) -> np.ndarray:
    """float64 [slices, 2]: the loss weight of each counted target of a slice that is text, and of each that is a vision
    id, for the slices of one whole batch.

    answers: how many targets of each slice count, at least 1; seen: how many of these are vision ids. example: int, the
    example that each is a part of, 0, 1, ... weigh_by `example`: the batch's loss is the mean over examples of each
    example's mean loss over its counted targets, as if each had a row of its own (masked packing, LWM arXiv
    2402.08268). `token`: it is the mean over the counted targets. Both times the slice's own weight.
    vision_weight: the loss is a sum of two such means, over vision ids with this weight and over text with the rest of
    1; LWM's is 0.5. None: every target alike, whatever it is.
    """
    kinds = (answers - seen, seen) if vision_weight is not None else (answers, answers)
    shares = (1.0 - vision_weight, vision_weight) if vision_weight is not None else (1.0, 1.0)
    found = [
        share * weights.astype(np.float64) / np.maximum(1, _weighed_over(count, example, weigh_by))
        for share, count in zip(shares, kinds, strict=True)
    ]
    return np.stack(found, axis=1)


def _weighed_over(count: np.ndarray, example: np.ndarray, weigh_by: WeighBy) -> np.ndarray:
    """What a target of each slice shares its weight with, as a number of targets; 0 where there is none."""
    if weigh_by == "token":
        return np.broadcast_to(count.sum(dtype=np.int64), count.shape)
    counted = np.bincount(example, weights=count)
    return np.count_nonzero(counted) * counted[example]
