"""Mappings from outside: what fits becomes a dataclass, everything else is refused by its full key."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from ringworld.errors import UserError
from ringworld.strict import from_mapping, to_mapping


@dataclass(frozen=True)
class Inner:
    rate: float
    name: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    inner: Inner
    steps: int = 1
    pair: tuple[int, int | None] = (0, None)
    many: tuple[str, ...] = ()
    table: dict[str, Inner] = field(default_factory=dict)
    maybe: Inner | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps={self.steps}: must be 1 or more")


def test_a_mapping_round_trips():
    value = Outer(Inner(0.5, "b"), 3, (1, None), ("x", "y"), {"k": Inner(1.0)}, Inner(2.0))
    assert from_mapping(Outer, to_mapping(value)) == value


def test_a_whole_number_serves_as_a_float():
    assert from_mapping(Inner, {"rate": 2}).rate == 2.0


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({"inner": {"rate": 1.0}, "stepz": 3}, ["curriculum.stepz", "did you mean steps"]),
        ({"inner": {"rate": "fast"}}, ["curriculum.inner.rate", "'fast'", "a number"]),
        ({"inner": {"rate": True}}, ["curriculum.inner.rate", "True"]),
        ({"inner": {"rate": 1.0, "name": "c"}}, ["curriculum.inner.name", "a, b"]),
        ({}, ["curriculum.inner", "missing"]),
        ({"inner": {"rate": 1.0}, "steps": 0}, ["curriculum", "steps=0"]),
        ({"inner": {"rate": 1.0}, "steps": 1.5}, ["curriculum.steps", "whole number"]),
        ({"inner": {"rate": 1.0}, "pair": [1]}, ["curriculum.pair", "2 values"]),
        ({"inner": {"rate": 1.0}, "many": "x"}, ["curriculum.many", "list"]),
        ({"inner": {"rate": 1.0}, "table": {"k": {"rat": 1}}}, ["curriculum.table.k.rat", "rate"]),
        ({"inner": 3}, ["curriculum.inner=3", "rate"]),
    ],
)
def test_what_does_not_fit_is_named_with_what_is_allowed(mapping, said):
    with pytest.raises(UserError) as error:
        from_mapping(Outer, mapping, at="curriculum")
    for part in said:
        assert part in str(error.value)
