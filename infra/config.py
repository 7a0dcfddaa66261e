"""Configuration: a YAML file found by its name, overrides from the command line, one plain mapping out.

OmegaConf reads, merges and resolves; what the keys may be is said by the dataclasses that the mapping is turned into. A
config is data: nothing in it is ever executed, and only OmegaConf's plain interpolations (`${other.key}`) are resolved.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from infra.errors import UserError
from infra.redact import holds_credentials, redact_text


def compose(folder: Path, name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """`folder/NAME.yaml` (or the path NAME, if it ends in .yaml) with dotlist overrides such as
    `stages.text-1k.steps=5`.

    Raises UserError for a name that is not there (listing those that are), a file that is not YAML, an override without
    `=`, one that would put a value inside a value, or a value with credentials in it.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(found.stem for found in folder.glob("*.yaml"))
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UserError(
            f"{folder.name}: no {name!r}{hint}; there are {', '.join(known)}, or give a path to a .yaml file"
        )
    try:
        written = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if not isinstance(written, dict):
            raise UserError(f"{path}: holds a {type(written).__name__}; a config is a mapping of keys")
        config = OmegaConf.create(written)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: not a YAML mapping: {error}") from None
    merged = OmegaConf.merge(config, dotlist(overrides))
    _refuse_resolvers(path, OmegaConf.to_yaml(merged))
    try:
        plain = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {error}") from None
    assert isinstance(plain, dict)
    _refuse_credentials(path, plain)
    return {str(key): value for key, value in plain.items()}


def dotlist(arguments: Sequence[str]) -> Any:
    """`a.b=1 c=[x,y]` as an OmegaConf mapping; values are read as YAML scalars and lists."""
    for argument in arguments:
        key, separator, _ = argument.partition("=")
        if not separator or not key.strip():
            raise UserError(f"argument {argument!r}: write KEY=VALUE, as in steps=10")
    try:
        return OmegaConf.from_dotlist(list(arguments))
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise UserError(f"arguments {' '.join(arguments)}: {error}") from None


def _refuse_resolvers(path: Path, text: str) -> None:
    # ${oc.env:NAME} would carry a secret of this machine into a recipe, and so into manifests and pages.
    if found := re.search(r"\$\{[^}]*:[^}]*\}?", text):
        raise UserError(f"{path}: {found.group(0)!r}: only plain references to other keys, such as ${{base}}, are read")


def _refuse_credentials(path: Path, value: Any, at: str = "") -> None:
    # A curriculum is kept in manifests, pages and MLflow, where a URL's password would outlive its use.
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _refuse_credentials(path, inner, f"{at}.{key}" if at else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _refuse_credentials(path, inner, f"{at}[{number}]")
    elif isinstance(value, str) and holds_credentials(value):
        raise UserError(
            f"{path}: {at}={redact_text(value)!r} has credentials in it, and configs are kept and shown; leave them to "
            "the machine's identity or files, or to a variable that an option such as api_key_env names"
        )
