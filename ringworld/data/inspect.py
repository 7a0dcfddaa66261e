"""Print any row of a packing plan as a person reads it: its segments, positions, weights, sources and text.

    python -m ringworld.data.inspect runs/tiny --stage text-1k --row 17       # by a run
    python -m ringworld.data.inspect runs/tiny --stage text-1k --step 3       # the rows of a step
    python -m ringworld.data.inspect plan.parquet --row 17 --tokens DIR --tokenizer DIR

A run's folder says by its manifests where plan, tokens and tokenizer lie; of a plan alone the command line does. Text,
segments, positions and weights are those of the trainer's own loader; codes of pictures are counted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from fsspec.core import url_to_fs

from ringworld.command import guarded
from ringworld.data.files import join, read_json
from ringworld.data.loader import Batch, Loader
from ringworld.data.plan import MADE, PackingPlan
from ringworld.data.stores import Store, open_stores
from ringworld.data.tokenizers import Tokenizer, check_same, load_tokenizer
from ringworld.errors import UserError

_SHOWN = 160  # characters of an example's beginning and of its end


@dataclass(frozen=True)
class Found:
    """What is inspected. seed, batch_tokens: of the training that uses the plan; None where nobody says."""

    plan: PackingPlan
    store: Store
    tokenizer: Tokenizer
    seed: int | None
    batch_tokens: int | None


def main(arguments: list[str]) -> int:
    """Parse, find, print. Returns the exit code; see `ringworld.command`."""
    parser = argparse.ArgumentParser(prog="python -m ringworld.data.inspect", description="Print rows of a plan.")
    parser.add_argument("place", metavar="PLAN_OR_RUN", help="plan.parquet, or the folder of a run")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--row", type=int, metavar="N", help="a row of the plan, from 0")
    which.add_argument("--step", type=int, metavar="N", help="the rows of a training step, from 0")
    parser.add_argument("--stage", help="of a run: a training stage, or its pack stage")
    parser.add_argument(
        "--tokens", metavar="DIR", action="append", help="the token store of a plan alone; of a plan of two, twice"
    )
    parser.add_argument("--tokenizer", metavar="DIR", help="the tokenizer of a plan alone")
    parser.add_argument("--seed", type=int, help="of the training, for --step")
    parser.add_argument("--batch-tokens", type=int, help="of the training, for --step")
    parser.add_argument("--full", action="store_true", help="all of the text, not only beginnings and ends")
    options = parser.parse_args(arguments)

    def work() -> int:
        found = _find(options)
        shown = _row(found, options.row, options.full) if options.step is None else _step(found, options)
        try:
            for line in shown:
                print(line, flush=True)
        except BrokenPipeError:  # whoever reads has seen enough, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0

    return guarded(work)


def _row(found: Found, row: int, full: bool) -> Iterator[str]:
    plan = found.plan
    if not 0 <= row < plan.num_rows:
        raise UserError(f"--row {row}: the plan has rows 0 to {plan.num_rows - 1}")
    batch = Loader(found.store, plan, seed=0, rows_per_batch=1, shuffle=False).batch(row)
    yield from _described(found, row, batch, 0, full)
    weight = batch.loss_weight[0]
    yield f"loss weights, were the row a batch by {plan.weigh_by}: {_weights(weight)}"


def _step(found: Found, options: argparse.Namespace) -> Iterator[str]:
    seed = found.seed if options.seed is None else options.seed
    batch_tokens = found.batch_tokens if options.batch_tokens is None else options.batch_tokens
    if seed is None or batch_tokens is None:
        raise UserError("--step: which rows a step draws depends on the training; give --seed and --batch-tokens")
    if options.step < 0:
        raise UserError(f"--step {options.step}: steps count from 0")
    plan = found.plan
    if batch_tokens < plan.sequence or batch_tokens % plan.sequence:
        raise UserError(f"--batch-tokens {batch_tokens}: a multiple of the plan's rows of {plan.sequence} tokens")
    loader = Loader(found.store, plan, seed, batch_tokens // plan.sequence)
    rows, batch = loader.rows_at(options.step), loader.batch(options.step)
    work = plan.work[rows]
    counts = f"{loader.tokens(options.step):,} tokens, {loader.examples(options.step):,} examples"
    yield f"step {options.step}: {len(rows)} rows of {batch.tokens.shape[1]:,} slots, {counts}"
    yield f"attention of a row: {work.min():,} to {work.max():,} pairs"
    for place, row in enumerate(rows.tolist()):
        yield ""
        yield from _described(found, row, batch, place, options.full)
        yield f"loss weights in this batch by {plan.weigh_by}: {_weights(batch.loss_weight[place])}"


def _described(found: Found, row: int, batch: Batch, place: int, full: bool) -> Iterator[str]:
    """The lines of a row that lies at `place` of a batch."""
    plan, store = found.plan, found.store
    ends = np.cumsum([corpus.rows for corpus in plan.corpora])
    corpus = plan.corpora[int(np.searchsorted(ends, row, side="right"))]
    slices = range(int(plan.row_start[row]), int(plan.row_start[row + 1]))
    held = int(plan.length[slices.start : slices.stop].sum())
    yield (
        f"row {row} of {plan.num_rows:,}{f', {corpus.name}' if corpus.name else ''}: {corpus.sequence:,} slots, "
        f"{held:,} hold tokens ({held / corpus.sequence:.2%}), {plan.work[row]:,} pairs of attention"
    )
    names = f"{'slots':>19} {'segment':>7} {'positions':>19} {'counted':>9} {'made':>9} {'document':>9}"
    yield f"{names} {'its tokens':>21}"
    sources = store.sources(plan.document[slices.start : slices.stop].tolist())
    for number, source in zip(slices, sources, strict=True):
        slot, length, start = int(plan.slot[number]), int(plan.length[number]), int(plan.start[number])
        document, at = int(plan.document[number]), slice(slot, slot + length)
        counted = int((batch.loss_weight[place, at] > 0).sum())
        yield (
            f"{_span(slot, length):>19} {batch.segments[place, slot]:>7} "
            f"{_span(int(batch.positions[place, slot]), length):>19} {counted:>9,} {MADE[plan.made[number]]:>9} "
            f"{document:>9} {_span(start, length):>21} of {store.index.tokens[document]:,}"
        )
        yield f"    from {source}"
        yield f"    {_shortened(_text(found, batch.tokens[place, at]), full)}"


def _text(found: Found, ids: np.ndarray) -> str:
    """The text of ids, with stretches of vision ids as their number."""
    first = found.store.info.vision_offset
    if not first:
        return found.tokenizer.decode(ids)
    seen = ids >= first
    parts = np.split(ids, np.flatnonzero(np.diff(seen)) + 1)
    return "".join(
        f"[{len(part)} vision ids]" if part[0] >= first else found.tokenizer.decode(part) for part in parts if len(part)
    )


def _weights(weight: np.ndarray) -> str:
    counted = weight[weight > 0]
    if not len(counted):
        return "none"
    return f"{len(counted):,} targets, {counted.min():.3g} to {counted.max():.3g}, {weight.sum():.6g} in all"


def _span(first: int, length: int) -> str:
    return f"{first:,}-{first + length - 1:,}"


def _shortened(text: str, full: bool) -> str:
    if full or len(text) <= 2 * _SHOWN + 20:
        return repr(text)
    return f"{text[:_SHOWN]!r} ... {text[-_SHOWN:]!r}"


# ---------------------------------------------------------------------- finding


def _find(options: argparse.Namespace) -> Found:
    place: str = options.place
    if place.endswith(".parquet"):
        if not (options.tokens and options.tokenizer):
            raise UserError(f"{place}: of a plan alone, say where its tokens are: --tokens DIR --tokenizer DIR")
        return _opened(place, options.tokens, options.tokenizer, None, None)
    if "://" not in place and not os.path.isdir(place):
        raise UserError(f"{place}: no such folder; give a run's, such as runs/tiny, or a plan.parquet")
    stages = _manifests(place)
    packs = [name for name, manifest in stages.items() if "plan.parquet" in _files(manifest)]
    if not packs:
        raise UserError(f"{place}: no pack stage is finished there; run one first, or give a run's folder")
    wanted = options.stage if options.stage in packs else f"pack-{options.stage}"
    if options.stage is None and len(packs) == 1:
        wanted = packs[0]
    if wanted not in packs:
        names = ", ".join(name.removeprefix("pack-") for name in packs)
        raise UserError(f"--stage={options.stage}: {place} has plans of {names}; give one of these")
    plan = _path(place, stages, wanted, "plan.parquet")
    ports = stages[wanted]["inputs"]
    stores = [ports[port]["stage"] for port in ("tokens", "vision") if port in ports]
    of_tokenizer = stages[stores[0]]["inputs"]["tokenizer"]["stage"]
    tokenizer = options.tokenizer or _path(place, stages, of_tokenizer, "tokenizer")
    training = [m for m in stages.values() if m["kind"] == "train" and m["inputs"]["plan"]["stage"] == wanted]
    recipe: Mapping[str, Any] = training[0]["recipe"] if training else {}
    urls = options.tokens or [_path(place, stages, store, "tokens") for store in stores]
    return _opened(plan, urls, tokenizer, recipe.get("seed"), recipe.get("batch_tokens"))


def _opened(plan: str, tokens: list[str], tokenizer: str, seed: int | None, batch_tokens: int | None) -> Found:
    found = Found(PackingPlan.load(plan), open_stores(tokens), load_tokenizer(tokenizer), seed, batch_tokens)
    check_same(found.store.tokenizer_hash, found.tokenizer.hash, f"{found.store.url} and {tokenizer}")
    return found


def _manifests(run: str) -> Mapping[str, Any]:
    """The manifest of every finished stage of a run, by its name."""
    filesystem, folder = url_to_fs(run)
    names = [name.split("/")[-2] for name in sorted(filesystem.glob(f"{folder.rstrip('/')}/*/manifest.json"))]
    return {name: read_json(join(run, name, "manifest.json")) for name in names}


def _files(manifest: Mapping[str, Any]) -> list[str]:
    return [entry["path"] for entry in manifest["files"]]


def _path(run: str, stages: Mapping[str, Any], stage: str, name: str) -> str:
    if stage not in stages:
        raise UserError(f"{run}: stage {stage} is not finished there; run it first")
    return join(run, stage, f"attempt-{stages[stage]['attempt']}", name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
