"""A finished stage of a run as a folder that `transformers` loads: weights, tokenizer, chat template, model card.

    python flows/export.py run=tiny stage=text-chat-2k to=exported/text-chat-2k
    python flows/export.py root=gs://bucket/runs run=lwm_7b stage=text-1m to=gs://bucket/models/text-1m dtype=bfloat16

A weight at a time passes through this process; no accelerator is needed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

# Run as a file, Python looks for imports beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from infra.config import dotlist
from infra.errors import UserError
from ringworld import errors

HELP = """\
usage: python flows/export.py stage=STAGE to=FOLDER [KEY=VALUE ...]

  root=runs        where runs lie: a folder, or gs://bucket/folder
  run=tiny         the run's name
  stage=STAGE      the training stage, as in text-chat-2k
  to=FOLDER        a new folder, or gs://
  dtype=float32    of the weights: float32 (an import gives back every bit) or bfloat16
  shard_gb=5       the most that a file of weights holds, in GB

Exit code: 0, or 2 where it cannot be exported as given.
"""


@dataclass(frozen=True)
class Arguments:
    root: str = "runs"
    run: str = "tiny"
    stage: str = ""
    to: str = ""
    dtype: str = "float32"
    shard_gb: float = 5.0


def main(words: Sequence[str]) -> int:
    """Export, and say what was written; see HELP for the exit codes."""
    if {"-h", "--help", "help"} & set(words):
        print(HELP, end="")
        return 0
    try:
        chosen = parse(words)
        # Weights are copied on the host; without this JAX would take a chip, and on some machines wait for it.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        from ringworld.huggingface.export import export

        place = "/".join([chosen.root.rstrip("/"), chosen.run, chosen.stage])
        made = export(
            place, chosen.to, chosen.dtype, round(chosen.shard_gb * 1e9), lambda text: print(text, flush=True)
        )
    except (UserError, errors.UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{made.folder}: {made.family}, {made.bytes / 1e9:.2f} GB in {', '.join(made.files)}")
    for note in made.notes:
        print(f"note: {note}")
    return 0


def parse(words: Sequence[str]) -> Arguments:
    """UserError names the key, the value and what is allowed."""
    kinds = {found.name: str(found.type) for found in fields(Arguments)}
    typed = dotlist(words)
    texts = {word.partition("=")[0]: word.partition("=")[2] for word in words}
    for key, value in typed.items():
        if key not in kinds:
            raise UserError(f"{key}: unknown key; allowed: {', '.join(kinds)}")
        if kinds[key] == "float" and (isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0):
            raise UserError(f"{key}={texts[key]}: a number above 0")
    for key in ("stage", "to"):
        if not texts.get(key):
            raise UserError(f"{key}: missing; give {key}= as in stage=text-8k to=exported/text-8k")
    # Names stay texts even where they look like numbers: run=2026 is a name.
    chosen: dict[str, Any] = {key: value if kinds[key] == "float" else texts[key] for key, value in typed.items()}
    return Arguments(**chosen)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
