"""A peer's own Python environment: pinned packages that need not agree with ours, made once and kept.

The folder is a cache: it may be deleted at any time. The list of packages is written into it last, so an installation
that broke off, or one of another list, is made again.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CACHE = Path(__file__).resolve().parent / ".peers"


class Unavailable(Exception):
    """The environment cannot be made here; the message holds the reason."""


def python_with(name: str, packages: Sequence[str], cache: Path = CACHE) -> Path:
    """The interpreter of an environment that has these packages (as pip takes them), installed when it is missing.

    Raises Unavailable with the last lines of what failed.
    """
    folder, wanted = cache / name, "".join(f"{package}\n" for package in packages)
    python, receipt = folder / "bin" / "python", folder / "packages.txt"
    if receipt.is_file() and receipt.read_text(encoding="utf-8") == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    (cache / ".gitignore").write_text("*\n", encoding="utf-8")  # git and linters stay out, wherever the cache lies
    _run([sys.executable, "-m", "venv", str(folder)])
    _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages])
    receipt.write_text(wanted, encoding="utf-8")
    return python


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
        raise Unavailable(f"{' '.join(command)}\nended with status {done.returncode}:\n{last}")
