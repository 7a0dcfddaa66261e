"""Cases that `make test` leaves out, for the time they take, and `make test-all` runs: more meshes, rings and rules of
what other cases of the same test show already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest


def thorough(*values: Any) -> Any:
    """One case of a parametrized test."""
    return pytest.param(*values, marks=pytest.mark.thorough)


def only(cases: Mapping[str, Any], *quick: str) -> list[Any]:
    """Cases by name, all but the named ones thorough."""
    assert set(quick) <= set(cases)
    return [
        pytest.param(case, id=name, marks=() if name in quick else pytest.mark.thorough) for name, case in cases.items()
    ]
