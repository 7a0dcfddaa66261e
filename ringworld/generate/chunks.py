"""How prompts are cut into chunks and how long a slot is: few sizes, so that few programs are compiled."""

from __future__ import annotations

from collections.abc import Sequence

# The shortest chunk, in tokens of one shard: a shorter rest of a prompt is padded to it.
_SHORTEST = 32
# A slot's tokens on a shard come in multiples of this: block backends cut keys so, and would copy what is left over.
_BLOCK = 512


def chunk_sizes(chunk: int, unit: int) -> tuple[int, ...]:
    """Chunks that programs are compiled for, ascending: `unit` times powers of two, the last one at least `chunk`."""
    sizes = [unit * min(_SHORTEST, 1 << (-(-chunk // unit) - 1).bit_length())]
    while sizes[-1] < chunk:
        sizes.append(sizes[-1] * 2)
    return tuple(sizes)


def chunk_of(rest: int, sizes: Sequence[int]) -> int:
    """The chunk that so much of a prompt is read by next: the shortest that holds it, else the longest there is."""
    return next((size for size in sizes if size >= rest), sizes[-1])


def slot_length(context: int, sizes: Sequence[int], stripes: int) -> int:
    """Tokens of a slot: the context, and the padding of the last chunk of a prompt that fills it, in whole blocks."""
    whole, rest = divmod(context, sizes[-1])
    length = whole * sizes[-1] + (chunk_of(rest, sizes) if rest else 0)
    block = min(sizes[-1], _BLOCK * stripes)
    return -(-length // block) * block
