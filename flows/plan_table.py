"""A plan for people: what each stage needs of a chip and a host, how long it takes, and whether it fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

import yaml

from flows.plan_rows import Row, summary
from infra.console import print_table
from ringworld.mesh import AXES
from ringworld.planning.hardware import GIB
from ringworld.strict import to_mapping
from ringworld.train.flops import training_flops

_UNITS = (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9))
_STYLE = {"yes": "green", "NO": "bold red", "?": "yellow"}


def print_rows(rows: Sequence[Row], price: float | None, out: TextIO) -> None:
    """The memory table, the time table, and what a person must know besides."""
    chip = next((row.machine.chip for row in rows if row.machine.chip is not None), None)
    name = f"{rows[0].machine.chips} x {chip.name}" if chip else f"{rows[0].machine.chips} devices of an unknown kind"
    print(f"\nMemory of a chip, GiB ({name}; {_gib(chip.hbm_bytes) if chip else '?'} GiB each)\n", file=out)
    _memory(rows, out)
    print("\nTime\n", file=out)
    _time(rows, price, out)
    for line in _remarks(rows):
        print(line, file=out)


def _memory(rows: Sequence[Row], out: TextIO) -> None:
    headings = ["stage", "mesh", "kept", "weights", "optimizer", "gradients", "saved", "temporary", "estimate"]
    headings += ["compiler", "host GiB", "of", "fits"]
    cells = []
    for row in rows:
        memory = row.found.memory
        parts = (memory.weights, memory.optimizer, memory.gradients, memory.saved, memory.temporaries, memory.total)
        fits = {True: "yes", False: "NO", None: "?"}[row.fits]
        host = _gib(row.machine.host_bytes) if row.machine.host_bytes is not None else "?"
        cells.append(
            [row.stage, _mesh(row), _kept(row), *map(_gib, parts), _compiled(row), _gib(row.host_bytes), host, fits]
        )
    print_table(headings, cells, out, lambda cells: ("fits", _STYLE[cells[-1]]), headings[3:-1])


def _time(rows: Sequence[Row], price: float | None, out: TextIO) -> None:
    unit, scale = next((unit for unit in _UNITS if rows[-1].found.flops >= unit[1]), _UNITS[-1])
    headings = ["stage", f"{unit} a step", "attention", "s a step", "products", "attending", "rest", "waits for links"]
    headings += ["MFU", "Mtok a day", "steps", "hours", "chip-hours", *(["cost"] if price is not None else [])]
    cells = []
    for row in rows:
        found, time, hours = row.found, row.found.time, row.hours
        share = 1 - _without_attention(row) / found.flops
        line = [row.stage, _figure(found.flops / scale), f"{share:.0%}"]
        if time is None or hours is None or found.mfu is None:
            line += ["?"] * 8
        else:
            rest = time.loss + time.update + time.host
            line += [_figure(time.seconds), *(_figure(part) for part in (time.products, time.attention, rest))]
            line += [f"{time.exposed / time.seconds:.0%}", f"{found.mfu:.0%}", _figure((row.tokens_a_day or 0) / 1e6)]
            line += [str(row.recipe.steps), _figure(hours), _figure(hours * row.machine.chips)]
            line += [_figure(hours * row.machine.chips * price)] if price is not None else []
        cells.append(line + ["?"] * (len(headings) - len(line)))
    if len(rows) > 1:
        whole = summary(rows, price)
        tail = [whole["hours"], whole["chip_hours"], *([whole["cost"]] if price is not None else [])]
        blank = [""] * (len(headings) - len(tail) - 1)
        cells.append(["all", *blank, *("?" if value is None else _figure(value) for value in tail)])
    print_table(headings, cells, out, right=headings[1:])


def print_proposals(rows: Sequence[Row], out: TextIO) -> None:
    """The rows' meshes and options as the `stages:` of a placement file."""
    stages = {
        row.stage: {
            "mesh": {axis: size for axis, size in row.found.mesh.sizes().items() if size != 1 or axis == "fsdp"},
            "options": {
                "memory": to_mapping(row.options.memory),
                **({"microbatch_rows": row.options.microbatch_rows} if row.options.microbatch_rows else {}),
            },
        }
        for row in rows
    }
    print("\n# proposed, for the placement file:", file=out)
    print(yaml.safe_dump({"stages": stages}, sort_keys=False, default_flow_style=None, width=160), end="", file=out)


def _remarks(rows: Sequence[Row]) -> list[str]:
    lines = [""]
    guessed = [row.stage for row in rows if row.attention.source == "one document a row"]
    if guessed:
        lines.append(f"Attention as if each row were one document (no packing plan in the run): {', '.join(guessed)}")
    for row in rows:
        lines += [f"{row.stage}: {note}" for note in row.found.notes]
        if row.fits is False:
            lines.append(f"{row.stage} does not fit: {row.misfit}")
        elif row.compiled is not None and row.compiled.outcome != "fits":
            lines.append(f"{row.stage}: the compiler: {row.compiled.outcome}: {row.compiled.message}")
    return lines if len(lines) > 1 else []


def _without_attention(row: Row) -> float:
    return training_flops(row.recipe.model, row.recipe.batch_tokens, 0)


def _mesh(row: Row) -> str:
    sizes = row.found.mesh.sizes()
    return ",".join(f"{axis}={sizes[axis]}" for axis in AXES if sizes[axis] > 1) or "one device"


def _kept(row: Row) -> str:
    memory = row.options.memory
    words = [memory.remat]
    if memory.every > 1:
        words.append(f"every {memory.every}")
    if memory.offload:
        words.append(f"{memory.offload:.0%} on host")
    if memory.head_groups > 1:
        words.append(f"{memory.head_groups} head groups")
    if row.options.microbatch_rows:
        words.append(f"{row.options.microbatch_rows} of {row.recipe.rows} rows at a time")
    if row.options.optimizer_on == "host":
        words.append("moments on host")
    return ", ".join(words)


def _compiled(row: Row) -> str:
    if row.compiled is None:
        return "-"
    return row.compiled.outcome if row.compiled.peak is None else _gib(row.compiled.peak)


def _gib(size: float) -> str:
    gib = size / GIB
    return f"{gib:.2f}" if gib < 10 else f"{gib:.1f}" if gib < 1000 else f"{gib:,.0f}"


def _figure(value: float) -> str:
    """Three figures or so, without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 else f"{value:.1g}"
