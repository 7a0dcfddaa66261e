"""The file that `--recipe` names: a job as YAML, with its parts under their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml

from ringworld.errors import UserError
from ringworld.strict import from_mapping, to_mapping

Job = TypeVar("Job")


def write_job(path: str, job: Any) -> None:
    """job: a dataclass."""
    Path(path).write_text(yaml.safe_dump(to_mapping(job), sort_keys=False), encoding="utf-8")


def read_job(kind: type[Job], path: str) -> Job:
    """UserError for anything that is no job of this kind."""
    try:
        mapping = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--recipe {path}: no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--recipe {path}: not YAML: {error}") from None
    return from_mapping(kind, mapping, at="job")
