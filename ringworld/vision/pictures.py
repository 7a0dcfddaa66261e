"""The pictures of a VQGAN's training, as PNG: reconstructions beside their originals, and figures against steps."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from ringworld.errors import UserError
from ringworld.vision.vqgan_progress import VQRecord

INK, PSNR, USED = "#1f2933", "#2563eb", "#c2571a"


def draw_reconstructions(originals: np.ndarray, made: np.ndarray, columns: int = 8) -> bytes:
    """Rows of originals uint8 [n, h, w, 3], and under each row what became of it, like originals.

    UserError where there are none, or the two are not of one shape.
    """
    if originals.shape != made.shape or not originals.size:
        raise UserError(f"originals {list(originals.shape)}, made of them {list(made.shape)}: expected as many of each")
    count, height, width, _ = originals.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    figure, grid = plt.subplots(
        2 * rows, columns, figsize=(columns * 1.1 + 0.9, 2.2 * rows * height / width + 0.1), dpi=140,
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for axes in grid.flat:
        axes.set_axis_off()
    for number in range(count):
        row, column = divmod(number, columns)
        for turn, (name, pictures) in enumerate((("original", originals), ("from its codes", made))):
            axes = grid[2 * row + turn, column]
            axes.imshow(pictures[number], interpolation="nearest")
            if column == 0:
                axes.text(-0.06, 0.5, name, rotation=90, ha="right", va="center", transform=axes.transAxes, fontsize=7)
    return _png(figure)


def draw_vqgan_progress(records: Sequence[VQRecord]) -> bytes:
    """PSNR of held-out pictures, and how many codes the batches chose, against steps. UserError without records."""
    if not records:
        raise UserError("no records to draw: the training has not come to its first")
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3.0), dpi=130, layout="constrained")
    steps = [record.step for record in records]
    left.plot(steps, [record.held_out.psnr for record in records], color=PSNR, linewidth=2)
    left.set_ylabel("PSNR of held-out pictures, dB", color=INK)
    right.plot(steps, [record.used for record in records], color=USED, linewidth=2, label="chosen at all")
    right.plot(steps, [record.perplexity for record in records], color=PSNR, linewidth=2, label="perplexity")
    right.set_ylabel("codes in use in training", color=INK)
    right.set_ylim(bottom=0)
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.set_xlabel("step", color=INK)
        axes.grid(axis="y", color="#eceff3")
        axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    plt.close(figure)
    return file.getvalue()
