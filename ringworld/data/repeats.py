"""Passages that stand more than once, inside a document or across documents: found by fingerprints, never cut.

A fingerprint is the hash of a run of words. Winnowing (Schleimer, Wilkerson and Aiken, SIGMOD 2003) keeps the least of
every window of neighbouring runs, so that of any passage of `words + window - 1` words or more that stands twice, both
copies keep the same fingerprint; about 2 in `window + 1` are kept. The share of a document's fingerprints that stand
elsewhere too estimates the share of its text that does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ringworld.data.words import Words, runs

_PLACES = 5  # named besides the first
_GAP = 64  # characters between two fingerprints of one passage: they may be neighbours without a common word

FINGERPRINTS = pa.schema([("hash", pa.uint64()), ("document", pa.int64()), ("start", pa.int64()), ("end", pa.int64())])

NO_FINGERPRINTS = (np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64))
COUNTS = pa.schema([("document", pa.int64()), ("repeated", pa.int64())])


def winnow(words: Words, length: int, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """hash uint64, start and end int64 (in characters) of the fingerprints of a text's words, in order.

    Of equal hashes in a window the last counts. A text of fewer than `window` runs keeps the least of them.
    """
    hashes = runs(words.hashes, length)
    if not len(hashes):
        return NO_FINGERPRINTS
    window = min(window, len(hashes))
    # Low bits that count backwards make all of them different, and the last the least of equals.
    bits = np.uint64(max(1, (len(hashes) - 1).bit_length()))
    backwards = np.arange(len(hashes), dtype=np.uint64)[::-1]
    least = _sliding_least((hashes >> bits << bits) | backwards, window)
    chosen = np.unique(len(hashes) - 1 - (least & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64))
    return hashes[chosen], words.starts[chosen], words.ends[chosen + length - 1]


def _sliding_least(values: np.ndarray, window: int) -> np.ndarray:
    """The least of each run of `window` values, by doubling."""
    size = 1
    while 2 * size <= window:
        values = np.minimum(values[:-size], values[size:])
        size *= 2
    rest = window - size
    return np.minimum(values[: len(values) - rest], values[rest:])


@dataclass(frozen=True, eq=False)
class Repeated:
    """What one partition of the fingerprints tells. Each fingerprint lies in one partition, so these add up.

    documents: document int64, repeated int64: how many of its fingerprints stand more than once, anywhere.
    passages: hash, times, documents, document, start, end (the first place), others: documents; the most frequent.
    """

    documents: pa.Table
    passages: pa.Table


_PASSAGES = pa.schema(
    [
        ("times", pa.int64()),
        ("documents", pa.int64()),
        ("document", pa.int64()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("others", pa.list_(pa.int64())),
    ]
)


def repeated(rows: pa.Table, dropped: np.ndarray, most: int) -> Repeated:
    """Count a partition's fingerprints (`FINGERPRINTS`) in the documents that are not dropped.

    At most `most` passages: those that stand most often, then those in most documents, then by first place.
    """
    hashes, document, start, end = (rows[name].to_numpy() for name in FINGERPRINTS.names)
    order = np.lexsort((start, document, hashes))
    order = order[~np.isin(document[order], dropped)]
    hashes, document, start, end = hashes[order], document[order], start[order], end[order]
    begins = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)])
    times = np.diff(begins, append=len(hashes))
    again = np.repeat(times, times) > 1
    owner, count = np.unique(document[again], return_counts=True)
    # Sorted by document in each group: a new one begins where it changes, or where the group does.
    changes = np.append(True, document[1:] != document[:-1])[: len(document)]
    changes[begins] = True
    different = np.add.reduceat(changes, begins) if len(begins) else begins
    groups = np.flatnonzero(times > 1)
    first = begins[groups]
    chosen = np.lexsort((start[first], document[first], -different[groups], -times[groups]))[:most]
    listed = []
    for group in groups[chosen].tolist():
        at = begins[group]
        held = np.unique(document[at : at + times[group]])
        listed.append(
            {
                "times": times[group],
                "documents": different[group],
                "document": document[at],
                "start": start[at],
                "end": end[at],
                "others": held[held != document[at]][:_PLACES].tolist(),
            }
        )
    return Repeated(pa.table([pa.array(owner), pa.array(count)], COUNTS), pa.Table.from_pylist(listed, _PASSAGES))


def merged(passages: Sequence[pa.Table], most: int) -> list[dict]:
    """Fingerprints of several partitions as passages: those that stand equally often and adjoin become one.

    The `most` that cover the most text, times their length; each as a row of `_PASSAGES`.
    """
    table = pa.concat_tables([*passages, _PASSAGES.empty_table()])
    rows = table.sort_by([("document", "ascending"), ("times", "ascending"), ("start", "ascending")]).to_pylist()
    joined: list[dict] = []
    for row in rows:
        last = joined[-1] if joined else None
        if last and all(last[key] == row[key] for key in ("document", "times")) and row["start"] - last["end"] <= _GAP:
            last["end"] = max(last["end"], row["end"])
        else:
            joined.append(row)
    joined.sort(key=lambda row: (-row["times"] * (row["end"] - row["start"]), row["document"], row["start"]))
    return joined[:most]
