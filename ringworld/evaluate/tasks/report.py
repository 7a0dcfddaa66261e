"""What a grid came to: a table of tasks by lengths, the effective length, and a picture of each grid of depths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ringworld.data.files import open_to_write
from ringworld.evaluate.tasks.grid import Result
from ringworld.evaluate.tasks.names import RULER_THRESHOLD
from ringworld.evaluate.tasks.scoring import effective_length


def summarize(results: Sequence[Result], threshold: float = RULER_THRESHOLD) -> dict[str, Any]:
    """For JSON. tasks: of each, by length, the mean score over its examples at all depths, in percent, None where it
    was refused. mean: of each length over the tasks that were asked there. effective_length: see `scoring`; only over
    lengths at which every task was asked."""
    lengths = sorted({result.cell.length for result in results})
    names = list(dict.fromkeys(result.cell.task for result in results))
    tasks = {name: {str(length): _mean(results, name, length) for length in lengths} for name in names}
    means: dict[int, float] = {}
    complete: dict[int, float] = {}
    for length in lengths:
        scores = [tasks[name][str(length)] for name in names]
        asked = [found for found in scores if found is not None]
        if asked:
            means[length] = float(np.mean(asked))
        if len(asked) == len(scores):
            complete[length] = means[length]
    return {
        "lengths": lengths,
        "tasks": tasks,
        "mean": {str(length): mean for length, mean in means.items()},
        "threshold": threshold,
        "effective_length": effective_length(complete, threshold),
        "examples": sum(len(result.examples) for result in results),
        "cells": [
            {"task": found.cell.task, "length": found.cell.length, "depth": found.cell.depth, "score": found.score}
            for found in results
        ],
        "refused": {found.cell.name: found.refused for found in results if found.refused},
    }


def table(summary: dict[str, Any]) -> str:
    """As Markdown, in percent; a dash where a length was refused."""
    lengths = [str(length) for length in summary["lengths"]]
    rows = [["task", *(f"{int(length):,}" for length in lengths)]]
    for name, scores in [*summary["tasks"].items(), ("mean", summary["mean"])]:
        rows.append([name, *(_shown(scores.get(length)) for length in lengths)])
    return as_markdown(rows)


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table, its head first; the first column to the left, figures to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| "
        + " | ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def draw(path: str, results: Sequence[Result]) -> bool:
    """A heat map over lengths x depths for each task that was asked at depths, as PNG; False where none was."""
    placed = [result for result in results if result.cell.depth is not None and result.score is not None]
    if not placed:
        return False
    import matplotlib.pyplot as plt

    from ringworld.evaluate.pictures import FOUND

    names = list(dict.fromkeys(result.cell.task for result in placed))
    lengths = sorted({result.cell.length for result in placed})
    depths = sorted({result.cell.depth for result in placed if result.cell.depth is not None})
    across = min(3, len(names))
    down = -(-len(names) // across)
    figure, drawn = plt.subplots(
        down, across, figsize=(1.4 + (1.4 + 0.7 * len(lengths)) * across, (1.1 + 0.4 * len(depths)) * down), dpi=130,
        layout="constrained", squeeze=False, sharey=True,
    )  # fmt: skip
    for axes in drawn.flat[len(names) :]:
        axes.set_axis_off()
    for name, axes in zip(names, drawn.flat, strict=False):
        grid = np.full((len(depths), len(lengths)), np.nan)
        for result in placed:
            if result.cell.task == name and result.cell.depth is not None:
                grid[depths.index(result.cell.depth), lengths.index(result.cell.length)] = result.score
        axes.imshow(grid, vmin=0, vmax=1, cmap=FOUND, aspect="auto")
        for (row, column), value in np.ndenumerate(grid):
            axes.text(column, row, "–" if np.isnan(value) else f"{value:.0%}", ha="center", va="center", fontsize=8)  # noqa: RUF001
        axes.set_title(f"{name}: {np.nanmean(grid):.0%}", fontsize=9)
        axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], fontsize=8)
        axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths], fontsize=8)
    figure.supxlabel("context, tokens", fontsize=9)
    figure.supylabel("depth of the needle", fontsize=9)
    with open_to_write(path) as file:
        figure.savefig(file, format="png")
    plt.close(figure)
    return True


def _mean(results: Sequence[Result], task: str, length: int) -> float | None:
    scores = [
        example.score
        for found in results
        if (found.cell.task, found.cell.length) == (task, length)
        for example in found.examples
    ]
    return 100 * float(np.mean(scores)) if scores else None


def _shown(score: float | None) -> str:
    return "-" if score is None else f"{score:.1f}"
