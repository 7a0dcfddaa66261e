"""The picture of docs/attention.md: who computes which block of a row's scores, before and after balancing.

    python benchmarks/block_map.py [--ring 4] [--output docs/attention_blocks.png]

One long document and seven short ones in a row of 2048 slots. A square of the map is a block of 32 queries x 32 keys,
in the order of the row, coloured by the rank that holds its queries: pale where the mask must be looked at, saturated
where it need not, left out where the bounds of the mask prove it empty. The bars count the blocks to compute. Nothing
is drawn by hand: blocks are judged by `ringworld.attention.mask`, ranks come from `ringworld.data.balance`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from ringworld.attention.mask import Bounds, Tokens, bounds, is_full, is_needed
from ringworld.data.balance import Documents, Layout, balance

SEQUENCE, BLOCK = 2048, 32
LENGTHS = (1184, 224, 160, 128, 112, 96, 80, 64)
COLORS = ("#2563eb", "#d97706", "#0f9d75", "#a21caf", "#b91c1c", "#475569", "#65a30d", "#0891b2")
INK, MUTED, PAPER, EDGE = "#1f2933", "#6b7785", "#ffffff", "#d5dbe2"
EMPTY = "#f4f6f8"


@dataclass(frozen=True, eq=False)
class Map:
    """needed, full: bool [blocks, blocks], queries x keys in the order of the row. rank: int [blocks], its holder."""

    needed: np.ndarray
    full: np.ndarray
    rank: np.ndarray
    ring: int

    def hops(self) -> np.ndarray:
        """int [ranks, hops]: the blocks that a rank computes with the keys of the rank so many places back."""
        counts = np.zeros((self.ring, self.ring), int)
        query, key = np.nonzero(self.needed)
        np.add.at(counts, (self.rank[query], (self.rank[query] - self.rank[key]) % self.ring), 1)
        return counts


def judge(documents: Documents, layout: Layout) -> Map:
    """The blocks of a row, by the bounds that attention itself goes by."""
    positions, segments = np.zeros(SEQUENCE, np.int32), np.zeros(SEQUENCE, np.int32)
    for number, (slot, length) in enumerate(zip(documents.slot, documents.length, strict=True), start=1):
        positions[slot : slot + length], segments[slot : slot + length] = np.arange(length), number
    blocks = bounds(Tokens(*(jnp.asarray(x).reshape(-1, BLOCK) for x in (positions, segments))))
    query, key = Bounds(*(x[:, None] for x in blocks)), Bounds(*(x[None] for x in blocks))
    share = SEQUENCE // layout.ring_size
    rank = layout.undo(np.arange(SEQUENCE) // share)[::BLOCK]
    return Map(np.asarray(is_needed(query, key)), np.asarray(is_full(query, key)), rank, layout.ring_size)


def draw_map(axes: Axes, blocks: Map, documents: Documents, title: str) -> None:
    """The score matrix; a ribbon along its left side says which rank holds the queries."""
    size = len(blocks.rank)
    image = np.empty((size, size, 3))
    image[:] = to_rgb(EMPTY)
    for query, key in np.argwhere(blocks.needed):
        image[query, key] = mixed(COLORS[blocks.rank[query]], 0.95 if blocks.full[query, key] else 0.5)
    axes.imshow(image, extent=(0, size, size, 0), interpolation="nearest")
    ribbon = np.array([[to_rgb(COLORS[rank])] for rank in blocks.rank])
    axes.imshow(ribbon, extent=(-2.6, -0.8, size, 0), interpolation="nearest", aspect="auto")
    for line in range(size + 1):
        axes.plot([0, size], [line, line], color=PAPER, linewidth=0.35)
        axes.plot([line, line], [0, size], color=PAPER, linewidth=0.35)
    for slot, length in zip(documents.slot / BLOCK, documents.length / BLOCK, strict=True):
        axes.plot(
            [slot, slot + length, slot + length, slot, slot], [slot, slot, slot + length, slot + length, slot],
            color=INK, linewidth=0.7,
        )  # fmt: skip
    axes.set(xlim=(-2.6, size + 0.3), ylim=(size + 0.3, -0.3), aspect="equal", xticks=[], yticks=[])
    axes.set_xlabel("keys, in the order of the row", color=MUTED, fontsize=9)
    axes.set_ylabel("queries", color=MUTED, fontsize=9)
    axes.set_title(title, color=INK, fontsize=12, loc="left", pad=8)
    axes.spines[:].set_visible(False)


def draw_work(axes: Axes, blocks: Map, highest: float) -> None:
    """A bar for each rank: its blocks, hop upon hop, and the mean of all ranks."""
    counts = blocks.hops()
    total = counts.sum(1)
    for rank in range(blocks.ring):
        below = 0
        for hop, count in enumerate(counts[rank]):
            shade = mixed(COLORS[rank], 0.95 - 0.55 * hop / max(1, blocks.ring - 1))
            axes.bar(rank, count, bottom=below, color=shade, edgecolor=PAPER, linewidth=0.8, width=0.62)
            below += count
        axes.annotate(
            f"{total[rank]}", (rank, max(total[rank], total.mean() if total[rank] > 0.85 * total.mean() else 0)),
            xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8.5, color=INK,
        )  # fmt: skip
    axes.axhline(total.mean(), color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    finish(axes, highest, [f"rank {rank}" for rank in range(blocks.ring)])
    axes.set_title(f"blocks by rank: busiest {total.max() / total.mean():.2f} x mean", **CAPTION)


def draw_hops(axes: Axes, blocks: Map, highest: float) -> None:
    """A group of bars for each hop: what every rank computes, and how long the ranks wait for the busiest."""
    counts = blocks.hops()
    width = 0.8 / blocks.ring
    for rank in range(blocks.ring):
        places = np.arange(blocks.ring) + (rank - (blocks.ring - 1) / 2) * width
        axes.bar(places, counts[rank], width=width * 0.88, color=mixed(COLORS[rank], 0.95))
    for hop, longest in enumerate(counts.max(0)):
        axes.plot([hop - 0.43, hop + 0.43], [longest, longest], color=INK, linewidth=0.9)
    finish(axes, highest, ["own keys", *(f"hop {hop}" for hop in range(1, blocks.ring))])
    slowest = counts.max(0).sum() / counts.sum(1).mean()
    axes.set_title(f"blocks by hop: summed {slowest:.2f} x mean", **CAPTION)


CAPTION = {"fontsize": 9, "color": INK, "loc": "left", "pad": 6}


def finish(axes: Axes, highest: float, names: list[str]) -> None:
    axes.set_xticks(range(len(names)), names, fontsize=8, color=MUTED)
    axes.set_yticks([])
    axes.set_ylim(0, highest)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(EDGE)


def mixed(color: str, strength: float) -> tuple[float, float, float]:
    """A color, thinned with white."""
    red, green, blue = (1 - strength * (1 - part) for part in to_rgb(color))
    return red, green, blue


def draw(path: str, ring: int) -> None:
    """Writes the picture and prints its figures."""
    lengths = np.array(LENGTHS)
    documents = Documents(np.cumsum(lengths) - lengths, lengths, SEQUENCE)
    pieces = np.arange(SEQUENCE // BLOCK)
    balanced = balance(documents, ring, BLOCK)
    panels = {
        "In the order of the row": judge(documents, Layout(pieces, BLOCK, ring, 0, 0)),
        "Balanced": judge(documents, balanced),
    }
    figure = plt.figure(figsize=(11.2, 8.6), dpi=125, facecolor=PAPER)
    grid = figure.add_gridspec(
        2, 4, height_ratios=(3.35, 1), left=0.035, right=0.985, top=0.925, bottom=0.055, hspace=0.24, wspace=0.12
    )
    counts = [blocks.hops() for blocks in panels.values()]
    by_rank = 1.15 * max(count.sum(1).max() for count in counts)
    by_hop = 1.15 * max(count.max() for count in counts)
    for column, (title, blocks) in enumerate(panels.items()):
        draw_map(figure.add_subplot(grid[0, 2 * column : 2 * column + 2]), blocks, documents, title)
        draw_work(figure.add_subplot(grid[1, 2 * column]), blocks, by_rank)
        draw_hops(figure.add_subplot(grid[1, 2 * column + 1]), blocks, by_hop)
        count = blocks.hops()
        mean = count.sum(1).mean()
        print(
            f"{title}: {blocks.needed.sum()} of {blocks.needed.size} blocks, {blocks.full.sum()} full; "
            f"busiest rank {count.sum(1).max() / mean:.3f} x mean, hop after hop {count.max(0).sum() / mean:.3f} x mean"
        )
    figure.legend(
        handles=[
            *(Patch(color=COLORS[rank], label=f"rank {rank}") for rank in range(ring)),
            Patch(color=mixed(INK, 0.95), label="full: no mask"),
            Patch(color=mixed(INK, 0.5), label="masked"),
            Patch(facecolor=EMPTY, edgecolor=EDGE, label="empty: skipped"),
        ],
        loc="upper right", ncols=ring + 3, frameon=False, fontsize=8.5, labelcolor=INK, handlelength=1.1,
        handleheight=1.0, columnspacing=1.3, bbox_to_anchor=(0.99, 0.995),
    )  # fmt: skip
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ring", type=int, default=4, choices=(2, 4, 8))
    parser.add_argument("--output", default="docs/attention_blocks.png")
    arguments = parser.parse_args()
    draw(arguments.output, arguments.ring)


if __name__ == "__main__":
    main()
