"""What the experiment found, as tables in Markdown and as a figure: every arm, also the ones that are not done yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.context_extension_arms import TRAINING_FREE, Settings, stages

TITLES = {
    "base": "base, as it is",
    "rising": "stages, theta rising",
    "fixed": "stages, theta as it was",
    "direct": "one stage at the last length",
    "naive": "stages, theta rising, naive packing",
    "linear": "linear",
    "ntk": "NTK",
    "yarn": "YaRN",
}
_COLORS = dict(
    zip(TITLES, ("#8894a3", "#2563eb", "#c2571a", "#2f855a", "#8a4fb0", "#b5892a", "#0e7490", "#b8447f"), strict=True)
)
_INK = "#1f2933"
Lines = Mapping[str, Mapping[str, Any]]


def needle(line: Mapping[str, Any]) -> dict[int, float]:
    """Of a probe's line, by length: the share of prompts answered exactly."""
    found: dict[int, list[float]] = {}
    for cell in line["cells"]:
        found.setdefault(cell["length"], []).append(cell["exact"])
    return {length: float(np.mean(shares)) for length, shares in found.items()}


def last_of(arm: str, settings: Settings, lines: Lines) -> dict[int, Mapping[str, Any]]:
    """By length, the probe that shows an arm at its end; lengths that are not measured are left out."""
    first, *others = settings.lengths
    if arm in TRAINING_FREE:
        keys = {first: f"base-{first}"} | {length: f"{arm}-{length}" for length in others}
    else:
        keys = dict.fromkeys(settings.lengths, f"base-{first}" if arm == "base" else f"{arm}-{others[-1]}")
    return {length: lines[f"probe {key}"] for length, key in keys.items() if f"probe {key}" in lines}


def tables(settings: Settings, lines: Lines) -> str:
    """Markdown: every arm at its end, then the needle after every stage."""
    heads = [f"{length:,}" for length in settings.lengths]
    found = ["Needle found exactly, by the length of the prompt:", "", *_head("arm", heads, "tokens")]
    for arm, title in _titles(settings):
        at = last_of(arm, settings, lines)
        shares = [f"{needle(at[length])[length]:.0%}" if length in at else "-" for length in settings.lengths]
        found.append(f"| {title} | {_tokens(arm, lines)} | {' | '.join(shares)} |")
    found += ["", "Held-out loss in nats a token, over the second half of so many positions:", ""]
    found += _head("arm", heads)
    for arm, title in _titles(settings):
        at = last_of(arm, settings, lines)
        late = [
            f"{at[length]['loss']['late'][str(length)]:.3f}" if length in at else "-" for length in settings.lengths
        ]
        found.append(f"| {title} | {' | '.join(late)} |")
    found += ["", "Needle after every stage:", "", *_head("stage", heads, "TFLOP")]
    for stage in stages(settings):
        if f"probe {stage.key}" in lines:
            shares, title = needle(lines[f"probe {stage.key}"]), TITLES[stage.arm].removesuffix(", as it is")
            cells = " | ".join(f"{shares[length]:.0%}" if length in shares else "-" for length in settings.lengths)
            spent = lines[stage.key]["gflop"] / 1e3
            found.append(f"| {title}, {stage.length:,} | {spent:.1f} | {cells} |")
    return "\n".join(found) + "\n"


def _titles(settings: Settings) -> list[tuple[str, str]]:
    """Of the base and of the arms that were asked for."""
    return [(arm, title) for arm, title in TITLES.items() if arm in ("base", *settings.arms)]


def _head(first: str, heads: Sequence[str], second: str = "") -> list[str]:
    names = [first, *([second] if second else []), *heads]
    return [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]


def _tokens(arm: str, lines: Lines) -> str:
    """Slots trained after the base."""
    spent = [line["slots"] for line in lines.values() if line["kind"] == "stage" and line["stage"]["arm"] == arm]
    return f"{sum(spent):,}" if spent else "0"


def draw(path: Path, settings: Settings, lines: Lines) -> None:
    """Loss by position and needle by length, a line for each arm that is measured."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.4, 4.0), dpi=130, layout="constrained")
    longest = settings.lengths[-1]
    for arm, title in _titles(settings):
        at = last_of(arm, settings, lines)
        line = "--" if arm in TRAINING_FREE else ":" if arm == "naive" else "-"  # naive often lies on rising
        style = {"color": _COLORS[arm], "linewidth": 2.4 if arm == "naive" else 1.8, "linestyle": line}
        if longest in at:
            edges = np.array(at[longest]["loss"]["edges"])
            left.plot((edges[:-1] + edges[1:]) / 2, at[longest]["loss"]["spans"], label=title, **style)
        if at:
            shares = [needle(line)[length] for length, line in at.items()]
            right.plot(list(at), shares, marker="o", markersize=4, clip_on=False, **style)
    left.set_xlabel("position in the document, tokens", color=_INK)
    left.set_ylabel("held-out loss, nats per token", color=_INK)
    right.set_xscale("log", base=2)
    right.set_xticks(settings.lengths, [f"{length:,}" for length in settings.lengths])
    right.set_ylim(0, 1)
    right.set_yticks(np.linspace(0, 1, 6), [f"{share:.0%}" for share in np.linspace(0, 1, 6)])
    right.set_xlabel("length of the prompt, tokens", color=_INK)
    right.set_ylabel("needle found exactly", color=_INK)
    for axes in (left, right):
        axes.grid(axis="y", color="#eceff3")
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = left.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside lower center", ncols=4)
    figure.savefig(path)
    plt.close(figure)
