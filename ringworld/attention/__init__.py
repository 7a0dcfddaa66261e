"""Exact attention over sequences of any length, sharded over a ring of devices; the mask travels with the tokens."""

from ringworld.attention.api import ring_attention
from ringworld.attention.ring import SAVED
from ringworld.attention.ulysses import ulysses_ring_attention

__all__ = ["SAVED", "ring_attention", "ulysses_ring_attention"]
