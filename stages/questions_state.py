"""What synthesis keeps of a shard (`stages.shards`): a row of `ROWS` for each chunk that was asked about, kept or not,
and what it took to make (`Done`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from stages.shards import read_told

ROWS = pa.schema(
    [
        ("document", pa.string()),
        ("sha256", pa.string()),  # of the whole source document
        ("number", pa.int32()),  # of the chunk in its document
        ("start", pa.int64()),  # characters of the document's text
        ("end", pa.int64()),
        ("tokens", pa.int32()),
        ("split", pa.string()),
        ("question", pa.string()),  # null where the reply is no pair
        ("answer", pa.string()),
        ("answer_start", pa.int64()),  # characters of the chunk's text, where the answer stands there
        ("answer_end", pa.int64()),
        ("excerpt", pa.string()),  # of the chunk's text, around the answer; null where it does not stand there
        ("kept", pa.bool_()),
        ("reason", pa.string()),  # null for a kept pair
        ("detail", pa.string()),
        ("provider", pa.string()),
        ("model", pa.string()),
        ("prompt_sha256", pa.string()),
        ("reply", pa.string()),  # raw; for a failed request what is known of it
        ("finish", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("reply_tokens", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Done:
    """A shard that is through. unasked: chunks for which the budget was spent. failures: failed tries by reason.

    requests: sent, tries included. seconds: from beginning to end.
    """

    asked: int
    kept: int
    unasked: int
    requests: int
    seconds: float
    failures: Mapping[str, int] = field(default_factory=dict)


def read_done(folder: str, name: str) -> Done:
    return Done(**read_told(folder, name))
