"""The largest number of pieces that fits a budget, with few looks: tokenizing a long prompt takes seconds."""

from __future__ import annotations

from collections.abc import Callable

_STRAIGHT = 12  # looks by a straight line before halving, which ends whatever the sizes are


def largest(size: Callable[[int], int], least: int, most: int, budget: int, per: float) -> int:
    """The largest n in least..most with size(n) <= budget, where size grows with n and size(least) fits.

    per: about how much a piece adds. Where size is not quite monotone, an n that fits and whose successor does not.
    """
    low, low_size = least, size(least)
    high, high_size = most + 1, -1  # not looked at: -1
    looks = 0
    while high - low > 1:
        step = (high_size - low_size) / (high - low) if high_size >= 0 else per
        guess = low + int((budget - low_size) / max(step, 1e-6))
        if looks >= _STRAIGHT:
            guess = (low + high) // 2
        guess = min(max(guess, low + 1), high - 1)
        found = size(guess)
        if found <= budget:
            low, low_size = guess, found
        else:
            high, high_size = guess, found
        looks += 1
    return low
