"""The pictures of an evaluation, as PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from ringworld.data.files import open_to_write
from ringworld.evaluate.loss_by_position import PositionLoss
from ringworld.evaluate.needle import Cell
from ringworld.evaluate.video_needle import VideoCell

INK, MUTED, BEFORE, AFTER = "#1f2933", "#8894a3", "#b8c2cc", "#2563eb"
# Of shares of what is found: nothing is as calm as the page, and every number can be read on its cell.
FOUND = LinearSegmentedColormap.from_list("found", ("#f1efe9", "#f4d98a", "#58b27c"))
_CORPORA = (AFTER, "#c2571a", "#2f855a", "#8a4fb0", "#b5892a", "#0e7490", "#b8447f", MUTED)
_NEEDLE = (("exact", "number found"), ("digits", "answer tokens right"))
_VIDEO_NEEDLE = (("exact", "colour said"), ("said", "answer tokens right"))
_WRAP, _LINES = 34, 6  # of a caption beside its pictures


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
    _save(figure, path)


def draw_loss_given_context(path: str, found: Mapping[str, Any]) -> None:
    """Loss of the same tokens against the context before them, before and after the stage.

    found: `loss_given_context` of `ringworld.evaluate.context.context_figures`.
    """
    figure, axes = plt.subplots(figsize=(6.4, 3.4), dpi=130, layout="constrained")
    contexts = found["contexts"]
    for key, color in (("before", BEFORE), ("after", AFTER)):
        losses = found[key]
        axes.plot(
            contexts, losses, color=color, linewidth=2, marker="o", markersize=3.5,
            label=f"{key}: {losses[-1] - losses[0]:+.3f}",
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(contexts, [f"{context:,}" for context in contexts], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel(f"context before the last {found['tail']:,} tokens", color=INK)
    axes.set_ylabel("held-out loss, nats per token", color=INK)
    axes.legend(frameon=False, fontsize=9)
    axes.grid(axis="y", color="#eceff3")
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def draw_needle(path: str, cells: Sequence[Cell]) -> None:
    """Two heat maps over lengths x depths: prompts answered exactly, answer tokens said rightly."""
    panels = [(title, [getattr(cell, name) for cell in cells]) for name, title in _NEEDLE]
    _draw_grid(path, [(cell.length, cell.depth) for cell in cells], panels, "context, tokens", "depth of the needle")


def draw_video_needle(path: str, cells: Sequence[VideoCell], chance: float) -> None:
    """Three heat maps over frames x depths: prompts answered exactly, answer tokens said rightly, prompts of which the
    right colour is the likeliest. chance: of the last."""
    titles = dict(_VIDEO_NEEDLE) | {"ranked": f"likeliest colour right (chance {chance:.0%})"}
    panels = [(title, [getattr(cell, name) for cell in cells]) for name, title in titles.items()]
    _draw_grid(path, [(cell.frames, cell.depth) for cell in cells], panels, "frames", "depth of the marked frame")


def draw_samples(path: str, rows: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> None:
    """For each caption the clip that it was written for and what the model drew, both uint8 [frames, side, side, 3]."""
    most = max(len(own) for _, own, _ in rows)
    figure, grid = plt.subplots(
        len(rows), 3, figsize=(2.6 + 2.4 * most, 1.2 * len(rows) + 0.3), dpi=130, layout="constrained", squeeze=False,
        width_ratios=(2.6, 1.2 * most, 1.2 * most),
    )  # fmt: skip
    for (caption, own, drawn), (text, left, right) in zip(rows, grid, strict=True):
        shown = textwrap.wrap(caption, _WRAP, max_lines=_LINES, placeholder="…")
        text.text(0, 0.5, "\n".join(shown), fontsize=7, va="center", color=INK, parse_math=False)
        left.imshow(_strip(own, most), interpolation="nearest")
        right.imshow(_strip(drawn, most), interpolation="nearest")
        for axes in (text, left, right):
            axes.set_axis_off()
    for axes, title in zip(grid[0], ("caption", "its clip", "drawn"), strict=True):
        axes.set_title(title, fontsize=9, color=INK)
    _save(figure, path)


def _strip(frames: np.ndarray, most: int) -> np.ndarray:
    """Frames side by side, with white in the places of those that are fewer than `most`."""
    count, height, width, _ = frames.shape
    strip = np.full((height, most, width + max(1, width // 16), 3), 255, np.uint8)
    strip[:, :count, :width] = frames.swapaxes(0, 1)
    return strip.reshape(height, -1, 3)


def _draw_grid(
    path: str,
    places: Sequence[tuple[int, float]],
    panels: Sequence[tuple[str, Sequence[float]]],
    across: str,
    down: str,
) -> None:
    """Heat maps beside one another. places: (length, depth) of each cell. panels: a title, and of each cell a share."""
    lengths = sorted({length for length, _ in places})
    depths = sorted({depth for _, depth in places})
    figure, drawn = plt.subplots(
        1, len(panels), figsize=(3.8 * len(panels), 0.9 + 0.44 * len(depths)), dpi=130, layout="constrained",
        sharey=True,
    )  # fmt: skip
    for axes, (title, shares) in zip(drawn, panels, strict=True):
        grid = np.full((len(depths), len(lengths)), np.nan)
        for (length, depth), share in zip(places, shares, strict=True):
            grid[depths.index(depth), lengths.index(length)] = share
        axes.imshow(grid, vmin=0, vmax=1, cmap=FOUND, aspect="auto")
        for (row, column), value in np.ndenumerate(grid):
            axes.text(column, row, f"{value:.0%}", ha="center", va="center", fontsize=8, color=INK)
        axes.set_title(f"{title}: {np.nanmean(grid):.0%}", fontsize=10, color=INK)
        axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], fontsize=8)
        axes.set_xlabel(across, fontsize=9, color=INK)
    drawn[0].set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths], fontsize=8)
    drawn[0].set_ylabel(down, fontsize=9, color=INK)
    _save(figure, path)


def draw_answers(path: str, corpora: Mapping[str, Mapping[str, Any]]) -> None:
    """Loss of answers by corpus, before and after; and token F1 by depth, where questions of known depth were asked.

    corpora: as in `ringworld.evaluate.chat.chat_figures`, at least one.
    """
    graded = {name: [row for row in found["depths"] if row["asked"]] for name, found in corpora.items()}
    graded = {name: rows for name, rows in graded.items() if rows}
    panels = 2 if graded else 1
    figure, axes = plt.subplots(1, panels, figsize=(3.8 * panels, 3.2), dpi=130, layout="constrained", squeeze=False)
    _draw_answer_loss(axes[0, 0], corpora)
    if graded:
        _draw_f1(axes[0, 1], graded)
    for panel in axes[0]:
        panel.grid(axis="y", color="#eceff3")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _draw_answer_loss(axes: Any, corpora: Mapping[str, Mapping[str, Any]]) -> None:
    width = 0.38
    places = np.arange(len(corpora))
    for turn, (key, color, label) in enumerate((("loss_before", BEFORE, "before"), ("loss_after", AFTER, "after"))):
        losses = [found[key] for found in corpora.values()]
        drawn = axes.bar(places + (turn - 0.5) * width, losses, width * 0.94, color=color, label=label)
        axes.bar_label(drawn, fmt="%.2f", fontsize=8, color=INK, padding=2)
    axes.set_xticks(places, list(corpora), fontsize=9)
    axes.set_xlim(-0.8, len(corpora) - 0.2)
    axes.margins(y=0.25)
    axes.set_ylabel("loss of answers, nats per token", color=INK)
    axes.legend(frameon=False, fontsize=9, loc="upper right", ncols=2)


def _draw_f1(axes: Any, graded: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    for number, (name, rows) in enumerate(graded.items()):
        centers = [(row["from"] + row["to"]) / 2 for row in rows]
        color = _CORPORA[number % len(_CORPORA)]
        axes.plot(
            centers, [row["f1"] for row in rows], color=color, linewidth=2, marker="o", markersize=4.5, label=name,
            clip_on=False,
        )  # fmt: skip
    axes.set_ylim(0, 1)
    axes.set_xlim(0, 1)
    axes.set_xticks(np.linspace(0, 1, 6), [f"{depth:.0%}" for depth in np.linspace(0, 1, 6)], fontsize=8)
    axes.set_xlabel("depth of the answer in the prompt", fontsize=9, color=INK)
    axes.set_ylabel("token F1 of greedy answers", color=INK)
    axes.legend(frameon=False, fontsize=9)


def _save(figure: Any, path: str) -> None:
    with open_to_write(path) as file:
        figure.savefig(file, format="png")
    plt.close(figure)
