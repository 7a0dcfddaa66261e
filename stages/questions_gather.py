"""The shards of synthesis brought together: near duplicates dropped over all, pairs written, figures counted."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow.compute import field

from ringworld.data.files import join, write_table
from ringworld.errors import UserError
from ringworld.synthesis.verify import NEAR_DUPLICATE, Rules, near_duplicates
from stages.questions_state import ROWS, Done, read_done
from stages.shards import read_shard

_SHOWN = 10
_REPLY_SHOWN = 200  # characters
_FILE_SHARDS = 64
_EXAMPLE = ("document", "number", "start", "end", "question", "answer", "excerpt")


def gather(shards: str, names: Sequence[str], rules: Rules, folder: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Write `pairs/` below `folder`, rows of `ROWS` in the order of the shards; its files, and the figures.

    UserError, showing rejected replies, when no pair is kept.
    """
    duplicates = _duplicates(shards, names, rules)
    counted = _Counted()
    files: list[str] = []
    for begin in range(0, len(names), _FILE_SHARDS):
        tables = []
        for name in names[begin : begin + _FILE_SHARDS]:
            tables.append(_without(read_shard(shards, name), duplicates.get(name, {})))
            counted.add(tables[-1], read_done(shards, name))
        files.append(f"pairs/{len(files):06d}.parquet")
        write_table(join(folder, files[-1]), pa.concat_tables(tables))
    counted.require_some()
    return tuple(files), counted.values()


def _duplicates(shards: str, names: Sequence[str], rules: Rules) -> dict[str, dict[int, str]]:
    """By shard and row: which kept question is a near duplicate, and of which."""
    columns = ["sha256", "document", "number", "question"]
    found: list[pa.Table] = []
    for name in names:
        rows = read_shard(shards, name)
        rows = rows.append_column("row", pa.array(np.arange(len(rows)))).filter(field("kept"))
        found.append(rows.select([*columns, "row"]).append_column("shard", pa.array([name] * len(rows), pa.string())))
    if not found:
        return {}
    # By content first: where a document lies must not decide which question stays.
    kept = pa.concat_tables(found).sort_by([(name, "ascending") for name in columns[:3]])
    of = near_duplicates(kept["question"].to_pylist(), rules)
    dropped: dict[str, dict[int, str]] = {}
    for at in np.flatnonzero(of >= 0).tolist():
        row, earlier = kept.slice(at, 1).to_pylist()[0], kept.slice(int(of[at]), 1).to_pylist()[0]
        told = f"of chunk {earlier['number']} of {earlier['document']}: {earlier['question']}"
        dropped.setdefault(row["shard"], {})[row["row"]] = told
    return dropped


def _without(rows: pa.Table, dropped: Mapping[int, str]) -> pa.Table:
    """The rows with these no longer kept."""
    if not dropped:
        return rows
    told = rows.to_pylist()
    for at, detail in dropped.items():
        told[at] |= {"kept": False, "reason": NEAR_DUPLICATE, "detail": detail}
    return pa.Table.from_pylist(told, ROWS)


class _Counted:
    """What is said of all rows."""

    def __init__(self) -> None:
        self._sums: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._models: Counter[str] = Counter()
        self._splits: dict[str, Counter[str]] = {"train": Counter(), "held_out": Counter()}
        self._documents: set[str] = set()
        self._kept: list[tuple[str, dict[str, Any]]] = []
        self._refused: dict[str, list[dict[str, Any]]] = {}

    def add(self, rows: pa.Table, done: Done) -> None:
        self._sums.update(requests=done.requests, unasked=done.unasked)
        self._failures.update(done.failures)
        for row in rows.to_pylist():
            self._documents.add(row["document"])
            self._models[row["model"]] += 1
            self._sums.update(prompt_tokens=row["prompt_tokens"], reply_tokens=row["reply_tokens"])
            self._splits[row["split"]].update(asked=1, kept=int(row["kept"]))
            if row["kept"]:
                self._choose(row)
                continue
            self._rejected[row["reason"]] += 1
            shown = self._refused.setdefault(row["reason"], [])
            self._show(shown, row, ("document", "number", "reason", "detail", "reply"))

    def require_some(self) -> None:
        """UserError when nothing is kept."""
        if self._kept:
            return
        asked = sum(split["asked"] for split in self._splits.values())
        lines = [
            f"  {row['reason']}{': ' + row['detail'] if row['detail'] else ''}\n    replied {row['reply']!r}"
            for row in self._some_refused()
        ]
        counted = ", ".join(f"{count} {reason}" for reason, count in self._rejected.most_common())
        raise UserError(
            "\n".join(
                [
                    f"none of {asked} replies is a question and an answer that its chunk supports ({counted}); "
                    "use a model that follows the prompt, or relax questions.rules. Some of them:",
                    *lines,
                ]
            )
        )

    def values(self) -> dict[str, Any]:
        splits = {split: {name: counts[name] for name in ("asked", "kept")} for split, counts in self._splits.items()}
        return {
            "models": dict(sorted(self._models.items())),
            "documents": len(self._documents),
            "asked": sum(split["asked"] for split in splits.values()),
            "kept": sum(split["kept"] for split in splits.values()),
            "rejected": dict(sorted(self._rejected.items())),
            "splits": splits,
            "requests": self._sums["requests"],
            "failed_requests": dict(sorted(self._failures.items())),
            "prompt_tokens": self._sums["prompt_tokens"],
            "reply_tokens": self._sums["reply_tokens"],
            "examples": [row for _, row in self._kept],
            "rejected_examples": self._some_refused(),
        }

    def _some_refused(self) -> list[dict[str, Any]]:
        """Of every reason in turn: one kind of failure must not hide the others."""
        turns = itertools.zip_longest(*(rows for _, rows in sorted(self._refused.items())))
        return [row for turn in turns for row in turn if row is not None][:_SHOWN]

    def _choose(self, row: Mapping[str, Any]) -> None:
        """Of the kept, those of the smallest hashes are shown: chosen by nobody, from anywhere in the corpus."""
        key = row["prompt_sha256"]
        if len(self._kept) < _SHOWN or key < self._kept[-1][0]:
            shown = {name: row[name] for name in _EXAMPLE} | {"reply": row["reply"][:_REPLY_SHOWN]}
            self._kept = sorted([*self._kept, (key, shown)], key=itemgetter(0))[:_SHOWN]

    def _show(self, shown: list[dict[str, Any]], row: Mapping[str, Any], names: Sequence[str]) -> None:
        if len(shown) < _SHOWN:
            shown.append(
                {name: row[name][:_REPLY_SHOWN] if isinstance(row[name], str) else row[name] for name in names}
            )
