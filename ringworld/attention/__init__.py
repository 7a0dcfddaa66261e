"""Exact attention over sequences of any length, sharded over a ring of devices; the mask travels with the tokens."""

from ringworld.attention.api import best_backend, ring_attention
from ringworld.attention.ring import SAVED

__all__ = ["SAVED", "best_backend", "ring_attention"]
