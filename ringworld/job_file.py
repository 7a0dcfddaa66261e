"""The file that `--recipe` names: a job as YAML, with its parts under their names."""

from __future__ import annotations

from typing import Any, TypeVar

import yaml

from ringworld.data.files import read_bytes, write_bytes
from ringworld.errors import UserError
from ringworld.strict import from_mapping, to_mapping

Job = TypeVar("Job")


def write_job(path: str, job: Any) -> None:
    """job: a dataclass."""
    write_bytes(path, yaml.safe_dump(to_mapping(job), sort_keys=False).encode())


def read_job(kind: type[Job], path: str) -> Job:
    """UserError for anything that is no job of this kind."""
    try:
        mapping = yaml.safe_load(read_bytes(path).decode())
    except FileNotFoundError:
        raise UserError(f"--recipe {path}: no such file") from None
    except (PermissionError, IsADirectoryError) as error:
        raise UserError(f"--recipe {path}: {error}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--recipe {path}: not YAML: {error}") from None
    return from_mapping(kind, mapping, at="job")
