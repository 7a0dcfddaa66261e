"""Which slots of a row lie on which rank of a ring, so that all ranks have the same attention to compute.

The mask travels with the tokens, so any assignment of blocks of slots to ranks gives the same answers; only the time
differs. A query at index p of its example meets p + 1 keys: under causality late slots cost more than early ones, and a
rank that holds the start of a book waits for the one that holds its end. A `Layout` is a permutation of a row's blocks,
a pure function of where the row's documents lie and of the ring's size; it reads no token and is never stored.

Two things are balanced, in this order:
- the work of each rank, in (query, key) pairs: the busiest has at most `TOLERANCE` more than the mean;
- the work of each hop: ranks meet at every exchange, so a hop lasts as long as its busiest rank, and the ring as long
  as all hops one after another. Ranks of equal totals can still take turns waiting: 16 documents cut in two and dealt
  to 16 ranks by work alone are perfectly equal, and four and a half times slower than 16 whole ones.

Layouts are tried from long pieces to short ones. The row as it is comes first. `_fold` keeps a document whole on one
rank where the mean work allows it, and spreads a longer one over all ranks in a zigzag of its own, which is equal at
every hop too; of one document it makes the zigzag of Llama 3 (arXiv:2407.21783, section 3.3.2). `_deal` deals pieces by
their work alone. With pieces of one token either would be Striped Attention (arXiv:2311.09431), which is even whatever
the documents, but whose blocks of scores are never empty and never full.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

TOLERANCE = 0.05  # of the mean work of a rank: how much more the busiest may have
_WORTH_CUTTING = 0.02  # of the time of the ring: what shorter pieces must save
_LEAST_GAIN = 1e-3  # of the mean work of a rank: what a swap must bring


@dataclass(frozen=True, eq=False)
class Documents:
    """Where the documents of a row of `sequence` slots lie: slot[i] .. slot[i] + length[i] - 1, in order and apart.

    Integer arrays [documents]. The other slots are padding, which no query sees and which asks for nothing.
    """

    slot: np.ndarray
    length: np.ndarray
    sequence: int

    def __post_init__(self) -> None:
        ends = self.slot.astype(np.int64) + self.length
        begins = np.append(self.slot, self.sequence)
        if self.slot.shape != self.length.shape or (len(ends) and (self.slot[0] < 0 or (ends > begins[1:]).any())):
            raise ValueError(
                f"documents at {self.slot} of {self.length} tokens: they must lie in order and apart "
                f"in {self.sequence} slots"
            )

    def work_before(self, slots: np.ndarray) -> np.ndarray:
        """int64, of the shape of `slots`: the (query, key) pairs of all queries that lie before each slot."""
        lengths = self.length.astype(np.int64)
        which = np.searchsorted(self.slot, slots, side="right")  # documents that begin at or before the slot
        begin, length = np.insert(self.slot.astype(np.int64), 0, 0)[which], np.insert(lengths, 0, 0)[which]
        before = np.insert(np.cumsum(_pairs(lengths)), 0, [0, 0])[which]
        return before + _pairs(np.clip(slots - begin, 0, length))

    def begin_at(self, slots: np.ndarray) -> np.ndarray:
        """int64, of the shape of `slots`: where the document begins that holds a slot; padding begins at itself."""
        which = np.searchsorted(self.slot, slots, side="right")
        begin, length = (np.insert(x.astype(np.int64), 0, 0)[which] for x in (self.slot, self.length))
        return np.where(slots < begin + length, begin, slots)


@dataclass(frozen=True, eq=False)
class Layout:
    """A row in the order in which a ring holds it: rank r holds the r-th of `ring_size` equal runs of the laid-out row.

    pieces: int64 [pieces], the piece of the row that lies at each place; ascending within a rank.
    size: slots a piece.
    imbalance: the busiest rank's (query, key) pairs over the mean of all ranks, less 1.
    waiting: the same for the time of the ring, all hops one after another, each as long as its busiest rank; counted in
    pairs of pieces that hold any pair of tokens.
    """

    pieces: np.ndarray
    size: int
    ring_size: int
    imbalance: float
    waiting: float

    @cached_property
    def _places(self) -> np.ndarray:
        return np.argsort(self.pieces)

    def apply(self, array: np.ndarray, axis: int = -1) -> np.ndarray:
        """An array along a row's slots as the array along the laid-out row."""
        return self._taken(array, self.pieces, axis)

    def undo(self, array: np.ndarray, axis: int = -1) -> np.ndarray:
        """The exact inverse of `apply`."""
        return self._taken(array, self._places, axis)

    def runs(self, first: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The places first .. end - 1 of the laid-out row as runs of the row: (place, slot, length), int64 [runs]."""
        if first >= end:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
        piece = np.arange(first // self.size, -(-end // self.size))
        begins = np.flatnonzero(np.diff(self.pieces[piece], prepend=-2) != 1)
        place = np.maximum(piece[begins] * self.size, first)
        slot = self.pieces[piece[begins]] * self.size + place - piece[begins] * self.size
        return place, slot, np.diff(place, append=end)

    def _taken(self, array: np.ndarray, order: np.ndarray, axis: int) -> np.ndarray:
        slots = len(self.pieces) * self.size
        if array.shape[axis] != slots:
            raise ValueError(f"axis {axis} of shape {array.shape} has not the row's {slots} slots")
        last = np.moveaxis(array, axis, -1)
        pieces = last.reshape(*last.shape[:-1], len(self.pieces), self.size)
        return np.moveaxis(pieces[..., order, :].reshape(last.shape), -1, axis)


def balance(documents: Documents, ring_size: int, block: int) -> Layout:
    """The layout of a row over a ring whose ranks wait least for each other, at most `TOLERANCE` out of balance.

    block: slots of the shortest piece; no fewer than a kernel's block, or a block would hold pieces from far apart, and
    its bounds would prove nothing. A rank has a power of two of pieces: its share of the row is halved as long as that
    gives whole pieces of `block` slots, and a share that cannot be halved stays whole. ring_size=1 changes nothing.

    Where even the shortest pieces are too heavy for the tolerance, such as one that alone outweighs the mean of a rank,
    it is the layout with the least imbalance. Always, with the work of the shortest pieces and the mean of a rank:
    imbalance <= max(TOLERANCE, (heaviest piece - lightest piece) * (1 - 1 / ring_size) / mean). One heavy piece among
    equals reaches that bound, and no assignment of pieces beats it. Deterministic.

    Raises ValueError where the ring does not divide the row, or block is not positive.
    """
    if ring_size < 1 or documents.sequence < 1 or documents.sequence % ring_size:
        raise ValueError(f"ring_size={ring_size} does not divide a row of {documents.sequence} slots")
    if block < 1:
        raise ValueError(f"block={block}: a piece has 1 slot or more")
    row = _Row.cut(documents, ring_size, block)
    best: _Candidate | None = None
    for members in _candidates(row):
        candidate = row.judged(members)
        best = candidate if best is None or _better(candidate, best) else best
        if best.imbalance <= TOLERANCE and best.waiting <= _WORTH_CUTTING:
            break
    assert best is not None
    return Layout(best.members.reshape(-1), row.size, ring_size, best.imbalance, best.waiting)


@dataclass(frozen=True, eq=False)
class _Candidate:
    """members: int64 [ranks, pieces of a rank], ascending in each rank."""

    members: np.ndarray
    imbalance: float
    waiting: float


def _better(new: _Candidate, old: _Candidate) -> bool:
    """Whether a candidate of shorter pieces is worth them."""
    if old.imbalance > TOLERANCE:
        return new.imbalance < old.imbalance
    return new.imbalance <= TOLERANCE and new.waiting < old.waiting - _WORTH_CUTTING * (1 + old.waiting)


@dataclass(frozen=True, eq=False)
class _Row:
    """A row cut into the shortest pieces, [pieces] of `size` slots: `work` of each, in pairs, and what it needs.

    oldest: the piece in which the document begins that a piece begins with: its queries need no key before it.
    edges: the pieces where documents begin or end, to the nearest.
    """

    ring_size: int
    size: int
    work: np.ndarray
    oldest: np.ndarray
    edges: np.ndarray

    @classmethod
    def cut(cls, documents: Documents, ring_size: int, block: int) -> _Row:
        shard = documents.sequence // ring_size
        each = 1
        while ring_size > 1 and shard % (2 * each) == 0 and shard // (2 * each) >= block:
            each *= 2
        size = shard // each
        slots = np.arange(0, documents.sequence + 1, size)
        ends = documents.slot.astype(np.int64) + documents.length
        edges = (np.concatenate([documents.slot, ends]) + size // 2) // size
        return cls(
            ring_size,
            size,
            np.diff(documents.work_before(slots)),
            documents.begin_at(slots[:-1]) // size,
            np.unique(np.append(edges, [0, len(slots) - 1])),
        )

    @property
    def each(self) -> int:
        """Pieces of a rank."""
        return len(self.work) // self.ring_size

    def judged(self, members: np.ndarray) -> _Candidate:
        loads = self.work[members].sum(1)
        needed = self._needed(members)
        ranks = np.arange(self.ring_size)
        hops = needed[ranks, (ranks - ranks[:, None]) % self.ring_size]  # [hop, rank]
        return _Candidate(
            members,
            _excess(loads.max(), loads.sum() / self.ring_size),
            _excess(hops.max(1).sum(), hops.sum() / self.ring_size),
        )

    def _needed(self, members: np.ndarray) -> np.ndarray:
        """int64 [ranks, ranks]: the (query piece, key piece) pairs to compute, by the rank of each.

        Documents are runs of a row, so a piece needs all pieces from its oldest to itself.
        """
        rank = np.empty(len(self.work), np.int64)
        rank[members] = np.arange(self.ring_size)[:, None]
        before = np.zeros((len(rank) + 1, self.ring_size), np.int32)  # pieces of each rank before a piece
        before[np.arange(len(rank)) + 1, rank] = 1
        np.cumsum(before, axis=0, out=before)
        needed = before[members + 1] - before[self.oldest[members]]
        return np.where(self.work[members][..., None] > 0, needed, 0).sum(1)

    def coarser(self, factor: int) -> _Row:
        """The same row in pieces `factor` times as long."""
        return _Row(
            self.ring_size,
            self.size * factor,
            self.work.reshape(-1, factor).sum(1),
            self.oldest[::factor] // factor,
            np.unique((self.edges + factor // 2) // factor),
        )


def _candidates(row: _Row) -> Iterator[np.ndarray]:
    """Layouts as `_Candidate.members`, of ever shorter pieces."""
    yield np.arange(len(row.work)).reshape(row.ring_size, row.each)
    mean = row.work.sum() / row.ring_size
    factor = row.each // 2
    while factor:
        coarse = row.coarser(factor)
        hopeless = _excess(coarse.work.max(), mean) > TOLERANCE  # one piece is too much for a rank
        for method in () if hopeless and factor > 1 else (_fold, _deal):
            members = np.sort(_evened(method(coarse), coarse.work), axis=1)
            yield (members[..., None] * factor + np.arange(factor)).reshape(row.ring_size, row.each)
        factor //= 2


def _deal(row: _Row) -> np.ndarray:
    """Pieces dealt by work, the heaviest first, to ranks from first to last and back again, and so on.

    Two ranks then differ by no more than the heaviest and the lightest piece: in each turn one gets the heavier of two
    neighbours of the sorted pieces, and the turns' differences do not overlap and have changing signs.
    """
    turns = np.argsort(-row.work, kind="stable").reshape(row.each, row.ring_size)
    turns[1::2] = turns[1::2, ::-1]
    return np.ascontiguousarray(turns.T)


def _fold(row: _Row) -> np.ndarray:
    """Documents placed one after another, those of most work first: whole on the least loaded rank that has room, as
    long as that rank stays at the mean; otherwise spread over all ranks."""
    limit = (1 + TOLERANCE / 2) * row.work.sum() / row.ring_size
    total = np.insert(np.cumsum(row.work), 0, 0)
    work = np.diff(total[row.edges])
    rank = np.empty(len(row.work), np.int64)
    load, room = np.zeros(row.ring_size, np.int64), np.full(row.ring_size, row.each)
    for document in np.argsort(-work, kind="stable").tolist():
        first, end = int(row.edges[document]), int(row.edges[document + 1])
        least = int(np.where(room >= end - first, load, np.iinfo(np.int64).max).argmin())
        if room[least] >= end - first and load[least] + work[document] <= limit:
            rank[first:end] = least
            load[least] += work[document]
            room[least] -= end - first
        else:
            rank[first:end] = _zigzag(end - first, load, room)
            np.add.at(load, rank[first:end], row.work[first:end])
            room -= np.bincount(rank[first:end], minlength=row.ring_size)
    return np.argsort(rank, kind="stable").reshape(row.ring_size, row.each)


def _zigzag(pieces: int, load: np.ndarray, room: np.ndarray) -> np.ndarray:
    """int64 [pieces]: the rank of each piece of a document: as equally many for all as they have room, half of them on
    the way up the ranks, half on the way back. Ranks with the most load get the ends, an odd piece goes to the least.
    """
    share = np.zeros_like(room)
    while left := pieces - int(share.sum()):
        open_ranks = np.flatnonzero(room > share)
        if left < len(open_ranks):
            share[open_ranks[np.argsort(load[open_ranks], kind="stable")[:left]]] += 1
        else:
            share[open_ranks] += np.minimum(left // len(open_ranks), (room - share)[open_ranks])
    up = np.argsort(-load, kind="stable")
    rising = (share + 1) // 2
    return np.concatenate([np.repeat(up, rising[up]), np.repeat(up[::-1], (share - rising)[up[::-1]])])


def _evened(members: np.ndarray, work: np.ndarray) -> np.ndarray:
    """Members after swaps of two pieces between the busiest rank and another, the least busy that helps, until the
    busiest is within the tolerance or no swap helps. No swap makes any rank busier than the busiest was."""
    members = members.copy()
    loads = work[members].sum(1)
    mean = loads.sum() / len(loads)
    while _excess(loads.max(), mean) > TOLERANCE:
        busiest = int(loads.argmax())
        for other in np.argsort(loads, kind="stable").tolist():
            swap = _swap(work[members[busiest]], work[members[other]], int(loads[busiest] - loads[other]), mean)
            if swap is not None:
                break
        else:
            break
        mine, theirs = swap
        moved = work[members[busiest, mine]] - work[members[other, theirs]]
        loads[busiest] -= moved
        loads[other] += moved
        members[busiest, mine], members[other, theirs] = members[other, theirs], members[busiest, mine]
    return members


def _swap(busy: np.ndarray, idle: np.ndarray, gap: int, mean: float) -> tuple[int, int] | None:
    """The pieces of a busy and of an idle rank, `gap` apart, whose swap brings the two closest; None: too little."""
    order = np.argsort(idle, kind="stable")
    above = np.minimum(np.searchsorted(idle[order], busy - gap / 2), len(idle) - 1)
    nearest = order[np.stack([above, np.maximum(above - 1, 0)])]
    left = np.abs(gap - 2 * (busy - idle[nearest]))
    which, mine = np.unravel_index(int(left.argmin()), left.shape)
    return (int(mine), int(nearest[which, mine])) if gap - left[which, mine] > _LEAST_GAIN * mean else None


def _pairs(tokens: np.ndarray) -> np.ndarray:
    return tokens * (tokens + 1) // 2


def _excess(most: int, mean: float) -> float:
    return float(most / mean - 1) if mean else 0.0
