"""Does the method work? A small model trained at 512 tokens and extended to 8K, against four ways of not doing so.

    python benchmarks/context_extension.py --out DIR [--minutes 60] [--documents FOLDER ...] [--lengths 512 1024 ...]
    python benchmarks/context_extension.py --out OTHER --arms rising --stage-steps 120 120 120 360

- A base is trained at the first length; from it the arms of `context_extension_arms`: stages with theta rising, with
  theta as it was, and with naive packing; one stage at the last length with as many tokens; and linear, NTK and YaRN
  without training.
- Everything is ringworld's own: `ringworld.data` packs, `ringworld.train` trains, `ringworld.evaluate` measures after
  every stage: single needles by length and depth, and the loss of held-out documents by position.
- DIR/results.jsonl has a line for each stage and each measurement. The same command again goes on where it was killed.
  DIR/results.json, tables.md and figure.png are written anew after each stage.
- --minutes makes the steps fewer or more, so that the whole takes about so long by this machine's rate of matrix
  products; the steps that come of it are kept in DIR and count when the command is given again. Every field of
  `Settings` is a flag, and --dtype, --lengths, --layers and the like make it an experiment for an accelerator.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

# Run as a file, Python looks for imports beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.context_extension_arms import Settings, cost
from benchmarks.context_extension_report import draw, tables
from benchmarks.context_extension_run import Experiment
from ringworld.distributed import join
from ringworld.errors import UserError
from ringworld.exits import DONE, PREEMPTED, USER_ERROR
from ringworld.mesh import MeshSpec, parse_mesh
from ringworld.strict import from_mapping
from ringworld.train.flops import device_peak_flops

EFFICIENCY = 0.15  # of the rate of matrix products: what a model of this size reaches on two cores, about


def main(words: Sequence[str]) -> int:
    chosen = _parse(words)
    if chosen.devices:
        jax.config.update("jax_num_cpu_devices", chosen.devices)
    folder = Path(chosen.out)
    join(None, 1, 0, str(folder.absolute() / "compiled"))
    given = {name: value for name, value in vars(chosen).items() if name not in ("out", "minutes", "mesh", "devices")}
    try:
        settings = from_mapping(Settings, given, "settings")
        if chosen.minutes:
            settings = _within(chosen.minutes, folder, settings)
        return conduct(folder, settings, parse_mesh(chosen.mesh))
    except UserError as wrong:
        print(f"error: {wrong}", file=sys.stderr)
        return USER_ERROR


def conduct(folder: Path, settings: Settings, mesh: MeshSpec) -> int:
    """The experiment from where it is to its end; returns the exit code."""
    experiment = Experiment(folder, settings, mesh)
    total = sum(flops for _, flops in experiment.plan())
    print(f"{len(experiment.stages)} stages, {len(experiment.probes)} measurements, {total / 1e12:.1f} TFLOP "
          f"({', '.join(f'{key} {flops / 1e12:.2f}' for key, flops in experiment.plan() if 'probe' not in key)})",
          file=sys.stderr, flush=True)  # fmt: skip
    shown = {f"probe {stage.key}" for stage in experiment.stages}
    for key in experiment.run():
        if key in shown:
            _report(folder, settings, experiment)
    if experiment.stopped:
        print("asked to stop; the same command goes on", file=sys.stderr)
        return PREEMPTED
    _report(folder, settings, experiment)
    print((folder / "tables.md").read_text(encoding="utf-8"))
    return DONE


def _report(folder: Path, settings: Settings, experiment: Experiment) -> None:
    whole = {**experiment.about, "settings": dataclasses.asdict(settings), "results": experiment.lines}
    (folder / "results.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    (folder / "tables.md").write_text(tables(settings, experiment.lines), encoding="utf-8")
    draw(folder / "figure.png", settings, experiment.lines)


def _within(minutes: float, folder: Path, settings: Settings) -> Settings:
    """The settings with the steps that fit; those kept in the folder, where it has any."""
    kept = folder / "settings.json"
    if kept.exists():
        found = json.loads(kept.read_text(encoding="utf-8"))
        return dataclasses.replace(
            settings, base_steps=tuple(found["base_steps"]), stage_steps=tuple(found["stage_steps"])
        )
    rate = device_peak_flops(jax.devices()[0], jnp.dtype(settings.dtype)) * jax.device_count() * EFFICIENCY
    share = minutes * 60 * rate / cost(settings)
    return dataclasses.replace(
        settings,
        base_steps=tuple(max(1, round(steps * share)) for steps in settings.base_steps),
        stage_steps=tuple(max(1, round(steps * share)) for steps in settings.stage_steps),
    )


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--mesh", default="fsdp=-1", help="as ringworld.train takes it")
    parser.add_argument("--devices", type=int, default=0, help="CPU devices, of a share of the cores each")
    for field in dataclasses.fields(Settings):
        default: Any = field.default
        several = isinstance(default, tuple)
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(default[0] if several else default),
            nargs="*" if several else None,
            default=default,
        )
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
