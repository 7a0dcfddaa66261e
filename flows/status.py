"""How a run stands, read from its storage alone: while it runs, after it, from any machine that can read the root.

    python flows/status.py root=gs://bucket/runs run=lwm_7b
    python flows/status.py run=tiny failures=true
    python flows/status.py run=tiny watch=true
    python flows/status.py run=tiny json=status.json

Asks no driver and no cluster, and writes nothing but json=FILE.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

# Run as a file, Python looks for imports beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Not `flows.arguments`: what it knows of curricula costs seconds to import.
from infra.config import dotlist
from infra.errors import UserError
from infra.redact import redact_text
from infra.status import RunStatus, read_status
from infra.status_table import print_status
from infra.storage import Store

HELP = """\
usage: python flows/status.py [KEY=VALUE ...]

  root=runs       where runs lie: a folder, or gs://bucket/folder
  run=tiny        the run's name
  failures=true   every failure with its class, what to do, and the end of its log
  watch=true      again every few seconds, until Ctrl-C; every=5 says how many
  json=FILE       the same figures for programs; - for the standard output

Exit code: 0, or 1 where a stage has failed; 2: there is no such run.
"""


@dataclass(frozen=True)
class Arguments:
    root: str = "runs"
    run: str = "tiny"
    failures: bool = False
    watch: bool = False
    every: float = 5.0
    json: str = ""


def main(words: Sequence[str]) -> int:
    """Print the status; see HELP for the exit codes."""
    if {"-h", "--help", "help"} & set(words):
        print(HELP, end="")
        return 0
    try:
        chosen = parse(words)
        return follow(chosen) if chosen.watch else show(chosen)
    except UserError as error:
        print(f"error: {redact_text(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def parse(words: Sequence[str]) -> Arguments:
    """UserError names the key, the value and what is allowed."""
    kinds = {found.name: str(found.type) for found in fields(Arguments)}
    texts = {word.partition("=")[0]: word.partition("=")[2] for word in words}
    typed = {}
    for key, value in dotlist(words).items():
        if key not in kinds:
            raise UserError(f"{key}: unknown key; allowed: {', '.join(kinds)}")
        if kinds[key] == "bool" and not isinstance(value, bool):
            raise UserError(f"{key}={texts[key]}: true or false")
        if kinds[key] == "float":
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise UserError(f"{key}={texts[key]}: seconds, above 0")
            value = float(value)
        # Names stay texts even where they look like numbers: run=2026 is a name.
        typed[key] = texts[key] if kinds[key] == "str" else value
    return Arguments(**typed)


def show(chosen: Arguments) -> int:
    """Once."""
    status = read(chosen)
    if chosen.json == "-":
        print(as_json(status), end="")
    else:
        print_status(status, sys.stdout, chosen.failures)
    if chosen.json not in ("", "-"):
        try:
            Path(chosen.json).write_text(as_json(status), encoding="utf-8")
        except OSError as error:
            raise UserError(f"json={chosen.json}: {error.strerror}; give a file that can be written") from None
    return 1 if any(stage.state == "failed" for stage in status.stages) else 0


def follow(chosen: Arguments) -> int:
    """Again and again. On a terminal each takes the place of the one before."""
    while True:
        if sys.stdout.isatty():
            print("\x1b[H\x1b[2J", end="")
        show(chosen)
        print(f"\nas of {time.strftime('%H:%M:%S')}", flush=True)
        time.sleep(chosen.every)


def read(chosen: Arguments) -> RunStatus:
    return read_status(Store(chosen.root, chosen.run), time.time(), chosen.failures)


def as_json(status: RunStatus) -> str:
    return json.dumps(asdict(status), indent=1) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
