"""`python -m ringworld.evaluate.positions`: how far does a finished model read past its context without training?

One table: held-out loss at lengths from the context on, for rotary positions as they are and stretched by each rule
(the question of Giraffe, Pal et al. 2023, arXiv 2308.10882). The same windows of the same documents are read under
every rule, by one compiled forward pass for each length: positions are an argument of the model.

    unchanged   the frequencies of the checkpoint: what reading past the context costs by itself
    linear      positions interpolated (Chen et al. 2023, arXiv 2306.15595)
    ntk         a larger base, so that fast pairs stay and slow ones stretch (bloc97 2023; eq. 16 of arXiv 2309.00071)
    yarn        NTK by parts, and a temperature (Peng et al. 2023, arXiv 2309.00071, eq. 17-23)

The factor is the length over the context. Writes positions.json and positions.png into --out. Exit codes: see
`ringworld.command`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ringworld.command import guarded
from ringworld.data.files import join, open_to_write, write_json
from ringworld.errors import UserError
from ringworld.exits import DONE
from ringworld.model.config import RopeConfig

if TYPE_CHECKING:
    from ringworld.evaluate.loss_by_position import PositionLoss
    from ringworld.evaluate.scorer import Rows
    from ringworld.generate.checkpoint import Checkpoint

RULES = ("unchanged", "linear", "ntk", "yarn")


@dataclass(frozen=True)
class AtLength:
    """Held-out losses at one length, by rule. rows: windows that were read."""

    length: int
    rows: int
    losses: Mapping[str, PositionLoss]


def main(arguments: list[str]) -> int:
    """Parse, score, write. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ringworld.evaluate.positions", description=__doc__)
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="a stage of a run, or a Hugging Face folder")
    parser.add_argument("--tokenizer", metavar="DIR", help="another tokenizer than the model's own")
    parser.add_argument("--lengths", default="1x,2x,4x", help="times the context, or tokens: 1x,2x,16k")
    parser.add_argument("--rows", type=int, default=4, help="windows of each length, at most")
    parser.add_argument("--documents", nargs="+", metavar="PLACE", help="texts to read; without: those held out")
    parser.add_argument("--tokens", metavar="DIR", help="the token store trained on; of a stage its own")
    parser.add_argument("--mesh", default="ring=-1", help="as in ring=4,tensor=2; ring=-1: all devices hold a window")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of products; the checkpoint's own")
    parser.add_argument("--loss-chunk", type=int, default=1024, help="tokens whose logits are held at a time")
    parser.add_argument("--out", metavar="DIR", help="positions.json and positions.png go here")
    options = parser.parse_args(arguments)
    return guarded(lambda: _run(options))


def stretched(rope: RopeConfig, context: int, length: int) -> dict[str, RopeConfig]:
    """By rule, the positions for rows of `length` tokens of weights that were trained at `context`.

    Up to the context nothing is stretched: all rules are the unchanged one. UserError for positions that are stretched
    already, of which no rule says how they stretch again.
    """
    if rope.scaling != "none":
        raise UserError(
            f"the checkpoint's positions are stretched already (scaling {rope.scaling}, factor {rope.factor:g}); the "
            f"comparison starts from plain ones, whose context was set by theta alone"
        )
    if length <= context:
        return dict.fromkeys(RULES, rope)
    factor = length / context
    return {
        "unchanged": rope,
        "linear": replace(rope, scaling="linear", factor=factor),
        "ntk": replace(rope, scaling="ntk", factor=factor),
        "yarn": replace(rope, scaling="yarn", factor=factor, original_length=context),
    }


def lengths_from(text: str, context: int) -> list[int]:
    """`1x,2x,16k` in tokens, ascending. UserError for anything else, or for less than two tokens."""
    from ringworld.evaluate.tasks.__main__ import lengths_of

    found = set()
    for part in text.lower().split(","):
        times = re.fullmatch(r"(\d+(?:\.\d+)?)x", part.strip())
        found |= {round(float(times[1]) * context)} if times else set(lengths_of(part))
    if min(found) < 2:
        raise UserError(f"--lengths {text}: {min(found)} tokens; give 2 or more")
    return sorted(found)


def table(found: Sequence[AtLength], context: int) -> str:
    """As Markdown: the mean loss at each length, and of the positions past the context."""
    from ringworld.evaluate.tasks.report import as_markdown

    head, rows = ["positions"], [[rule] for rule in RULES]
    for at in found:
        past = at.length > context
        head += [f"{at.length:,}", *([f"past {context:,}"] if past else [])]
        for row, rule in zip(rows, RULES, strict=True):
            loss = at.losses[rule]
            row += [f"{loss.mean:.3f}", *([f"{loss.mean_past:.3f}"] if past else [])]
    return as_markdown([head, *rows])


def draw(path: str, found: Sequence[AtLength], context: int) -> None:
    """Loss by length, and loss by position at the longest, a line for each rule, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), dpi=130, layout="constrained")
    longest = found[-1]
    for rule in RULES:
        left.plot([at.length for at in found], [at.losses[rule].mean for at in found], marker="o", label=rule)
        loss = longest.losses[rule]
        right.plot((np.array(loss.edges[:-1]) + np.array(loss.edges[1:])) / 2, loss.spans, marker="o", markersize=3)
    left.set_xscale("log", base=2)
    left.set_xticks([at.length for at in found], [f"{at.length:,}" for at in found])
    left.set_xlabel("length, tokens")
    left.set_ylabel("held-out loss, nats per token")
    left.legend(frameon=False)
    right.set_xlabel(f"position, in rows of {longest.length:,} tokens")
    for axes in (left, right):
        axes.axvline(context, color="#8894a3", linewidth=1, linestyle=":")
        axes.grid(axis="y", color="#eceff3")
        axes.spines[["top", "right"]].set_visible(False)
    with open_to_write(path) as file:
        figure.savefig(file, format="png")
    plt.close(figure)


def _run(options: argparse.Namespace) -> int:
    if options.rows < 1 or options.loss_chunk < 1:
        raise UserError(f"--rows {options.rows}, --loss-chunk {options.loss_chunk}: 1 or more")
    from ringworld.generate.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(options.checkpoint, options.tokenizer)
    lengths = lengths_from(options.lengths, checkpoint.context)
    stretched(checkpoint.config.rope, checkpoint.context, checkpoint.context)  # refuses before anything is read
    rows, refused = _rows(options, checkpoint, lengths)
    for length, reason in refused.items():
        print(f"refused: {length:,} tokens: {reason}", file=sys.stderr)
    if not rows:
        raise UserError("no length can be measured; give longer documents by --documents, or shorter lengths")
    found = _scored(options, checkpoint, rows)
    print(table(found, checkpoint.context))
    if options.out:
        write_json(join(options.out, "positions.json"), _told(options, checkpoint, found, refused))
        draw(join(options.out, "positions.png"), found, checkpoint.context)
    return DONE


def _rows(
    options: argparse.Namespace, checkpoint: Checkpoint, lengths: Sequence[int]
) -> tuple[dict[int, Rows], dict[int, str]]:
    """Windows of each length, and why there are none."""
    from ringworld.data.token_store import TokenStore
    from ringworld.data.tokenizers import check_same
    from ringworld.evaluate.held_out import windows, windows_of
    from ringworld.evaluate.tasks.haystack import unseen_documents
    from ringworld.generate.checkpoint import tokens_of

    place = options.tokens or tokens_of(options.checkpoint)
    store = TokenStore.open(place) if place else None
    texts = []
    if options.documents:
        documents = unseen_documents(options.documents, store)
        texts = checkpoint.tokenizer.encode_batch([document.text for document in documents])
    elif store is None:
        raise UserError(f"{options.checkpoint} is no stage of a run: give --documents, or --tokens of a run")
    else:
        check_same(store.info.tokenizer_hash, checkpoint.tokenizer.hash, f"windows of {store.url}")
    found: dict[int, Rows] = {}
    refused: dict[int, str] = {}
    for length in lengths:
        try:
            found[length] = (
                windows_of(texts, length, options.rows)
                if options.documents or store is None
                else windows(store, length, options.rows)
            )
        except UserError as too_long:
            refused[length] = str(too_long)
    return found, refused


def _scored(options: argparse.Namespace, checkpoint: Checkpoint, rows: Mapping[int, Rows]) -> list[AtLength]:
    from ringworld.evaluate.loss_by_position import summarize
    from ringworld.evaluate.scorer import Scorer
    from ringworld.mesh import make_mesh, parse_mesh
    from ringworld.model.sharding import check
    from ringworld.train.weights import load_weights

    config, context = checkpoint.config, checkpoint.context
    mesh = make_mesh(parse_mesh(options.mesh))
    check(config, mesh.shape)
    params = load_weights(checkpoint.weights, config, mesh, sequence=max(rows))
    scorer = Scorer(config, mesh, options.dtype or checkpoint.dtype, options.loss_chunk)
    found = []
    for length, windows in rows.items():
        losses: dict[str, PositionLoss] = {}
        scored: dict[RopeConfig, PositionLoss] = {}
        for rule, rope in stretched(config.rope, context, length).items():
            if rope not in scored:
                loss = scorer.score(params, rope, windows).loss
                scored[rope] = summarize(loss, windows.segments, min(context, length - 1))
            losses[rule] = scored[rope]
            print(f"[{length:,} tokens] {rule}: {losses[rule].mean:.3f}", file=sys.stderr, flush=True)
        found.append(AtLength(length, len(windows.tokens), losses))
    return found


def _told(
    options: argparse.Namespace, checkpoint: Checkpoint, found: Sequence[AtLength], refused: Mapping[int, str]
) -> dict[str, Any]:
    return {
        "checkpoint": os.path.basename(options.checkpoint.rstrip("/")),
        "context": checkpoint.context,
        "theta": checkpoint.config.rope.theta,
        "lengths": {
            str(at.length): {
                "rows": at.rows,
                "losses": {rule: asdict(loss) for rule, loss in at.losses.items()},
                "rope": {
                    rule: asdict(rope)
                    for rule, rope in stretched(checkpoint.config.rope, checkpoint.context, at.length).items()
                },
            }
            for at in found
        },
        "refused": {str(length): reason for length, reason in refused.items()},
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
