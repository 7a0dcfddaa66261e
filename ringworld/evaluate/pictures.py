"""The pictures of an evaluation, as PNG."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from ringworld.evaluate.loss_by_position import PositionLoss
from ringworld.evaluate.needle import Cell

INK, MUTED, BEFORE, AFTER = "#1f2933", "#8894a3", "#b8c2cc", "#2563eb"


def draw_loss_by_position(path: str, before: PositionLoss, after: PositionLoss, past: int) -> None:
    """Loss against position, before and after the stage; a line marks where the context of the stage before ended."""
    figure, axes = plt.subplots(figsize=(6.4, 3.4), dpi=130, layout="constrained")
    for loss, color, label in ((before, BEFORE, "before"), (after, AFTER, "after")):
        centers = (np.array(loss.edges[:-1]) + np.array(loss.edges[1:])) / 2
        axes.plot(
            centers, loss.spans, color=color, linewidth=2, marker="o", markersize=3.5, label=f"{label}: {loss.mean:.3f}"
        )
    if past:
        axes.axvline(past, color=MUTED, linewidth=1, linestyle=":")
        axes.annotate(
            f"context before: {past:,}", (past, 1), xycoords=("data", "axes fraction"), xytext=(4, -12),
            textcoords="offset points", color=MUTED, fontsize=8,
        )  # fmt: skip
    axes.set_xlabel("position in the document, tokens", color=INK)
    axes.set_ylabel("held-out loss, nats per token", color=INK)
    axes.legend(frameon=False, fontsize=9)
    axes.grid(axis="y", color="#eceff3")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    plt.close(figure)


def draw_needle(path: str, cells: Sequence[Cell]) -> None:
    """Two heat maps over lengths x depths: prompts answered exactly, answer tokens said rightly."""
    lengths = sorted({cell.length for cell in cells})
    depths = sorted({cell.depth for cell in cells})
    figure, panels = plt.subplots(
        1, 2, figsize=(7.6, 0.9 + 0.44 * len(depths)), dpi=130, layout="constrained", sharey=True
    )
    for axes, name, title in zip(panels, ("exact", "digits"), ("number found", "answer tokens right"), strict=True):
        grid = np.full((len(depths), len(lengths)), np.nan)
        for cell in cells:
            grid[depths.index(cell.depth), lengths.index(cell.length)] = getattr(cell, name)
        axes.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        for (row, column), value in np.ndenumerate(grid):
            axes.text(column, row, f"{value:.0%}", ha="center", va="center", fontsize=8, color=INK)
        axes.set_title(f"{title}: {np.nanmean(grid):.0%}", fontsize=10, color=INK)
        axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], fontsize=8)
        axes.set_xlabel("context, tokens", fontsize=9, color=INK)
    panels[0].set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths], fontsize=8)
    panels[0].set_ylabel("depth of the needle", fontsize=9, color=INK)
    figure.savefig(path)
    plt.close(figure)
